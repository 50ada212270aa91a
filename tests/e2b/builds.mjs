// What E2B's JavaScript client must be able to build: `node builds.mjs PLACE`, with its release in PLACE/node_modules.
// No test file: `test_builds.py` runs it and reads the lines it prints.
import assert from 'node:assert/strict'
import { mkdtempSync, mkdirSync, writeFileSync } from 'node:fs'
import { createRequire } from 'node:module'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { tellAll } from '../claims/claims.mjs'

const require = createRequire(`${process.argv[2]}/`)
const { Sandbox, Template, BuildError } = require('e2b')

const place = mkdtempSync(join(tmpdir(), 'builds-'))
mkdirSync(join(place, 'site'))
writeFileSync(join(place, 'site', 'index.html'), 'hello')
writeFileSync(join(place, 'main.js'), 'console.log(1)\n')
const NAME = 'from-js'

async function build(template, name, options = {}) {
  const lines = []
  await Template.build(template, name, { onBuildLogs: (entry) => lines.push(entry.message), ...options })
  return lines
}

const claims = {
  async a_build_does_each_step_and_streams_what_they_say() {
    const template = Template({ fileContextPath: place })
      .fromBaseImage()
      .setEnvs({ GREETING: 'hello' })
      .copy('main.js', '/home/user/')
      .copy('site', '/srv/site')
      .runCmd('echo told; echo $GREETING > ~/said')
      .setStartCmd('python3 -m http.server --directory /srv/site 8000', 'curl -sf localhost:8000/')
    const lines = await build(template, NAME)
    assert(lines.includes('told'), lines.join('\n'))
    const again = await build(template, NAME, { tags: ['v1'] })
    assert(!again.includes('told'), again.join('\n'))
    const box = await Sandbox.create(`${NAME}:v1`, { timeoutMs: 60_000 })
    const seen = await box.commands.run('cat said main.js; curl -s localhost:8000/index.html')
    assert.equal(seen.stdout, 'hello\nconsole.log(1)\nhello')
    await box.kill()
  },
  async a_failing_step_is_told_with_what_it_said() {
    const failing = build(Template().fromBaseImage().runCmd('echo the reason >&2; exit 3'), `${NAME}-failing`)
    await assert.rejects(failing, (error) => error instanceof BuildError && /the reason/.test(error.message))
  },
  async names_and_tags_are_known() {
    assert(await Template.exists(NAME))
    assert(!(await Template.exists('never-built')))
    await Template.assignTags(`${NAME}:v1`, ['v2'])
    const tags = await Template.getTags(NAME)
    assert.deepEqual(tags.map((each) => each.tag).sort(), ['default', 'v1', 'v2'])
    await Template.removeTags(NAME, ['v1'])
  },
}

process.exit(await tellAll(claims))
