// A conversation is a tree: editing a question or asking again adds a branch beside the old one, and nothing is lost. Plain
// data and no DOM. Also the forms in which conversations leave and enter the page.
import { newId } from './dom.js';

export const FORMAT = 'qvl-conversation';
const VERSION = 1;

// A node:
//   {id, parent: id or null, role: 'user', text, images: [picture id], created: ms}
//   {id, parent, role: 'assistant', text, reasoning, created, status: 'running'|'done'|'stopped'|'failed', error?: {...},
//    sent: [picture id] in the order of the request, finish?: {reason, details}, grounding?, usage?, qvl?, model?}
export class Conversation {
  constructor(data = {}) {
    this.id = data.id ?? newId();
    this.created = data.created ?? Date.now();
    this.updated = data.updated ?? this.created;
    this.nodes = new Map((data.nodes ?? []).map((node) => [node.id, node]));
    this.chosen = new Map(data.chosen ?? []);  // id of a node ('' for the start) -> id of the child that is shown
  }

  toJSON() {
    return { id: this.id, created: this.created, updated: this.updated, nodes: [...this.nodes.values()],
      chosen: [...this.chosen] };
  }

  get isEmpty() { return this.nodes.size === 0; }

  // The first words of the first question.
  get title() {
    const first = this.path()[0];
    if (!first) return 'New conversation';
    const text = first.text.trim().replace(/\s+/g, ' ');
    if (!text) return first.images.length === 1 ? 'A picture' : `${first.images.length} pictures`;
    return text.length > 60 ? `${text.slice(0, 59).trimEnd()}…` : text;
  }

  children(parent) {
    return [...this.nodes.values()].filter((node) => node.parent === parent);
  }

  // The nodes that are shown, first to last.
  path() {
    const path = [];
    for (let at = null; ;) {
      const children = this.children(at);
      if (children.length === 0) return path;
      const node = children.find((child) => child.id === this.chosen.get(at ?? '')) ?? children.at(-1);
      path.push(node);
      at = node.id;
    }
  }

  // The nodes from the start to `node`, which comes last.
  pathTo(node) {
    const path = [];
    for (let at = node; at; at = this.nodes.get(at.parent)) path.unshift(at);
    return path;
  }

  add(role, parent, fields) {
    const node = { id: newId(), parent: parent?.id ?? null, role, created: Date.now(), ...fields };
    this.nodes.set(node.id, node);
    this.choose(node);
    return node;
  }

  choose(node) {
    this.chosen.set(node.parent ?? '', node.id);
    this.updated = Date.now();
  }

  // All branches beside `node`, itself included.
  siblings(node) { return this.children(node.parent); }

  imageIds() {
    return new Set([...this.nodes.values()].flatMap((node) => node.images ?? []));
  }
}

// What the API gets: everything on the way to `question`, pictures before the text of their message, as the model was trained.
// `urlOf(id)`: a promise of a data URL, or of null where the picture is lost. Returns {messages, sent: [picture id]}.
export async function requestMessages(conversation, question, system, urlOf) {
  const messages = [];
  const sent = [];
  if (system.trim()) messages.push({ role: 'system', content: system });
  for (const node of conversation.pathTo(question)) {
    if (node.role === 'assistant') {
      // An answer that failed before its first word says nothing.
      if (node.text) messages.push({ role: 'assistant', content: node.text });
      continue;
    }
    if (node.images.length === 0) {
      messages.push({ role: 'user', content: node.text });
      continue;
    }
    const content = [];
    for (const id of node.images) {
      const url = await urlOf(id);
      if (url === null) throw new Error('A picture of this conversation is no longer stored in this browser. Edit the message and add it again.');
      content.push({ type: 'image_url', image_url: { url } });
      sent.push(id);
    }
    if (node.text) content.push({ type: 'text', text: node.text });
    messages.push({ role: 'user', content });
  }
  return { messages, sent };
}

// Everything, pictures included. `pictures`: [{id, name, type, data (base64)}].
export function exportJson(conversation, pictures) {
  return JSON.stringify({ format: FORMAT, version: VERSION, exported: new Date().toISOString(),
    conversation: conversation.toJSON(), pictures }, null, 1);
}

// The shown branch as a text to read; pictures by name. `pictureOf(id)`: {name, width, height} or undefined.
export function exportMarkdown(conversation, pictureOf) {
  const parts = [`# ${conversation.title}`];
  for (const node of conversation.path()) {
    if (node.role === 'user') {
      const pictures = node.images.map((id) => {
        const picture = pictureOf(id);
        return picture ? `*Picture: ${picture.name} (${picture.width} × ${picture.height})*` : '*Picture, no longer stored*';
      });
      parts.push(['## Question', ...pictures, node.text].filter(Boolean).join('\n\n'));
    } else {
      const note = { stopped: '*(stopped)*', failed: `*(failed: ${node.error?.message ?? 'unknown'})*` }[node.status];
      parts.push(['## Answer', node.text, note].filter(Boolean).join('\n\n'));
    }
  }
  return `${parts.join('\n\n')}\n`;
}

function fail(what) {
  throw new Error(`This is not a conversation exported from here: ${what}.`);
}

const isText = (value) => typeof value === 'string';
const isObject = (value) => typeof value === 'object' && value !== null && !Array.isArray(value);

// The reverse of exportJson, from a file that may hold anything. Returns {conversation, pictures}; all ids are new, so that
// importing twice makes two conversations. Throws an Error that says what is wrong.
export function importJson(text) {
  let file;
  try {
    file = JSON.parse(text);
  } catch {
    fail('the file is not JSON');
  }
  if (!isObject(file) || file.format !== FORMAT) fail(`"format" is not "${FORMAT}"`);
  if (file.version !== VERSION) fail(`its version is ${JSON.stringify(file.version)}, this page reads ${VERSION}`);
  if (!isObject(file.conversation) || !Array.isArray(file.conversation.nodes)) fail('"conversation" has no nodes');
  if (!Array.isArray(file.pictures)) fail('"pictures" is not a list');

  const pictureIds = new Map();
  const pictures = file.pictures.map((picture, i) => {
    if (!isObject(picture) || !isText(picture.id) || !isText(picture.name) || !isText(picture.type) || !isText(picture.data)) {
      fail(`picture ${i + 1} lacks id, name, type or data`);
    }
    pictureIds.set(picture.id, newId());
    return { id: pictureIds.get(picture.id), name: picture.name.slice(0, 200), data: picture.data };
  });
  const imageIds = (list) => {
    if (!Array.isArray(list) || !list.every((id) => pictureIds.has(id))) fail('a message names a picture that is not in the file');
    return list.map((id) => pictureIds.get(id));
  };

  const nodeIds = new Map();
  const roles = new Map();
  const nodes = file.conversation.nodes.map((node, i) => {
    const where = `message ${i + 1}`;
    if (!isObject(node) || !isText(node.id) || !isText(node.text) || nodeIds.has(node.id)) fail(`${where} lacks an id of its own or a text`);
    // A parent comes first; that also rules out circles.
    if (node.parent !== null && !nodeIds.has(node.parent)) fail(`${where} follows a message that is not in the file`);
    if (node.role !== 'user' && node.role !== 'assistant') fail(`${where} is by neither user nor assistant`);
    if (node.role === 'assistant' && roles.get(node.parent) !== 'user') fail(`${where} answers no question`);
    nodeIds.set(node.id, newId());
    roles.set(node.id, node.role);
    const common = { id: nodeIds.get(node.id), parent: node.parent === null ? null : nodeIds.get(node.parent), role: node.role,
      text: node.text, created: Number.isFinite(node.created) ? node.created : Date.now() };
    if (node.role === 'user') return { ...common, images: imageIds(node.images) };
    return { ...common, reasoning: isText(node.reasoning) ? node.reasoning : '', sent: imageIds(node.sent ?? []),
      status: ['done', 'stopped', 'failed'].includes(node.status) ? node.status : 'stopped',
      error: isObject(node.error) && isText(node.error.message) ? { kind: String(node.error.kind), message: node.error.message } : undefined,
      finish: isObject(node.finish) ? { reason: String(node.finish.reason), details: { reason: String(node.finish.details?.reason) } } : undefined,
      grounding: isObject(node.grounding) ? node.grounding : undefined,
      usage: isObject(node.usage) ? node.usage : undefined, qvl: isObject(node.qvl) ? node.qvl : undefined,
      model: isText(node.model) ? node.model : undefined };
  });
  if (nodes.length === 0) fail('it holds no message');
  if (nodes[0].role !== 'user') fail('it does not start with a question');
  const chosen = (Array.isArray(file.conversation.chosen) ? file.conversation.chosen : [])
    .filter((pair) => Array.isArray(pair) && nodeIds.has(pair[1]) && (pair[0] === '' || nodeIds.has(pair[0])))
    .map(([parent, child]) => [parent === '' ? '' : nodeIds.get(parent), nodeIds.get(child)]);
  return { conversation: new Conversation({ nodes, chosen }), pictures };
}
