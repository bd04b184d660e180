// One answer being made: asks the API, writes what comes into the node, can be stopped. No DOM, so that what happens to a
// conversation is in one place.
import { ApiError, chat } from './api.js';

// The fields of a request that settings decide; what is null is left to the server.
export function requestOptions(settings) {
  const options = {};
  for (const name of ['model', 'temperature', 'top_p', 'max_tokens', 'seed']) {
    if (settings[name] !== null) options[name] = settings[name];
  }
  if (settings.grounding) options.grounding = 'pixels';
  if (settings.thinking !== 'default') options.chat_template_kwargs = { enable_thinking: settings.thinking === 'on' };
  return options;
}

export class Session {
  #abort = new AbortController();

  // watcher: progress({phase, done, total}), grew().
  constructor(node, watcher) {
    this.node = node;
    this.watcher = watcher;
  }

  stop() { this.#abort.abort(); }

  // Fills the node until its answer ends, one way or another; never throws. `prepare(signal)` gives the request's body (it may
  // take a while, which `signal` cuts short, and may throw an Error that a person understands).
  async run(prepare, key) {
    const { node } = this;
    try {
      const body = await prepare(this.#abort.signal);
      this.#abort.signal.throwIfAborted();
      for await (const event of chat(body, { key, signal: this.#abort.signal })) this.#take(event);
      node.status = 'done';
    } catch (error) {
      if (error.name === 'AbortError') {
        node.status = 'stopped';
        return;
      }
      node.status = 'failed';
      const api = error instanceof ApiError ? error : new ApiError('invalid', error.message);
      node.error = { kind: api.kind, message: api.message, keySent: Boolean(key) };
      if (api.retryAfterSeconds !== null) node.error.retryAt = Date.now() + api.retryAfterSeconds * 1000;
    }
  }

  #take(event) {
    const { node, watcher } = this;
    switch (event.type) {
      case 'progress':
        watcher.progress(event);
        return;
      case 'text':
        node.text += event.text;
        watcher.grew();
        return;
      case 'reasoning':
        node.reasoning += event.text;
        watcher.grew();
        return;
      case 'finish':
        node.finish = { reason: event.reason, details: event.details };
        if (event.grounding) node.grounding = event.grounding;
        return;
      case 'facts':
        if (event.usage) node.usage = event.usage;
        if (event.model) node.model = event.model;
        if (event.qvl) node.qvl = { ...node.qvl, ...event.qvl };
    }
  }
}
