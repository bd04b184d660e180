// Serves the page from the source tree and speaks as much of the API as the page uses, with answers, delays and failures on
// demand. For tests of what a real server does rarely; and to look at the page while changing it:
//
//   node tests/page/mock_server.mjs [PORT]        then ask "boxes", "long", "thinking", "busy", "too large", ...
import { createHash } from 'node:crypto';
import { readdirSync, readFileSync } from 'node:fs';
import { createServer } from 'node:http';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';

const root = join(dirname(fileURLToPath(import.meta.url)), '..', '..');
const TYPES = { html: 'text/html; charset=utf-8', css: 'text/css; charset=utf-8', js: 'text/javascript; charset=utf-8',
  svg: 'image/svg+xml', png: 'image/png' };

// The headers of serve/page.h, so that the tests run under what is shipped.
function pageHeaders() {
  const source = readFileSync(join(root, 'src/qvl/serve/page.h'), 'utf8');
  const policy = [...source.split('kPageSecurityPolicy =')[1].split('\n\n')[0].matchAll(/"([^"]*)"/g)].map((m) => m[1]).join('');
  const headers = { 'Content-Security-Policy': policy };
  for (const [, name, value] of source.matchAll(/\{"([\w-]+)", "([^"]*)"\}/g)) headers[name] = value;
  return headers;
}

// What cmake/embed.cmake builds in: path -> {type, bytes}. `libraries`: folder of marked.js and purify.js, or null.
function pageFiles(libraries) {
  const files = new Map();
  const add = (path, file, bytes = readFileSync(file)) => files.set(path, { type: TYPES[file.split('.').pop()], bytes });
  const folder = join(root, 'src/qvl/serve/page');
  for (const name of readdirSync(folder)) add(name === 'index.html' ? '/' : `/page/${name}`, join(folder, name));
  add('/page/example.png', join(root, 'examples/shapes.png'));
  if (libraries) {
    for (const name of ['marked.js', 'purify.js']) add(`/page/third_party/${name}`, join(libraries, name));
  } else {
    add('/page/markdown_libraries.js', 'none.js', Buffer.from('export const libraries = null;\n'));
  }
  return files;
}

// Steps of a streamed reply:
//   'text'                    a piece of the answer            {reasoning: 'text'}   a piece of the thoughts
//   {comment: 'working'}      a comment                        {progress: {...}}     how far the prompt is read
//   {wait: ms or promise}     a pause                          {raw: 'bytes'}        anything
//   {finish: {...}}           the end of the choice: reason, details, grounding
//   {facts: {usage, qvl}}     the usage chunk                  {error: {...}}        an error inside the stream
//   {cut: true}               the connection breaks            {done: true}          [DONE]
export function answer(text, { pieces = 6, wait = 0, reasoning, reason = 'stop', details = { reason: 'end_token' }, grounding, images = [], usage, timings } = {}) {
  const size = Math.max(1, Math.ceil(text.length / pieces));
  const parts = [];
  for (let i = 0; i < text.length; i += size) parts.push(text.slice(i, i + size), ...(wait ? [{ wait }] : []));
  return { steps: [
    ...(reasoning ? [{ reasoning }] : []), ...parts, { finish: { reason, details, grounding } },
    { facts: {
      usage: usage ?? { prompt_tokens: 161, completion_tokens: 24, total_tokens: 185, prompt_tokens_details: { cached_tokens: 96, image_tokens: 140 },
        completion_tokens_details: { reasoning_tokens: 0 } },
      qvl: { images, timings: timings ?? { load_ms: 0, preprocess_ms: 2.1, vision_ms: 812.4, vision_patches_per_s: 139.2, prefill_ms: 420, prefill_tokens_per_s: 31.3,
        ttft_ms: 1284.5, decode_tokens_per_s: 24.13 }, engine: { vision: 'native', text: 'native', isa: 'avx2', threads: 2 } } } },
    { done: true },
  ] };
}

export function failure(status, code, message, headers = {}) {
  return { status, headers, body: { error: { message, type: 'invalid_request_error', param: null, code } } };
}

export class MockServer {
  #server;
  #sockets = new Set();

  constructor({ libraries = join(root, 'build/third_party/page') } = {}) {
    this.libraries = libraries;
    this.reset();
  }

  // Forgets what was asked; `replies` are taken in their order, then `fallback` answers.
  reset() {
    this.requests = [];
    this.replies = [];
    this.preparations = [];  // requests that only have pictures read
    this.preparation = () => answer('It');
    this.fallback = () => answer('A red circle, a green circle, a blue square and a yellow star.');
    this.models = { status: 200, headers: {}, body: { object: 'list', data: [{ id: 'small', object: 'model', created: 0, owned_by: 'qvl' }] } };
    this.files = pageFiles(this.libraries);
  }

  // As a build without a network has it.
  withoutLibraries() { this.files = pageFiles(null); }

  async start(port = 0) {
    this.#server = createServer((request, response) => this.#handle(request, response));
    this.#server.on('connection', (socket) => {
      this.#sockets.add(socket);
      socket.on('close', () => this.#sockets.delete(socket));
    });
    await new Promise((resolve, reject) => {
      this.#server.once('error', reject);
      this.#server.listen(port, '127.0.0.1', resolve);
    });
    this.port = this.#server.address().port;
    this.url = `http://127.0.0.1:${this.port}`;
    return this.url;
  }

  // Like a process that ends: connections break.
  async stop() {
    for (const socket of this.#sockets) socket.destroy();
    await new Promise((resolve) => this.#server.close(resolve));
  }

  async #handle(request, response) {
    const path = new URL(request.url, 'http://localhost').pathname;
    if (request.method === 'GET' && path === '/v1/models') {
      const key = this.models.key;
      send(response, key && request.headers.authorization !== `Bearer ${key}` ? failure(401, 'invalid_api_key', 'An API key is needed.') : this.models);
    } else if (request.method === 'GET' && this.files.has(path)) {
      const { type, bytes } = this.files.get(path);
      const etag = `"${createHash('sha256').update(bytes).digest('hex').slice(0, 20)}"`;
      response.writeHead(200, { ...pageHeaders(), 'Content-Type': type, 'Cache-Control': 'no-cache', ETag: etag });
      response.end(bytes);
    } else if (request.method === 'POST' && path === '/v1/chat/completions') {
      await this.#chat(request, response);
    } else {
      send(response, failure(404, 'unknown_url', `There is no ${path} here.`));
    }
  }

  async #chat(request, response) {
    const chunks = [];
    for await (const chunk of request) chunks.push(chunk);
    const body = JSON.parse(Buffer.concat(chunks).toString());
    const entry = { body, key: request.headers.authorization?.replace('Bearer ', ''), gone: false };
    const prepares = body.priority === 1;
    (prepares ? this.preparations : this.requests).push(entry);
    entry.closed = new Promise((resolve) => response.on('close', () => {
      entry.gone = !response.writableFinished;
      resolve();
    }));
    const reply = prepares ? this.preparation(body) : this.replies.shift() ?? this.fallback(body);
    if (!reply.steps) {
      send(response, reply);
      return;
    }
    response.writeHead(200, { 'Content-Type': 'text/event-stream', 'Cache-Control': 'no-store' });
    await stream(response, reply.steps, body.model);
  }
}

function send(response, { status, headers = {}, body }) {
  if (status === 0) {
    response.destroy();
    return;
  }
  const isText = typeof body === 'string';
  response.writeHead(status, { 'Content-Type': isText ? 'text/html' : 'application/json', ...headers });
  response.end(isText ? body : JSON.stringify(body));
}

async function stream(response, steps, model) {
  const head = { id: 'chatcmpl-mock', object: 'chat.completion.chunk', created: 0, model };
  const event = (object) => response.write(`data: ${JSON.stringify({ ...head, ...object })}\n\n`);
  const delta = (fields) => event({ choices: [{ index: 0, delta: fields, finish_reason: null }], usage: null });
  delta({ role: 'assistant', content: '' });
  for (const step of steps) {
    if (response.destroyed) return;
    if (typeof step === 'string') delta({ content: step });
    else if (step.reasoning !== undefined) delta({ reasoning_content: step.reasoning });
    else if (step.comment !== undefined) response.write(`: ${step.comment}\n\n`);
    else if (step.progress) response.write(`: progress ${JSON.stringify(step.progress)}\n\n`);
    else if (step.wait !== undefined) await (typeof step.wait === 'number' ? new Promise((resolve) => setTimeout(resolve, step.wait)) : step.wait);
    else if (step.raw !== undefined) response.write(step.raw);
    else if (step.finish) {
      const { reason, details, grounding } = step.finish;
      event({ choices: [{ index: 0, delta: {}, finish_reason: reason, qvl: { finish: details, ...(grounding ? { grounding } : {}) } }], usage: null });
    } else if (step.facts) event({ choices: [], ...step.facts });
    else if (step.error) response.write(`data: ${JSON.stringify({ error: step.error })}\n\n`);
    else if (step.cut) {
      response.destroy();
      return;
    } else if (step.done) response.write('data: [DONE]\n\n');
  }
  response.end();
}

// ---- To look at ------------------------------------------------------------------------------------------------------------

export const SHAPES = { images: [{ width: 192, height: 160, resized_width: 192, resized_height: 160, grid_thw: [1, 10, 12], patches: 120, tokens: 30, encode_ms: 38.2, cached: false, detail: 'auto' }],
  grounding: { items: [
    { kind: 'box', label: 'red circle', relative: [110, 150, 340, 430], pixels: [21.1, 24, 65.3, 68.8], image: 0, problems: [] },
    { kind: 'box', label: 'blue square', relative: [355, 590, 570, 850], pixels: [68.2, 94.4, 109.4, 136], image: 0, problems: [] },
    { kind: 'point', label: 'yellow star', relative: [812, 712], pixels: [155.9, 113.9], image: 0, problems: [] },
  ], unread: 0 } };

const LONG = `# Shapes

There are **four** shapes, and *two* of them are \`circles\`:

1. a red circle
2. a green circle, further up
   - its edge touches nothing
3. a blue square

> Left and right are as you see them.

| shape | colour | pixels |
|:--|:--|--:|
| circle | red | 1,452 |
| square | blue | 1,681 |

\`\`\`python
def count(shapes):
    return sum(shape.kind == "circle" for shape in shapes)
\`\`\`

More about it is [in the manual](https://example.com/manual).
`;

function demonstration(body) {
  const content = body.messages.at(-1).content;
  const text = (typeof content === 'string' ? content : content.find((part) => part.type === 'text')?.text ?? '').toLowerCase();
  const pace = { pieces: 60, wait: 30 };
  if (/busy/.test(text)) return failure(429, 'rate_limit_exceeded', '64 requests are waiting already.', { 'Retry-After': '5' });
  if (/large/.test(text)) return failure(413, 'request_too_large', 'The request has more than 64 MB.');
  if (/context/.test(text)) return failure(400, 'context_length_exceeded', 'The prompt has 41,230 tokens, the context holds 32,768.');
  if (/fail/.test(text)) return failure(500, 'internal_error', 'Something went wrong in the server.');
  if (/think/.test(text)) return answer('There are two circles.', { ...pace, reasoning: 'The picture has four shapes. Two of them are round, so there are two circles.' });
  if (/long|table|code/.test(text)) return answer(LONG, pace);
  if (/box|where/.test(text)) return answer('```json\n[{"bbox_2d": [110, 150, 340, 430], "label": "red circle"}, …]\n```', { ...pace, ...SHAPES });
  const reply = answer('From left to right: a red circle, a blue square, a green circle, a yellow star.', { ...pace, images: SHAPES.images });
  return { steps: [...[0, 0.25, 0.5, 0.75].flatMap((done) => [{ progress: { phase: 'vision', done: done * 120, total: 120 } }, { wait: 400 }]), ...reply.steps] };
}

if (process.argv[1] === fileURLToPath(import.meta.url)) {
  const server = new MockServer();
  server.fallback = demonstration;
  console.log(await server.start(Number(process.argv[2] ?? 8081)));
}
