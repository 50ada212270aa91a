// What E2B's JavaScript client must be able to do, whichever release it is: `node smoke.mjs PACKAGE_DIRECTORY`.
// Nothing of the client is changed; where a release lacks a call, its older spelling is used.

import path from 'node:path'
import { readFileSync } from 'node:fs'
import { createRequire } from 'node:module'
import { strict as assert } from 'node:assert'
import { tellAll } from '../claims/claims.mjs'

const place = process.argv[2]
const require = createRequire(path.join(place, 'index.js'))
const e2b = require('e2b')
const { Sandbox } = e2b
const big = Number(process.env.SMOKE_BIG_MIB ?? 200) * 1024 * 1024
const pause = (ms) => new Promise((done) => setTimeout(done, ms))

async function raises(call) {
  try {
    await call()
  } catch (error) {
    return error
  }
  assert.fail('nothing was raised')
}

async function listed(query) {
  const pages = Sandbox.list({ query, limit: 1 })
  const found = []
  while (pages.hasNext) found.push(...(await pages.nextItems()))
  return found.map((each) => each.sandboxId)
}

const claims = {
  async it_is_created_and_found_from_another_client(box) {
    await box.files.write('shared.txt', 'seen')
    const other = await Sandbox.connect(box.sandboxId)
    assert.equal(await other.files.read('shared.txt'), 'seen')
    assert.equal(await other.isRunning(), true)
    assert.deepEqual((await other.getInfo()).metadata, { 'a b': 'x&y' })
  },
  async lists_are_filtered_by_metadata_of_any_letters(box) {
    assert((await listed()).includes(box.sandboxId))
    assert((await listed({ metadata: { 'a b': 'x&y' } })).includes(box.sandboxId))
    assert(!(await listed({ metadata: { 'a b': 'x' } })).includes(box.sandboxId))
  },
  async a_command_is_run_to_its_end(box) {
    const done = await box.commands.run('echo out $X; echo err >&2; pwd', { cwd: '/tmp' })
    assert.deepEqual([done.stdout, done.stderr, done.exitCode], ['out 1\n/tmp\n', 'err\n', 0])
    assert.equal((await box.commands.run('whoami', { user: 'root' })).stdout, 'root\n')
    const error = await raises(() => box.commands.run('exit 3'))
    assert(error instanceof e2b.CommandExitError)
    assert.equal(error.exitCode, 3)
  },
  async a_command_runs_in_the_background_and_is_joined(box) {
    const handle = await box.commands.run('sleep 300', { background: true })
    const joined = await box.commands.connect(handle.pid)
    await handle.disconnect()
    assert((await box.commands.list()).some((each) => each.pid === handle.pid))
    const ended = raises(() => joined.wait())
    assert.equal(await box.commands.kill(handle.pid), true)
    assert((await ended) instanceof e2b.CommandExitError)
    assert.equal(await box.commands.kill(handle.pid), false)
  },
  async input_is_sent(box) {
    const handle = await box.commands.run('read line; echo got $line', { background: true, stdin: true })
    await box.commands.sendStdin(handle.pid, 'words\n')
    assert.equal((await handle.wait()).stdout, 'got words\n')
  },
  async a_command_past_its_time_is_killed(box) {
    assert((await raises(() => box.commands.run('sleep 300', { timeoutMs: 1000 }))) instanceof e2b.TimeoutError)
  },
  async a_terminal_is_used_and_resized(box) {
    let seen = ''
    const handle = await box.pty.create({ cols: 70, rows: 20, onData: (data) => (seen += Buffer.from(data).toString()) })
    await box.pty.resize(handle.pid, { cols: 99, rows: 31 })
    await box.pty.sendInput(handle.pid, Buffer.from('stty size; exit 7\n'))
    const error = await raises(() => handle.wait())
    assert.equal(error.exitCode, 7)
    assert(seen.includes('31 99'), seen)
  },
  async files_are_written_and_read_in_every_form(box) {
    const every = new Uint8Array(65536).map((_, at) => at % 256)
    await box.files.write('deep/er/text.txt', 'grün\n')
    assert.equal(await box.files.read('deep/er/text.txt'), 'grün\n')
    await box.files.write('/tmp/bytes', every.buffer)
    assert.deepEqual(new Uint8Array(await box.files.read('/tmp/bytes', { format: 'bytes' })), every)
    await box.files.write([{ path: 'many/one', data: '1' }, { path: '/tmp/many two', data: new Blob(['2']) }])
    assert.equal((await box.files.read('many/one')) + (await box.files.read('/tmp/many two')), '12')
  },
  async two_hundred_megabytes_go_up_and_down(box) {
    const piece = new Uint8Array(1024 * 1024)
    let left = big / piece.length
    const pull = (into) => (left-- > 0 ? into.enqueue(piece.slice()) : into.close())
    await box.files.write('big', new ReadableStream({ pull }))
    assert.equal(Number((await box.commands.run('stat -c %s big')).stdout), big)
    let size = 0
    for await (const chunk of await box.files.read('big', { format: 'stream' })) size += chunk.length
    assert.equal(size, big)
    await box.files.remove('big')
  },
  async names_are_listed_made_moved_and_removed(box) {
    assert.equal(await box.files.makeDir('dir/sub'), true)
    assert.equal(await box.files.makeDir('dir/sub'), false)
    await box.files.write('dir/file', 'x')
    assert.deepEqual((await box.files.list('dir')).map((each) => each.name).sort(), ['file', 'sub'])
    assert.equal((await box.files.rename('dir/file', '/tmp/moved')).path, '/tmp/moved')
    await box.files.remove('dir')
    assert.equal(await box.files.exists('dir'), false)
    assert((await raises(() => box.files.read('dir/file'))) instanceof e2b.NotFoundError)
  },
  async changes_are_seen(box) {
    await box.files.makeDir('seen')
    const found = []
    const handle = await box.files.watchDir('seen', (event) => found.push(`${event.type} ${event.name}`))
    await box.files.write('seen/new.txt', '1')
    for (let tries = 0; tries < 1200 && !found.includes('write new.txt'); tries++) await pause(50)
    assert(found.includes('create new.txt') && found.includes('write new.txt'), found.join())
    await handle.stop()
  },
  async signed_urls_work_without_a_client(box) {
    const down = await box.downloadUrl('shared.txt', { useSignatureExpiration: 60 })
    const form = new FormData()
    form.append('file', new Blob(['from a form']), 'up.txt')
    const up = await box.uploadUrl('up.txt')
    assert.equal(await (await fetch(down)).text(), 'seen')
    assert.equal((await fetch(up, { method: 'POST', body: form })).status, 200)
    assert.equal(await box.files.read('up.txt'), 'from a form')
  },
  async a_server_inside_is_reached_by_its_name(box) {
    if (!process.env.E2B_DOMAIN) return
    await box.files.write('echo.py', readFileSync(new URL('echo.py', import.meta.url), 'utf8'))
    await box.commands.run('python3 echo.py 8000', { background: true })
    const knock = `python3 -c "import socket; socket.create_connection(('localhost', 8000))"`
    await box.commands.run(`until ${knock} 2>/dev/null; do sleep 0.05; done`)
    const page = await fetch(`https://${box.getHost(8000)}/by/name`)
    assert.equal(await page.text(), '/by/name')
    const line = new WebSocket(`wss://${box.getHost(8000)}/`)
    await new Promise((opened, failed) => Object.assign(line, { onopen: opened, onerror: failed }))
    const heard = new Promise((told, failed) => Object.assign(line, { onmessage: told, onclose: failed }))
    line.send('grün')
    assert.equal((await heard).data, 'grün')
    line.close()
    const closed = await fetch(`https://${box.getHost(8001)}/`)
    assert.equal(closed.status, 502)
    assert((await closed.text()).includes('port is not open'))
  },
  async a_kill_under_a_stream_is_told() {
    const other = await Sandbox.create({ timeoutMs: 60_000 })
    const handle = await other.commands.run('sleep 300', { background: true })
    setTimeout(() => other.kill(), 300)
    const error = await raises(() => handle.wait())
    assert(!(error instanceof e2b.CommandExitError), `${error}`)
    assert.equal(await other.isRunning(), false)
    assert(!(await other.kill()))
  },
  async an_expiry_under_a_stream_is_told() {
    const other = await Sandbox.create({ timeoutMs: 60_000 })
    const handle = await other.commands.run('sleep 300', { background: true })
    await other.setTimeout(1000)
    const error = await raises(() => handle.wait())
    assert(!(error instanceof e2b.CommandExitError), `${error}`)
    assert.equal(await other.isRunning(), false)
  },
}

const box = await Sandbox.create({ timeoutMs: 300_000, requestTimeoutMs: 120_000, metadata: { 'a b': 'x&y' }, envs: { X: '1' } })
const wrong = await tellAll(claims, box)
await box.kill()
process.exit(wrong)
