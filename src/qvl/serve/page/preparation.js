// Pictures are read while their question is typed: a request with the pictures alone makes the server encode them and keep what
// it computed, so that the question finds it. Its answer, one token, is thrown away, and other people's questions go first.
import { chat } from './api.js';

// Pictures that are added, moved or removed together are read once.
const PAUSE_MS = 300;

// A request on its way.
class Reading {
  #abort = new AbortController();
  #progress = null;
  #watch = null;

  constructor(prepare, key) { this.ended = this.#run(prepare, key); }

  async #run(prepare, key) {
    try {
      const body = { ...await prepare(), max_tokens: 1, priority: 1 };
      for await (const event of chat(body, { key, signal: this.#abort.signal })) {
        if (event.type !== 'progress') continue;
        this.#progress = event;
        this.#watch?.(event);
      }
    } catch {
      // Whatever it is, the question meets it too, and there it is said.
    }
  }

  stop() { this.#abort.abort(); }

  // Until the server has read what it was asked to; how far it has come goes to `watch`.
  async finished(signal, watch) {
    this.#watch = watch;
    if (this.#progress) watch(this.#progress);
    const stop = () => this.stop();
    if (signal.aborted) stop();
    signal.addEventListener('abort', stop);
    await this.ended;
    signal.removeEventListener('abort', stop);
  }
}

export class Preparation {
  #name = null;
  #timer = null;
  #reading = null;

  // `name` says what is to be read: the same again changes nothing, another one takes its place. `prepare()`: a promise of the
  // body of a request that ends with the pictures.
  begin(name, prepare, key) {
    if (name === this.#name) return;
    this.drop();
    this.#name = name;
    this.#timer = setTimeout(() => { this.#reading = new Reading(prepare, key); }, PAUSE_MS);
  }

  drop() {
    clearTimeout(this.#timer);
    this.#reading?.stop();
    this.#name = this.#reading = null;
  }

  // What is being read under that name, for the question to wait for (Reading.finished), or null. Anything else is dropped.
  take(name) {
    const reading = name === this.#name ? this.#reading : null;
    if (reading) this.#reading = null;
    this.drop();
    return reading;
  }
}
