// What E2B's JavaScript code interpreter must be able to do: `node smoke.mjs PACKAGE_DIRECTORY`.
import dns from 'node:dns'
import path from 'node:path'
import { createRequire } from 'node:module'
import { strict as assert } from 'node:assert'
import { tellAll } from '../claims/claims.mjs'

const real = dns.lookup
const domain = (process.env.E2B_DOMAIN ?? '').split(':')[0]
dns.lookup = (host, ...rest) => real(domain && host.endsWith(domain) ? '127.0.0.1' : host, ...rest)

const require = createRequire(path.join(process.argv[2], 'index.js'))
const { Sandbox } = require('@e2b/code-interpreter')

const claims = {
  async it_runs_code(box) {
    const done = await box.runCode("print('hello é'); 6 * 7")
    assert.equal(done.text, '42')
    assert.equal(done.logs.stdout.join(''), 'hello é\n')
  },
  async it_tells_errors(box) {
    const { error } = await box.runCode('1 / 0')
    assert.equal(error.name, 'ZeroDivisionError')
    assert.match(error.traceback, /1 \/ 0/)
  },
  async it_shows_plots_and_tables(box) {
    const code = "import matplotlib.pyplot as plt, pandas as pd\nplt.plot([1, 2]); plt.show()\npd.DataFrame({'a': [1]})"
    const { results } = await box.runCode(code)
    assert.equal(Buffer.from(results[0].png, 'base64').subarray(1, 4).toString(), 'PNG')
    if ('chart' in results[0]) assert.equal(results[0].chart.type, 'line')
    assert.match(results[1].html, /<table/)
    assert.deepEqual(results[1].data, { a: [1] })
  },
  async it_speaks_other_languages(box) {
    assert.equal((await box.runCode('const x: number = 1; x + 1', { language: 'ts' })).text, '2')
    assert.equal((await box.runCode('echo 2', { language: 'bash' })).logs.stdout.join(''), '2\n')
  },
  async it_has_contexts(box) {
    const context = await box.createCodeContext({ cwd: '/tmp' })
    assert.equal((await box.runCode('import os; os.getcwd()', { context })).text, '/tmp')
  },
  async it_interrupts_what_takes_too_long(box) {
    await box.runCode('kept = 3')
    await assert.rejects(box.runCode('while True: pass', { timeoutMs: 1000 }))
    assert.equal((await box.runCode('kept')).text, '3')
  },
}

const box = await Sandbox.create({ timeoutMs: 600_000, requestTimeoutMs: 120_000 })
const wrong = await tellAll(claims, box).finally(() => box.kill())
process.exit(wrong)
