// Answers are Markdown that arrives in pieces. Blocks that can no longer change are rendered once and then left alone; only the
// last block is looked at again, and of it only the elements that differ are replaced. So a long answer costs what its length
// is, and neither a selection nor an image flickers.
//
// Nothing of an answer is trusted: HTML in it is shown as text, and what the Markdown library makes of the rest passes DOMPurify
// with a short list of elements. Without the libraries (a build made without a network) answers are plain text.
import { libraries } from './markdown_libraries.js';
import { el, icon } from './dom.js';

export const hasMarkdown = libraries !== null;

const TAGS = ['a', 'blockquote', 'br', 'code', 'del', 'em', 'h3', 'h4', 'h5', 'h6', 'hr', 'li', 'ol', 'p', 'pre', 'strong',
  'sub', 'sup', 'table', 'tbody', 'td', 'th', 'thead', 'tr', 'ul'];
const ATTRIBUTES = ['align', 'class', 'href', 'start', 'title'];

const escapeHtml = (text) => text.replace(/[&<>"']/g, (c) => `&#${c.charCodeAt(0)};`);

const renderer = {
  html({ text, block }) { return block ? `<p>${escapeHtml(text.trim())}</p>` : escapeHtml(text); },
  // The page's own headings are 1 and 2.
  heading({ tokens, depth }) {
    const level = Math.min(6, depth + 2);
    return `<h${level}>${this.parser.parseInline(tokens)}</h${level}>`;
  },
  // Pictures of other hosts are not fetched; whoever wants one follows the link.
  image({ href, text }) { return `<a href="${escapeHtml(href)}">${escapeHtml(text || href)}</a>`; },
  checkbox({ checked }) { return checked ? '☑ ' : '☐ '; },
};

const marked = hasMarkdown ? new libraries.Marked({ gfm: true, breaks: true, renderer }) : null;
const purify = libraries?.DOMPurify ?? null;
purify?.addHook('uponSanitizeAttribute', (element, data) => {
  if (data.attrName === 'class') {
    data.keepAttr = element.nodeName === 'CODE' && /^language-[\w.+#-]+$/.test(data.attrValue);
  }
});
purify?.addHook('afterSanitizeAttributes', (element) => {
  if (element.nodeName !== 'A') return;
  if (element.hasAttribute('href')) {
    element.setAttribute('target', '_blank');
    element.setAttribute('rel', 'noopener noreferrer nofollow');
  }
});

// HTML of unknown origin as a fragment that is safe to insert.
export function sanitize(html) {
  return purify.sanitize(html, {
    RETURN_DOM_FRAGMENT: true,
    ALLOWED_TAGS: TAGS,
    ALLOWED_ATTR: ATTRIBUTES,
    ADD_URI_SAFE_ATTR: ['align', 'start'],
    ALLOW_DATA_ATTR: false,
    ALLOW_ARIA_ATTR: false,
    ALLOWED_URI_REGEXP: /^(?:https?:\/\/|mailto:)/i,
  });
}

// Frames around what is wide: code gets its language and a copy button, tables scroll by themselves.
function dress(fragment) {
  for (const pre of fragment.querySelectorAll('pre')) {
    const code = pre.firstElementChild;
    const language = code?.className.replace(/^language-/, '') ?? '';
    const copy = el('button', { type: 'button', class: 'copy-code' }, icon('copy'), 'Copy');
    const frame = el('figure', { class: 'code' }, el('figcaption', {}, el('span', { text: language || 'text' }), copy));
    pre.replaceWith(frame);
    pre.setAttribute('tabindex', '0');
    frame.append(pre);
  }
  for (const table of fragment.querySelectorAll('table')) {
    const frame = el('div', { class: 'table-frame', tabindex: '0', role: 'region', 'aria-label': 'Table' });
    table.replaceWith(frame);
    frame.append(table);
  }
  return fragment;
}

// `links`: definitions in blocks that are settled already.
function lex(text, links) {
  const lexer = new libraries.Lexer(marked.defaults);
  Object.assign(lexer.tokens.links, links);
  return lexer.lex(text);
}

// The nodes of these blocks, without the white space between them.
function nodesOf(tokens) {
  const fragment = dress(sanitize(marked.parser(tokens)));
  return [...fragment.childNodes].filter((node) => node.nodeType !== Node.TEXT_NODE || node.data.trim() !== '');
}

// Makes the children of `parent` from index `from` on equal to `wanted` (a list of nodes) and keeps every node that is right.
export function morph(parent, wanted, from = 0) {
  let i = from;
  for (const node of wanted) {
    const old = parent.childNodes[i++];
    if (!old) parent.append(node);
    else if (!old.isEqualNode(node)) morphNode(parent, old, node);
  }
  while (parent.childNodes.length > i) parent.lastChild.remove();
}

function morphNode(parent, old, node) {
  if (old.nodeType === Node.TEXT_NODE && node.nodeType === Node.TEXT_NODE) {
    // appendData leaves a selection in the earlier part alone.
    if (node.data.startsWith(old.data)) old.appendData(node.data.slice(old.data.length));
    else old.data = node.data;
  } else if (old.nodeName === node.nodeName && old.nodeType === Node.ELEMENT_NODE && old.cloneNode(false).isEqualNode(node.cloneNode(false))) {
    morph(old, [...node.childNodes]);
  } else {
    parent.replaceChild(node, old);
  }
}

const BARE_MARKER = /^[ \t>]*([-*+]|\d{1,9}[.)]?|([-*+]|\d{1,9}[.)])[ \t]+\[[ xX]?\]?|#{1,6}|=+|-{2,}|`{1,2}|~{1,2}|>+)?[ \t]*$/;

// The source of the last block as it would look if the answer ended here: what cannot be told yet (a lone "-", "#" or "1.", the first
// line of a table, half of a fence) waits, and emphasis, code and links that are open are closed. `type`: the block's kind.
export function tidyEnd(text, type) {
  if (type === 'code') return text.replace(/\n[ \t]*(`{1,2}|~{1,2})$/, '\n');
  const lines = text.trimEnd().split('\n');
  const isRow = (line) => /^\s*\|/.test(line ?? '');
  if (type === 'paragraph') {
    if (isRow(lines.at(-2)) && /^[\s|:-]*$/.test(lines.at(-1))) lines.splice(-2);
    else if (isRow(lines.at(-1))) lines.pop();
  }
  if (BARE_MARKER.test(lines.at(-1) ?? '')) lines.pop();
  return closeMarks(lines.join('\n').trimEnd());
}

function closeMarks(text) {
  const last = text.slice(text.lastIndexOf('\n\n') + 1).replace(/(`+)[^`]+\1(?!`)/g, '');
  const ticks = last.match(/`+/)?.[0];
  if (ticks) return last.endsWith(ticks) ? text.slice(0, -ticks.length) : text + ticks;
  let closed = text.replace(/!?\[([^\]\n]*)\]\([^)\n]*$/, '$1');
  const count = (pattern) => (last.match(pattern) ?? []).length;
  const strong = count(/\*\*/g) % 2 === 1;
  // A star that opens, one that closes: neither beside a blank on its inner side.
  const slanted = count(/(?<![*\w\\])\*(?=[^\s*])/g) > count(/(?<=[^\s*])\*(?![*\w])/g);
  const struck = count(/~~/g) % 2 === 1;
  // The first half of a mark that closes.
  closed = closed.replace(strong ? /(?<!\*)\*$/ : /(?<![*\w])\*$/, '').replace(struck ? /(?<!~)~$/ : /(?<![~\w])~$/, '').trimEnd();
  for (const [mark, open] of [['*', slanted], ['~~', struck], ['**', strong]]) {
    if (open) closed = closed.endsWith(mark) && mark !== '*' ? closed.slice(0, -mark.length) : closed + mark;
  }
  return closed;
}

// One answer in an element. update() takes the whole text so far; each text starts with the one before.
export class MarkdownView {
  #settledChars = 0;
  #settledNodes = 0;
  #links = {};
  #text = '';

  constructor(root) {
    this.root = root;
    root.classList.add(hasMarkdown ? 'markdown' : 'plain');
  }

  update(text, { final = false } = {}) {
    const source = text.replace(/\r\n?/g, '\n');
    if (!hasMarkdown) {
      morph(this.root, [document.createTextNode(source)]);
      return;
    }
    if (final || !source.startsWith(this.#text)) {
      this.#settledChars = this.#settledNodes = 0;
      this.#links = {};
    }
    this.#text = source;
    if (final) {
      morph(this.root, nodesOf(lex(source, {})));
      return;
    }
    const tail = source.slice(this.#settledChars);
    const tokens = lex(tail, this.#links);
    let last = tokens.length - 1;
    while (last >= 0 && tokens[last].type === 'space') --last;
    if (last < 0) return;
    // Where the library normalised something, sources do not add up and nothing may be called settled.
    const adds = tokens.reduce((sum, token) => sum + token.raw.length, 0) === tail.length;
    const settled = adds ? tokens.slice(0, last) : [];
    const open = tokens.slice(settled.length, last + 1);
    const settledNodes = settled.length > 0 ? nodesOf(settled) : [];
    morph(this.root, [...settledNodes, ...this.#openNodes(open)], this.#settledNodes);
    this.#settledNodes += settledNodes.length;
    for (const { type, tag, href, title } of settled) if (type === 'def') this.#links[tag] ??= { href, title };
    this.#settledChars += settled.reduce((sum, token) => sum + token.raw.length, 0);
  }

  #openNodes(tokens) {
    const token = tokens.at(-1);
    const tidy = tidyEnd(token.raw, token.type);
    if (tidy === token.raw) return nodesOf(tokens);
    return nodesOf([...tokens.slice(0, -1), ...lex(tidy, this.#links)]);
  }
}
