// Elements, icons and the clipboard: the few helpers every part of the page builds its DOM with. Text only ever enters as
// text nodes; nothing here or elsewhere in the page parses HTML but markdown.js.

const SVG = 'http://www.w3.org/2000/svg';

// el('button', {class: 'quiet', onclick: f, 'aria-label': 'Copy', disabled: true}, child, 'text', null)
// Keys: `class`, `text`, on<event> functions, properties of `dataset`; everything else is an attribute. true sets an
// attribute without a value; false, null and undefined leave it out. Null children are skipped.
export function el(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  set(element, attributes);
  element.append(...children.flat().filter((child) => child !== null && child !== undefined));
  return element;
}

export function svg(tag, attributes = {}, ...children) {
  const element = document.createElementNS(SVG, tag);
  set(element, attributes);
  element.append(...children);
  return element;
}

function set(element, attributes) {
  for (const [key, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    if (key === 'text') element.textContent = value;
    else if (key === 'dataset') Object.assign(element.dataset, value);
    else if (key.startsWith('on')) element.addEventListener(key.slice(2), value);
    else element.setAttribute(key, value === true ? '' : value);
  }
}

// The symbols stand in index.html.
export function icon(name) {
  return svg('svg', { class: 'icon', 'aria-hidden': 'true', focusable: 'false' }, svg('use', { href: `#i-${name}` }));
}

// A button that shows an icon and says `label` to screen readers and as its tooltip.
export function iconButton(name, label, onclick, attributes = {}) {
  return el('button', { type: 'button', class: 'icon-button', 'aria-label': label, title: label, onclick, ...attributes },
    icon(name));
}

export function byId(id) {
  const element = document.getElementById(id);
  if (!element) throw new Error(`no element #${id}`);
  return element;
}

// 128 random bits. crypto.randomUUID is missing where the page is opened over plain http from another machine.
export function newId() {
  return Array.from(crypto.getRandomValues(new Uint8Array(16)), (byte) => byte.toString(16).padStart(2, '0')).join('');
}

// The asynchronous clipboard exists in secure contexts only (https, localhost); elsewhere a selection is copied.
export async function copyText(text) {
  if (navigator.clipboard?.writeText) {
    await navigator.clipboard.writeText(text);
    return;
  }
  const area = el('textarea', { class: 'visually-hidden', readonly: true, 'aria-hidden': 'true' });
  area.value = text;
  const focused = document.activeElement;
  document.body.append(area);
  area.select();
  const copied = document.execCommand('copy');
  area.remove();
  focused?.focus({ preventScroll: true });
  if (!copied) throw new Error('the browser did not allow copying');
}

// Hands `blob` to the browser's downloads under `name`.
export function download(blob, name) {
  const url = URL.createObjectURL(blob);
  const link = el('a', { href: url, download: name });
  document.body.append(link);
  link.click();
  link.remove();
  setTimeout(() => URL.revokeObjectURL(url), 60_000);
}

// A file name of letters, digits, dots and dashes from any title.
export function fileName(title, extension) {
  const stem = title.normalize('NFC').replace(/[^\p{L}\p{N}._-]+/gu, '-').replace(/^[-.]+|[-.]+$/g, '').slice(0, 60);
  return `${stem || 'qvl'}.${extension}`;
}
