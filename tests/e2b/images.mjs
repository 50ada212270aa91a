// What E2B's JavaScript client must be able to make of an image: `node images.mjs PLACE`, with its release in
// PLACE/node_modules. No test file: `test_images.py` runs it and reads the lines it prints.
import assert from 'node:assert/strict'
import { createRequire } from 'node:module'
import { tellAll } from '../claims/claims.mjs'

const require = createRequire(`${process.argv[2]}/`)
const { Sandbox, Template, BuildError } = require('e2b')
const { IMAGE_SMALL, IMAGE_USER: username, IMAGE_PASSWORD: password } = process.env

const claims = {
  async an_image_is_built_upon() {
    const lines = []
    const template = Template().fromImage(IMAGE_SMALL, { username, password }).runCmd('echo $GREETING > ~/said')
    await Template.build(template, 'of-js', { onBuildLogs: (entry) => lines.push(entry.message) })
    assert(lines.includes(`FROM ${IMAGE_SMALL}`), lines.join('\n'))
    const box = await Sandbox.create('of-js', { timeoutMs: 60_000 })
    assert.equal((await box.commands.run('cat said; id -un')).stdout, 'hi=there\nuser\n')
    await box.kill()
  },
  async a_cloud_s_own_credentials_are_refused_with_what_to_do() {
    const aws = { accessKeyId: 'a', secretAccessKey: 'very secret', region: 'r' }
    const asked = Template.build(Template().fromAWSRegistry('1.dkr.ecr.r.amazonaws.com/x:1', aws), 'of-aws', {})
    await assert.rejects(asked, (error) => /get-login-password/.test(error.message) && !/very secret/.test(error.message))
  },
}

process.exit(await tellAll(claims))
