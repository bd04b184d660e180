// What the server says about an answer, in words: tokens, speed, what was done to each picture. Values may come from an
// imported file, so only numbers are shown as numbers.
import { el } from './dom.js';

const number = new Intl.NumberFormat('en');
const precise = new Intl.NumberFormat('en', { maximumSignificantDigits: 3 });

const has = (value) => typeof value === 'number' && Number.isFinite(value);

export function formatCount(value, one, many = `${one}s`) {
  return `${number.format(value)} ${value === 1 ? one : many}`;
}

export function formatMs(ms) {
  if (ms < 1000) return `${precise.format(Math.round(ms * 10) / 10)} ms`;
  if (ms < 60_000) return `${precise.format(ms / 1000)} s`;
  return `${Math.floor(ms / 60_000)} min ${Math.round((ms % 60_000) / 1000)} s`;
}

export function formatRate(rate, unit) { return `${precise.format(rate)} ${unit}/s`; }

// Why an answer is not complete, or '' where it is.
export function endingNote(finish) {
  if (!finish || finish.reason !== 'length') return '';
  return { repetition: 'The model was repeating itself, so the server ended the answer here.',
    context: 'The conversation fills all that the model can read at once. Start a new one, or ask with fewer pictures.',
    timeout: 'The server’s time limit for one answer was reached.' }[finish.details?.reason] ??
    'The answer reached its limit of tokens. “Answer length” in the settings allows more.';
}

// "31 tokens · 24.1 tokens/s · first after 0.8 s"
export function summary(node) {
  const { usage, qvl } = node;
  const timings = qvl?.timings ?? {};
  const parts = [];
  if (has(usage?.completion_tokens)) parts.push(formatCount(usage.completion_tokens, 'token'));
  if (has(timings.decode_tokens_per_s) && timings.decode_tokens_per_s > 0) parts.push(formatRate(timings.decode_tokens_per_s, 'tokens'));
  if (has(timings.ttft_ms)) parts.push(`first after ${formatMs(timings.ttft_ms)}`);
  return parts.join(' · ');
}

function rows(list) {
  return el('dl', {}, list.filter(([, value]) => value).map(([term, value]) => el('div', {}, el('dt', { text: term }), el('dd', { text: value }))));
}

function promptRows({ usage, qvl, model }) {
  const timings = qvl?.timings ?? {};
  const prompt = usage?.prompt_tokens;
  const { cached_tokens: cached, image_tokens: image } = usage?.prompt_tokens_details ?? {};
  const reasoning = usage?.completion_tokens_details?.reasoning_tokens;
  const engine = qvl?.engine;
  return rows([
    ['Prompt', has(prompt) ? formatCount(prompt, 'token') : ''],
    ['of these from memory', has(cached) ? formatCount(cached, 'token') : ''],
    ['of these pictures', has(image) && image > 0 ? formatCount(image, 'token') : ''],
    ['Answer', has(usage?.completion_tokens) ? formatCount(usage.completion_tokens, 'token') : ''],
    ['of these thinking', has(reasoning) && reasoning > 0 ? formatCount(reasoning, 'token') : ''],
    ['First token after', has(timings.ttft_ms) ? formatMs(timings.ttft_ms) : ''],
    ['Pictures encoded in', has(timings.vision_ms) && timings.vision_ms > 0 ? formatMs(timings.vision_ms) : ''],
    ['Prompt read at', has(timings.prefill_tokens_per_s) && timings.prefill_tokens_per_s > 0 ? formatRate(timings.prefill_tokens_per_s, 'tokens') : ''],
    ['Answer written at', has(timings.decode_tokens_per_s) && timings.decode_tokens_per_s > 0 ? formatRate(timings.decode_tokens_per_s, 'tokens') : ''],
    ['Model', typeof model === 'string' ? model : ''],
    ['Computed with', engine && has(engine.threads) ? `${engine.isa}, ${formatCount(engine.threads, 'thread')}` : ''],
  ]);
}

function pictureRow(image, name) {
  const size = has(image.width) && has(image.height) ? `${number.format(image.width)} × ${number.format(image.height)}` : '?';
  const resized = image.resized_width !== image.width || image.resized_height !== image.height;
  const used = has(image.resized_width) && has(image.resized_height) ?
    (resized ? `${number.format(image.resized_width)} × ${number.format(image.resized_height)}` : 'as it is') : '?';
  return el('tr', {},
    el('th', { scope: 'row', text: name }),
    el('td', { text: size }),
    el('td', { text: used }),
    el('td', { text: has(image.tokens) ? number.format(image.tokens) : '?' }),
    el('td', { text: image.cached === true ? 'from memory' : has(image.encode_ms) ? formatMs(image.encode_ms) : '?' }));
}

function pictureTable(images, names) {
  const head = ['Picture', 'Original', 'Read as', 'Tokens', 'Encoded'];
  return el('div', { class: 'table-frame', tabindex: '0', role: 'region', 'aria-label': 'Pictures' },
    el('table', {},
      el('thead', {}, el('tr', {}, head.map((text) => el('th', { scope: 'col', text })))),
      el('tbody', {}, images.map((image, i) => pictureRow(image, names[i] ?? `Picture ${i + 1}`)))));
}

// The facts of an answer behind their summary, or null where the server said nothing. `names`: of the pictures, in the order sent.
export function factsElement(node, names) {
  const line = summary(node);
  if (!line && !node.qvl) return null;
  const images = Array.isArray(node.qvl?.images) ? node.qvl.images.filter((image) => typeof image === 'object' && image !== null) : [];
  return el('details', { class: 'facts' },
    el('summary', {}, el('span', { text: line || 'Facts' })),
    promptRows(node),
    images.length > 0 ? pictureTable(images, names) : null);
}
