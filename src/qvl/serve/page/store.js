// What this browser keeps: settings in localStorage, conversations and pictures in IndexedDB, the API key in the tab alone
// unless the person asks to keep it. Where storage is forbidden (private windows, full disks) everything lives in memory and
// `persistent` is false.
const DATABASE = 'qvl';
const SETTINGS = 'qvl.settings';
const KEY = 'qvl.key';
const CURRENT = 'qvl.current';

// null means: not sent, the server's default applies.
export const DEFAULT_SETTINGS = Object.freeze({
  theme: 'system',       // 'system' | 'light' | 'dark'
  model: null,
  system: '',
  temperature: null,
  top_p: null,
  max_tokens: null,
  seed: null,
  thinking: 'default',   // 'default' | 'on' | 'off'
  grounding: true,
  prepare: true,         // pictures are read while their question is typed
});

const NUMBERS = { temperature: [0, 2, false], top_p: [0, 1, false], max_tokens: [1, 1e6, true], seed: [0, 2 ** 31 - 1, true] };

// Keeps what is a setting with a legal value, and defaults for the rest.
export function checkedSettings(stored) {
  const settings = { ...DEFAULT_SETTINGS };
  if (typeof stored !== 'object' || stored === null) return settings;
  if (['light', 'dark'].includes(stored.theme)) settings.theme = stored.theme;
  if (['on', 'off'].includes(stored.thinking)) settings.thinking = stored.thinking;
  if (typeof stored.system === 'string') settings.system = stored.system;
  if (typeof stored.model === 'string') settings.model = stored.model;
  for (const name of ['grounding', 'prepare']) {
    if (typeof stored[name] === 'boolean') settings[name] = stored[name];
  }
  for (const [name, [low, high, whole]] of Object.entries(NUMBERS)) {
    const value = stored[name];
    if (Number.isFinite(value) && value >= low && value <= high && (!whole || Number.isInteger(value))) settings[name] = value;
  }
  return settings;
}

function area(kind) {
  try {
    const storage = window[kind];
    storage.setItem('qvl.probe', '1');
    storage.removeItem('qvl.probe');
    return storage;
  } catch {
    const values = new Map();
    return { getItem: (name) => values.get(name) ?? null, setItem: (name, value) => values.set(name, value),
      removeItem: (name) => values.delete(name), inMemory: true };
  }
}

const local = area('localStorage');
const session = area('sessionStorage');

export function loadSettings() {
  try {
    return checkedSettings(JSON.parse(local.getItem(SETTINGS)));
  } catch {
    return checkedSettings(null);
  }
}

export function saveSettings(settings) { local.setItem(SETTINGS, JSON.stringify(settings)); }

export function loadKey() { return session.getItem(KEY) ?? local.getItem(KEY) ?? ''; }
export function keyIsKept() { return local.getItem(KEY) !== null; }

export function saveKey(key, keep) {
  session.removeItem(KEY);
  local.removeItem(KEY);
  if (key) (keep ? local : session).setItem(KEY, key);
}

export function currentConversation() { return local.getItem(CURRENT); }

export function setCurrentConversation(id) {
  if (id) local.setItem(CURRENT, id);
  else local.removeItem(CURRENT);
}

function promised(request) {
  return new Promise((resolve, reject) => {
    request.onsuccess = () => resolve(request.result);
    request.onerror = () => reject(request.error);
  });
}

function completed(transaction) {
  return new Promise((resolve, reject) => {
    transaction.oncomplete = () => resolve();
    transaction.onabort = () => reject(transaction.error ?? new Error('the browser aborted the transaction'));
  });
}

// Conversations are plain data (Conversation.toJSON). Pictures are {id, conversation, blob, name, type, width, height, note}.
export async function openStore() {
  try {
    const request = indexedDB.open(DATABASE, 1);
    request.onupgradeneeded = () => {
      request.result.createObjectStore('conversations', { keyPath: 'id' });
      request.result.createObjectStore('pictures', { keyPath: 'id' }).createIndex('conversation', 'conversation');
    };
    return new DatabaseStore(await promised(request));
  } catch {
    return new MemoryStore();
  }
}

function summaries(conversations) {
  return conversations.map(({ id, title, updated, questions }) => ({ id, title, updated, questions }))
    .sort((a, b) => b.updated - a.updated);
}

class DatabaseStore {
  persistent = true;
  #database;

  constructor(database) {
    this.#database = database;
    // Another tab forgets everything: let it.
    database.onversionchange = () => database.close();
  }

  #store(name, mode) { return this.#database.transaction(name, mode).objectStore(name); }

  async list() { return summaries(await promised(this.#store('conversations', 'readonly').getAll())); }
  async load(id) { return (await promised(this.#store('conversations', 'readonly').get(id)))?.data ?? null; }

  async save(conversation) {
    const store = this.#store('conversations', 'readwrite');
    store.put(record(conversation));
    await completed(store.transaction);
  }

  async pictures(conversation) {
    return promised(this.#store('pictures', 'readonly').index('conversation').getAll(conversation));
  }

  async savePicture(picture) {
    const store = this.#store('pictures', 'readwrite');
    store.put(picture);
    await completed(store.transaction);
  }

  async remove(id) {
    const transaction = this.#database.transaction(['conversations', 'pictures'], 'readwrite');
    transaction.objectStore('conversations').delete(id);
    const pictures = transaction.objectStore('pictures');
    pictures.index('conversation').getAllKeys(id).onsuccess = (event) => {
      for (const key of event.target.result) pictures.delete(key);
    };
    await completed(transaction);
  }

  async forget() {
    const transaction = this.#database.transaction(['conversations', 'pictures'], 'readwrite');
    transaction.objectStore('conversations').clear();
    transaction.objectStore('pictures').clear();
    await completed(transaction);
  }
}

class MemoryStore {
  persistent = false;
  #conversations = new Map();
  #pictures = new Map();

  async list() { return summaries([...this.#conversations.values()]); }
  async load(id) { return structuredClone(this.#conversations.get(id)?.data ?? null); }
  async save(conversation) { this.#conversations.set(conversation.id, structuredClone(record(conversation))); }
  async pictures(conversation) { return [...this.#pictures.values()].filter((picture) => picture.conversation === conversation); }
  async savePicture(picture) { this.#pictures.set(picture.id, picture); }

  async remove(id) {
    this.#conversations.delete(id);
    for (const picture of await this.pictures(id)) this.#pictures.delete(picture.id);
  }

  async forget() {
    this.#conversations.clear();
    this.#pictures.clear();
  }
}

function record(conversation) {
  return { id: conversation.id, title: conversation.title, updated: conversation.updated,
    questions: conversation.path().filter((node) => node.role === 'user').length, data: conversation.toJSON() };
}

// Settings, key and the conversation that was open.
export function forgetLocal() {
  for (const name of [SETTINGS, KEY, CURRENT]) local.removeItem(name);
  session.removeItem(KEY);
}
