// Runs cells in Node.js as its own prompt would: one global scope, await at the top, the last value shown.
'use strict';
(() => { // names of ours must not be in a cell's way
const fs = require('fs');
const modules = require('module');
const net = require('net');
const repl = require('repl');
const stream = require('stream');
const util = require('util');

const [cells, answers] = process.argv.slice(-2).map(Number);
const DISPLAY = Symbol.for('Jupyter.display');
const IMPORT = /^[ \t]*import\s+(?:([\w$]+)\s*,?\s*)?(?:(\{[^}]*\})|\*\s+as\s+([\w$]+))?\s*(?:from\s*)?(['"][^'"\n]+['"])\s*;?[ \t]*$/gm;
const OURS = /^ +at .*\((\[eval\]|node:(vm|repl|domain|internal))|^ +at (\[eval\]|new Promise)/;

function say(message) {
  const data = Buffer.from(JSON.stringify(message) + '\n');
  for (let at = 0; at < data.length; ) at += fs.writeSync(answers, data, at);
}

// What a cell prints must be on its way before what it returns: a pipe is written at once.
for (const out of [process.stdout, process.stderr]) out._handle?.setBlocking?.(true);

const server = repl.start({
  prompt: '',
  input: new stream.PassThrough(),
  output: new stream.Writable({ write: (chunk, encoding, taken) => taken() }),
  useGlobal: true,
  breakEvalOnSigint: true,
  terminal: false,
  preview: false,
});
let interrupt = null; // rejects the wait for a running cell
let thrown = null; // takes what a running cell throws: a prompt gives that to its domain

// A prompt's code takes the signal for itself while it starts, which goes wrong where somebody else listens, too.
function listen() {
  process.removeAllListeners('SIGINT');
  process.on('SIGINT', () => interrupt?.(Object.assign(new Error('the cell was interrupted'), { name: 'KeyboardInterrupt' })));
}
listen();
server._domain?.removeAllListeners('error');
server._domain?.on('error', (error) => {
  // What a timer throws is nobody's answer.
  if (thrown && !error?.domainThrown) thrown(error);
  else console.error(error);
});
process.on('uncaughtException', (error) => console.error(error));
process.on('unhandledRejection', (error) => console.error(error));

// A prompt takes no static imports; these mean the same.
function withoutImports(code) {
  return code.replace(IMPORT, (_, name, names, all, from) => {
    const parts = [];
    const source = `await import(${from})`;
    if (all && name) return `var ${all} = ${source}; var ${name} = ${all}.default;`;
    if (all) return `var ${all} = ${source};`;
    if (name) parts.push(`default: ${name}`);
    if (names) parts.push(names.slice(1, -1).replace(/\s+as\s+/g, ': '));
    return parts.length ? `var { ${parts.join(', ')} } = ${source};` : `${source};`;
  });
}

function evaluate(code) {
  return new Promise((resolve, reject) => {
    thrown = (error) => reject(error?.err ?? error);
    process.removeAllListeners('SIGINT');
    server.eval(code, server.context, 'cell', (error, value) => (error ? reject(error.err ?? error) : resolve(value)));
    listen();
  });
}

function plain(code) {
  return modules.stripTypeScriptTypes(code, { mode: 'transform' });
}

async function run(code, language) {
  const wanted = withoutImports(language === 'typescript' ? plain(code) : code);
  try {
    return await evaluate(wanted);
  } catch (error) {
    // Nothing of it ran. Types may be what was not understood.
    if (error?.name !== 'SyntaxError' || language === 'typescript' || !modules.stripTypeScriptTypes) throw error;
    let stripped;
    try {
      stripped = withoutImports(plain(code));
    } catch {
      throw error;
    }
    if (stripped === wanted) throw error;
    return await evaluate(stripped);
  }
}

async function bundle(value) {
  const own = value?.[DISPLAY];
  if (typeof own === 'function') return await own.call(value);
  return { 'text/plain': util.inspect(value) };
}

globalThis.display = async (value) => say({ kind: 'shown', main: false, data: await bundle(value) });

function failed(error) {
  const known = error instanceof Error || (typeof error?.message === 'string' && typeof error?.name === 'string');
  const name = error?.code === 'ERR_SCRIPT_EXECUTION_INTERRUPTED' ? 'KeyboardInterrupt' : known ? String(error.name) : 'Error';
  const value = known ? String(error.message) : util.inspect(error);
  const trace = String((known && error.stack) || value).split('\n');
  say({ kind: 'error', name, value, traceback: trace.filter((line) => !OURS.test(line)).join('\n') });
}

function setEnvironment(wanted) {
  const before = Object.keys(wanted).map((name) => [name, process.env[name]]);
  Object.assign(process.env, wanted);
  return () => {
    for (const [name, value] of before) {
      if (value === undefined) delete process.env[name];
      else process.env[name] = value;
    }
  };
}

async function cell({ id, code, env, language }) {
  const restore = setEnvironment(env);
  const interrupted = new Promise((_, reject) => (interrupt = reject));
  interrupted.catch(() => {});
  try {
    const value = await Promise.race([run(code, language), interrupted]);
    if (value !== undefined) say({ kind: 'shown', main: true, data: await bundle(value) });
  } catch (error) {
    failed(error);
  }
  interrupt = thrown = null;
  restore();
  say({ kind: 'done', id });
}

let behind = '';
let turn = Promise.resolve();
const asked = new net.Socket({ fd: cells, readable: true, writable: false });
asked.setEncoding('utf8');
asked.on('data', (text) => {
  const lines = (behind + text).split('\n');
  behind = lines.pop();
  for (const line of lines) turn = turn.then(() => cell(JSON.parse(line)));
});
asked.on('end', () => process.exit(0));
})();
