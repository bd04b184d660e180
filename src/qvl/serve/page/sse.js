// Server-sent events out of a byte stream (WHATWG HTML, "Server-sent events", section 9.2.6), as far as the API uses them:
// `data` fields of an event are joined by newlines, comments are reported because they show that the server is alive.

// Bytes in, events out: {data: string} or {comment: string}. Line ends may be LF, CRLF or CR and may fall anywhere.
export class EventParser {
  #decoder = new TextDecoder();
  #rest = '';
  #data = [];

  // `bytes`: a Uint8Array. Returns the events that it completed.
  push(bytes) {
    return this.#lines(this.#decoder.decode(bytes, { stream: true }));
  }

  #lines(text) {
    const events = [];
    let buffer = this.#rest + text;
    // A CR at the very end may be half of a CRLF.
    const held = buffer.endsWith('\r');
    if (held) buffer = buffer.slice(0, -1);
    const lines = buffer.split(/\r\n|\n|\r/);
    this.#rest = lines.pop() + (held ? '\r' : '');
    for (const line of lines) this.#line(line, events);
    return events;
  }

  #line(line, events) {
    if (line === '') {
      if (this.#data.length > 0) events.push({ data: this.#data.join('\n') });
      this.#data = [];
    } else if (line.startsWith(':')) {
      events.push({ comment: line.slice(1).trim() });
    } else if (line === 'data' || line.startsWith('data:')) {
      const value = line.slice(5);
      this.#data.push(value.startsWith(' ') ? value.slice(1) : value);
    }
  }
}

// The events of a fetch body, one by one. Ends with the stream; an event without its empty line is dropped, as the
// standard says.
export async function* events(body) {
  const parser = new EventParser();
  const reader = body.getReader();
  try {
    for (;;) {
      const { done, value } = await reader.read();
      if (done) return;
      yield* parser.push(value);
    }
  } finally {
    // Reached by a consumer that stops early too: tells the server that nobody reads on.
    reader.cancel().catch(() => {});
  }
}
