// The page: a conversation, the composer below it, and everything that connects them with server and storage.
import { ApiError, listModels } from './api.js';
import { Composer } from './composer.js';
import { Conversation, requestMessages } from './conversation.js';
import { askKey, confirmed, ConversationsDialog, initDialogs, isDialogOpen, SettingsDialog } from './dialogs.js';
import { byId, copyText, el, iconButton } from './dom.js';
import { initDrops, initKeys, initPastes } from './input.js';
import { hasMarkdown } from './markdown.js';
import { confirmCopied, Thread } from './messages.js';
import { dataUrl, releasePicture } from './pictures.js';
import { Preparation } from './preparation.js';
import { requestOptions, Session } from './session.js';
import { currentConversation, forgetLocal, loadKey, loadSettings, openStore, saveSettings, setCurrentConversation } from './store.js';
import { importFile, saveAsJson, saveAsMarkdown } from './transfer.js';

let settings = loadSettings();
let models = [];
let conversation = new Conversation();
let session = null;
let store = null;
let following = true;
const pictures = new Map();  // id -> picture of the conversation that is shown
const tabs = 'BroadcastChannel' in window ? new BroadcastChannel('qvl') : null;

// ---- What is said ----------------------------------------------------------------------------------------------------------

function notify(text, { failed = false } = {}) {
  const notice = el('div', { class: failed ? 'notice failed' : 'notice' }, el('span', { text }),
    iconButton('close', 'Dismiss', () => notice.remove()));
  byId('notices').append(notice);
  setTimeout(() => notice.remove(), failed ? 15_000 : 5_000);
}

const notifyError = (text) => notify(text, { failed: true });

// Polite: read out when the screen reader is free.
function announce(text) { byId('live').textContent = text; }

// ---- The conversation on the screen ----------------------------------------------------------------------------------------

const thread = new Thread(byId('thread'), {
  retry: (node, options) => retry(node, options),
  edit: (node) => edit(node),
  choose: (node) => {
    if (session) return;
    conversation.choose(node);
    show();
    save();
  },
  askKey: async (node) => {
    if (!await askKey()) return;
    connect();
    retry(node);
  },
  startNew: () => startNew(),
  error: notifyError,
  grew: () => follow(),
}, (id) => pictures.get(id));

const preparation = new Preparation();

const composer = new Composer({
  label: 'Your question',
  placeholder: 'Ask about a picture',
  handlers: {
    onsubmit: ({ text, pictures: chosen }) => {
      const parent = conversation.path().at(-1) ?? null;
      const reading = preparation.take(preparedName(chosen, parent));
      composer.clear();
      send(text, chosen, parent, reading);
    },
    onstop: () => stop(),
    onerror: notifyError,
    onchange: ({ pictures: chosen }) => {
      byId('ideas').classList.toggle('ready', chosen.length > 0);
      prepare(chosen);
    },
    onarrowup: () => editLast(),
  },
});

function show() {
  thread.render(conversation.path(), (node) => conversation.siblings(node));
  byId('welcome').hidden = !conversation.isEmpty;
  document.body.classList.toggle('empty', conversation.isEmpty);
  if (conversation.isEmpty) window.scrollTo({ top: 0, behavior: 'instant' });
  byId('title').hidden = conversation.isEmpty;
  byId('title').textContent = conversation.title;
  document.title = conversation.isEmpty ? 'qvl' : `${conversation.title} – qvl`;
  follow();
}

const bottomDistance = () => document.documentElement.scrollHeight - window.scrollY - window.innerHeight;

function follow() {
  if (following && !conversation.isEmpty && bottomDistance() > 1) window.scrollTo({ top: document.documentElement.scrollHeight, behavior: 'instant' });
  showJump();
}

function showJump() { byId('jump').hidden = conversation.isEmpty || bottomDistance() < 160; }

// Only a person's own scrolling says whether to follow: pages grow below the window by themselves.
let lastTop = 0;
window.addEventListener('scroll', () => {
  const top = window.scrollY;
  if (top < lastTop - 2) following = false;
  if (bottomDistance() < 48) following = true;
  lastTop = top;
  showJump();
}, { passive: true });

byId('jump').addEventListener('click', () => {
  following = true;
  follow();
  composer.focus();
});

// ---- Asking ----------------------------------------------------------------------------------------------------------------

// Everything that decides what a request with these pictures begins with.
function preparedName(chosen, parent) {
  return JSON.stringify([conversation.id, parent?.id ?? null, chosen.map((picture) => picture.id), settings.model, settings.system, settings.thinking]);
}

// Pictures of a question that is still being written.
function prepare(chosen) {
  if (!settings.prepare || session || chosen.length === 0) {
    preparation.drop();
    return;
  }
  const parent = conversation.path().at(-1) ?? null;
  const question = { parent: parent?.id ?? null, role: 'user', text: '', images: chosen.map((picture) => picture.id) };
  const known = new Map([...pictures, ...chosen.map((picture) => [picture.id, picture])]);
  preparation.begin(preparedName(chosen, parent), async () => (await requestBody(conversation, question, known)).body, loadKey());
}

const currentModel = () => settings.model ?? models[0];

async function requestBody(asked, question, known) {
  const { messages, sent } = await requestMessages(asked, question, settings.system,
    async (id) => (known.has(id) ? dataUrl(known.get(id).blob) : null));
  return { body: { model: currentModel() ?? 'qvl', ...requestOptions(settings), messages }, sent };
}

// `reading`: the request that reads its pictures already, or null.
async function send(text, chosen, parent, reading = null) {
  const first = conversation.isEmpty;
  for (const picture of chosen) {
    if (pictures.get(picture.id) === picture) continue;
    pictures.set(picture.id, picture);
    const { url, ...stored } = picture;
    stored.conversation = conversation.id;
    store.savePicture(stored).catch(storageFailed);
  }
  const question = conversation.add('user', parent, { text, images: chosen.map((picture) => picture.id) });
  if (first) setCurrentConversation(conversation.id);
  await answer(question, newAnswer(question), reading);
}

function newAnswer(question) {
  return conversation.add('assistant', question, { text: '', reasoning: '', status: 'running', sent: [] });
}

async function answer(question, node = newAnswer(question), reading = null) {
  const asked = conversation;
  const key = loadKey();
  node.model = currentModel();
  const showProgress = (progress) => thread.view(node)?.setProgress(progress);
  const mine = new Session(node, {
    progress: showProgress,
    grew: () => {
      const view = thread.view(node);
      view?.setActivity(null);
      view?.update();
    },
  });
  session = mine;
  composer.running = true;
  following = true;
  show();
  save();
  announce('The answer is being made');
  await mine.run(async (signal) => {
    const { body, sent } = await requestBody(asked, question, pictures);
    node.sent = sent;
    await reading?.finished(signal, showProgress);
    return body;
  }, key);
  if (session === mine) {
    session = null;
    composer.running = false;
  }
  save(asked);
  if (conversation !== asked) return;
  thread.view(node)?.settle();
  show();
  announce({ done: `Answer: ${node.text}`, stopped: 'Stopped', failed: `Failed: ${node.error?.message}` }[node.status]);
  if (node.status === 'failed' && node.error.kind === 'gone') watchServer();
  else serverAnswers(true);
}

function stop() {
  if (!session) return;
  session.stop();
  composer.focus();
}

// Beside an answer that says something, a new one is made; one that failed before its first word is made in its place.
function retry(node, { automatic = false } = {}) {
  if (session) return;
  const question = conversation.nodes.get(node.parent);
  if (node.status === 'failed' && !node.text) {
    node.attempts = automatic ? (node.attempts ?? 0) + 1 : 0;
    Object.assign(node, { status: 'running', reasoning: '', error: undefined, finish: undefined, grounding: undefined, usage: undefined, qvl: undefined });
    thread.view(node)?.settle();
    answer(question, node);
  } else {
    answer(question);
  }
}

let editor = null;

function edit(node) {
  if (session || editor) return;
  const view = thread.view(node);
  const end = () => {
    editor = null;
    view.endEdit();
  };
  editor = new Composer({
    label: 'Edit the question',
    placeholder: 'Ask about a picture',
    handlers: {
      onsubmit: ({ text, pictures: chosen }) => {
        if (session) {
          notifyError('Stop the running answer first.');
          return;
        }
        end();
        send(text, chosen, node.parent === null ? null : conversation.nodes.get(node.parent));
        composer.focus();
      },
      oncancel: end,
      onerror: notifyError,
    },
  });
  editor.setPictures(node.images.map((id) => pictures.get(id)).filter(Boolean));
  view.startEdit(editor);
  editor.value = node.text;
  editor.focus();
}

const last = (role) => conversation.path().findLast((node) => node.role === role);

function editLast() {
  const node = last('user');
  if (node) edit(node);
}

async function copyLast() {
  const node = last('assistant');
  if (!node?.text) return;
  try {
    await copyText(node.text);
    notify('Copied');
  } catch (error) {
    notifyError(`Copying failed: ${error.message}.`);
  }
}

// ---- Keeping ---------------------------------------------------------------------------------------------------------------

let storageHasFailed = false;

function storageFailed(error) {
  if (storageHasFailed) return;
  storageHasFailed = true;
  notifyError(`This browser cannot keep the conversation (${error.message}). Export it before you close the page.`);
}

async function save(saved = conversation) {
  if (saved.isEmpty) return;
  try {
    await store.save(saved);
    tabs?.postMessage({ saved: saved.id });
  } catch (error) {
    storageFailed(error);
  }
}

// Another tab may have the same conversation open: the one that is idle shows what the other one did.
tabs?.addEventListener('message', ({ data }) => {
  if (data?.forgot) location.reload();
  if (data?.saved === conversation.id && !session && !editor) open(conversation.id);
});

async function startNew() {
  stop();
  editor = null;
  conversation = new Conversation();
  forgetPictures();
  setCurrentConversation(null);
  composer.clear();
  show();
  composer.focus();
}

function forgetPictures() {
  pictures.forEach(releasePicture);
  pictures.clear();
}

async function open(id) {
  let data = null;
  try {
    data = await store.load(id);
    if (data && session && id !== conversation.id) session.stop();
    if (data) {
      const stored = await store.pictures(id);
      forgetPictures();
      for (const picture of stored) pictures.set(picture.id, { ...picture, url: URL.createObjectURL(picture.blob) });
    }
  } catch (error) {
    notifyError(`The conversation could not be read: ${error.message}.`);
  }
  if (!data) return;
  editor = null;
  conversation = new Conversation(data);
  for (const node of conversation.nodes.values()) {
    // The page was closed meanwhile.
    if (node.status === 'running') node.status = 'stopped';
    delete node.error?.retryAt;
  }
  setCurrentConversation(id);
  following = true;
  show();
}

const conversations = new ConversationsDialog({
  open,
  startNew,
  remove: async (id) => {
    const [entry] = (await store.list()).filter((summary) => summary.id === id);
    if (!await confirmed({ title: 'Delete this conversation?', text: `“${entry?.title}” and its pictures are deleted from this browser.`, action: 'Delete' })) return;
    await store.remove(id).catch(storageFailed);
    if (id === conversation.id) await startNew();
    conversations.show(await store.list(), conversation.id);
  },
  exportJson: () => saveAsJson(conversation, pictures).catch((error) => notifyError(`The export failed: ${error.message}.`)),
  exportMarkdown: () => saveAsMarkdown(conversation, pictures),
  importFile: async (file) => {
    try {
      await open(await importFile(file, store));
      notify('Imported');
      return true;
    } catch (error) {
      notifyError(error.message);
      return false;
    }
  },
  forget: () => forget(),
});

async function forget() {
  const sure = await confirmed({ title: 'Forget everything?', action: 'Forget everything',
    text: 'All conversations, pictures, settings and the API key are deleted from this browser. The server’s own memory of pictures is not touched.' });
  if (!sure) return;
  stop();
  try {
    await store.forget();
  } catch (error) {
    storageFailed(error);
    return;
  }
  forgetLocal();
  tabs?.postMessage({ forgot: true });
  location.reload();
}

// ---- Server and settings ---------------------------------------------------------------------------------------------------

let watching = false;

function serverAnswers(yes) {
  byId('gone').hidden = yes;
  if (yes) watching = false;
}

// Asks now and then until the server is back.
async function watchServer() {
  byId('gone').hidden = false;
  if (watching) return;
  watching = true;
  for (let seconds = 2; watching; seconds = Math.min(15, seconds * 1.5)) {
    await new Promise((resolve) => setTimeout(resolve, seconds * 1000));
    if (watching && !document.hidden) await connect();
  }
}

async function connect() {
  try {
    models = await listModels(loadKey());
    byId('model').textContent = currentModel() ?? '';
    serverAnswers(true);
  } catch (error) {
    if (error instanceof ApiError && error.kind === 'gone') {
      watchServer();
    } else if (error instanceof ApiError && error.kind === 'unauthorized') {
      serverAnswers(true);
      if (!isDialogOpen() && await askKey()) connect();
    } else {
      notifyError(`The server does not say which model it has: ${error.message}`);
    }
  }
}

function applySettings(changed) {
  settings = changed;
  if (settings.theme === 'system') delete document.documentElement.dataset.theme;
  else document.documentElement.dataset.theme = settings.theme;
  byId('model').textContent = currentModel() ?? '';
  try {
    saveSettings(settings);
  } catch (error) {
    storageFailed(error);
  }
}

const settingsDialog = new SettingsDialog({ onchange: applySettings, onforget: () => forget() });

function toggleTheme() {
  const dark = settings.theme === 'system' ? matchMedia('(prefers-color-scheme: dark)').matches : settings.theme === 'dark';
  applySettings({ ...settings, theme: dark ? 'light' : 'dark' });
  announce(dark ? 'Light colours' : 'Dark colours');
}

// ---- Keys, drops, pastes, buttons ------------------------------------------------------------------------------------------

// While a question is edited, what is added goes into that one.
const activeComposer = () => editor ?? composer;

async function showConversations() {
  conversations.open(await store.list(), conversation.id, !conversation.isEmpty);
}

async function useExample() {
  try {
    const response = await fetch('page/example.png');
    if (!response.ok) throw new Error(`status ${response.status}`);
    await composer.addFiles([new File([await response.blob()], 'shapes.png', { type: 'image/png' })]);
    if (composer.value === '') composer.suggest('Where is the yellow star?');
  } catch (error) {
    notifyError(`The example could not be loaded: ${error.message}.`);
  }
}

document.addEventListener('click', async (event) => {
  const button = event.target.closest('.copy-code');
  if (!button) return;
  try {
    await copyText(button.closest('figure').querySelector('pre').textContent);
    confirmCopied(button);
  } catch (error) {
    notifyError(`Copying failed: ${error.message}.`);
  }
});

const BUTTONS = {
  'open-new': startNew,
  'open-conversations': showConversations,
  'open-settings': () => settingsDialog.open(settings, models),
  'open-shortcuts': () => byId('shortcuts').showModal(),
  'toggle-theme': toggleTheme,
  'welcome-pick': () => composer.pick(),
  'welcome-photo': () => composer.photograph(),
  'welcome-example': useExample,
  'gone-retry': connect,
};

async function start() {
  initDialogs();
  initKeys({
    shortcuts: {
      KeyN: startNew, KeyO: showConversations, KeyU: () => activeComposer().pick(), KeyE: editLast, KeyC: copyLast, KeyI: () => composer.focus(),
      KeyR: () => last('assistant') && retry(last('assistant')), KeyS: () => settingsDialog.open(settings, models), Slash: () => byId('shortcuts').showModal(),
    },
    escape: () => {
      const running = session !== null;
      stop();
      return running;
    },
  });
  initDrops({ add: (files) => activeComposer().addFiles(files).then(() => activeComposer().focus()), fail: notifyError });
  initPastes(activeComposer);
  byId('composer').append(composer.element);
  for (const [id, action] of Object.entries(BUTTONS)) byId(id).addEventListener('click', () => action());
  for (const button of document.querySelectorAll('#ideas button')) button.addEventListener('click', () => composer.suggest(button.textContent));
  byId('plain-note').hidden = hasMarkdown;
  store = await openStore();
  if (!store.persistent) notify('This browser keeps nothing here: the conversation is gone when the page closes.');
  if (currentConversation()) await open(currentConversation());
  show();
  document.documentElement.dataset.ready = 'true';
  if (!matchMedia('(hover: none)').matches) composer.focus();
  await connect();
}

start();
