// The server's API as the page uses it: models, and one streamed chat completion. Every failure becomes one ApiError that
// says what happened in words a person can act on. Addresses are relative, so the page also works below a reverse proxy's path.
import { events } from './sse.js';

// kind: what the page offers to do about it.
//   unauthorized  an API key is asked for              busy      later; retryAfterSeconds may say when
//   too_large     smaller pictures                     context   a new conversation, fewer pictures
//   image         another picture                      timeout   the server gave up on time
//   invalid       the request was refused              server    the server failed
//   gone          nobody answers                       lost      the stream broke off
export class ApiError extends Error {
  constructor(kind, message, { status = 0, code = null, retryAfterSeconds = null } = {}) {
    super(message);
    this.name = 'ApiError';
    this.kind = kind;
    this.status = status;
    this.code = code;
    this.retryAfterSeconds = retryAfterSeconds;
  }
}

// Seconds from now that a Retry-After header asks for (RFC 9110, 10.2.3: seconds or a date); null without one.
export function retryAfter(value, now = Date.now()) {
  if (!value) return null;
  if (/^\s*\d+\s*$/.test(value)) return Number(value);
  const date = Date.parse(value);
  return Number.isNaN(date) ? null : Math.max(0, Math.ceil((date - now) / 1000));
}

// An error inside a stream has no status: its code tells.
const KINDS = { invalid_api_key: 'unauthorized', request_too_large: 'too_large', image_too_large: 'too_large', media_too_large: 'too_large',
  rate_limit_exceeded: 'busy', too_many_connections: 'busy', overloaded: 'busy', server_shutting_down: 'busy', cancelled: 'busy',
  request_timeout: 'timeout', context_length_exceeded: 'context', invalid_image_url: 'image', invalid_base64_image: 'image',
  image_url_not_allowed: 'image', failed_to_download_image: 'image', image_parse_error: 'image', invalid_image_format: 'image',
  host_not_allowed: 'invalid', internal_error: 'server' };

function kindOf(status, code) {
  if (Object.hasOwn(KINDS, code ?? '')) return KINDS[code];
  if (status === 401) return 'unauthorized';
  if (status === 413) return 'too_large';
  if (status === 429 || status === 503) return 'busy';
  if (status === 408 || status === 504) return 'timeout';
  return status >= 400 && status < 500 ? 'invalid' : 'server';
}

// `error`: the object of {"error": {...}}.
function errorOf(error, status, headers) {
  const message = typeof error?.message === 'string' && error.message ? error.message : `The server answered with status ${status}, and no reason.`;
  return new ApiError(kindOf(status, error?.code), message, {
    status,
    code: error?.code ?? null,
    retryAfterSeconds: retryAfter(headers?.get('retry-after')),
  });
}

async function responseError(response) {
  let error = null;
  try {
    error = (await response.json()).error;
  } catch {
    // A proxy's page or nothing at all: the status says enough.
  }
  return errorOf(typeof error === 'string' ? { message: error } : error, response.status, response.headers);
}

async function request(path, options, key) {
  const headers = { ...options.headers };
  if (key) headers.Authorization = `Bearer ${key}`;
  let response;
  try {
    response = await fetch(path, { cache: 'no-store', credentials: 'same-origin', redirect: 'error', ...options, headers });
  } catch (error) {
    if (error.name === 'AbortError') throw error;
    throw new ApiError('gone', 'The server does not answer.');
  }
  if (!response.ok) throw await responseError(response);
  return response;
}

// Names of the models that the server has.
export async function listModels(key, signal) {
  const response = await request('v1/models', { signal }, key);
  const { data } = await response.json();
  return Array.isArray(data) ? data.map((model) => String(model.id)) : [];
}

// One streamed completion. Yields, in the order of the stream,
//   {type: 'progress', phase, done, total}             phase 'vision' (patches) or 'prefill' (tokens)
//   {type: 'text', text}, {type: 'reasoning', text}
//   {type: 'finish', reason, details?, grounding?}     details: {reason: 'end_token', 'max_tokens', ...}; boxes and points
//   {type: 'facts', usage?, qvl?, model}               usage as OpenAI defines it; qvl: pictures, timings, engine
// Throws ApiError, or AbortError after signal.abort().
export async function* chat(body, { key, signal }) {
  const response = await request('v1/chat/completions', {
    method: 'POST',
    headers: { 'Content-Type': 'application/json', Accept: 'text/event-stream' },
    body: JSON.stringify({ ...body, stream: true, stream_options: { include_usage: true } }),
    signal,
  }, key);
  let finished = false;
  try {
    for await (const event of events(response.body)) {
      if (event.comment !== undefined) {
        const progress = progressOf(event.comment);
        if (progress) yield progress;
        continue;
      }
      if (event.data === '[DONE]') return;
      const chunk = parse(event.data);
      if (chunk.error) throw errorOf(chunk.error, 0, null);
      for (const item of itemsOf(chunk)) {
        finished ||= item.type === 'finish';
        yield item;
      }
    }
  } catch (error) {
    if (error.name === 'AbortError' || error instanceof ApiError) throw error;
    throw new ApiError('lost', 'The connection to the server broke off.');
  }
  if (!finished) throw new ApiError('lost', 'The server ended the answer without finishing it.');
}

function parse(data) {
  try {
    return JSON.parse(data);
  } catch {
    throw new ApiError('server', 'The server sent a part of an answer that is not JSON.');
  }
}

// Of a comment such as `progress {"phase":"vision","done":1024,"total":3072}`, or null: other comments only keep the stream alive.
export function progressOf(comment) {
  if (!comment.startsWith('progress {')) return null;
  try {
    const { phase, done, total } = JSON.parse(comment.slice('progress '.length));
    return { type: 'progress', phase: String(phase), done: Number(done), total: Number(total) };
  } catch {
    return null;
  }
}

function* itemsOf(chunk) {
  const choice = chunk.choices?.[0];
  const delta = choice?.delta;
  const reasoning = delta?.reasoning_content ?? delta?.reasoning;
  if (reasoning) yield { type: 'reasoning', text: reasoning };
  if (delta?.content) yield { type: 'text', text: delta.content };
  if (choice?.finish_reason) {
    yield { type: 'finish', reason: choice.finish_reason, details: choice.qvl?.finish, grounding: choice.qvl?.grounding };
  }
  if (chunk.usage || chunk.qvl) yield { type: 'facts', usage: chunk.usage ?? null, qvl: chunk.qvl ?? null, model: chunk.model };
}
