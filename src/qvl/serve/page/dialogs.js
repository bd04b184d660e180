// The dialogs: settings, API key, conversations, shortcuts, confirmation. Native <dialog> elements of index.html; they bring focus
// handling and Escape with them.
import { byId, el, iconButton } from './dom.js';
import { checkedSettings, DEFAULT_SETTINGS, keyIsKept, loadKey, saveKey } from './store.js';

// Closing by a click beside the dialog, and by buttons that have data-close.
export function initDialogs() {
  for (const dialog of document.querySelectorAll('dialog')) {
    // A selection that starts inside and ends outside is no click beside the dialog.
    let beside = false;
    dialog.addEventListener('pointerdown', (event) => { beside = event.target === dialog; });
    dialog.addEventListener('click', (event) => {
      if ((beside && event.target === dialog) || event.target.closest('[data-close]')) dialog.close();
    });
  }
}

export function isDialogOpen() { return document.querySelector('dialog[open]') !== null; }

// Asks a question that has one dangerous answer. Resolves to true for it.
export function confirmed({ title, text, action }) {
  const dialog = byId('confirm');
  dialog.querySelector('h2').textContent = title;
  dialog.querySelector('p').textContent = text;
  dialog.querySelector('[value="yes"]').textContent = action;
  dialog.returnValue = '';
  dialog.showModal();
  return new Promise((resolve) => {
    dialog.addEventListener('close', () => resolve(dialog.returnValue === 'yes'), { once: true });
  });
}

// Asks for the API key. Resolves to true when one was saved.
export function askKey() {
  const dialog = byId('key');
  const field = byId('key-value');
  field.value = '';
  byId('key-keep').checked = keyIsKept();
  dialog.returnValue = '';
  dialog.showModal();
  field.focus();
  return new Promise((resolve) => {
    dialog.addEventListener('close', () => {
      const key = field.value.trim();
      field.value = '';
      if (dialog.returnValue !== 'save' || key === '') {
        resolve(false);
        return;
      }
      saveKey(key, byId('key-keep').checked);
      resolve(true);
    }, { once: true });
  });
}

const FIELDS = ['system', 'temperature', 'top_p', 'max_tokens', 'seed', 'thinking', 'theme', 'grounding', 'prepare', 'model'];
const field = (name) => byId(`set-${name}`);

// Settings apply as they are changed. onchange(settings) hears of every legal change; onforget() of the button.
export class SettingsDialog {
  #dialog = byId('settings');

  constructor({ onchange, onforget }) {
    this.onchange = onchange;
    this.#dialog.addEventListener('input', (event) => {
      if (event.target.id.startsWith('set-')) this.#apply();
    });
    byId('set-key-keep').addEventListener('change', () => saveKey(byId('set-key').value.trim(), byId('set-key-keep').checked));
    byId('set-key').addEventListener('change', () => saveKey(byId('set-key').value.trim(), byId('set-key-keep').checked));
    byId('settings-reset').addEventListener('click', () => {
      this.#fill({ ...DEFAULT_SETTINGS });
      this.#apply();
    });
    byId('settings-forget').addEventListener('click', onforget);
  }

  open(settings, models) {
    const select = field('model');
    select.replaceChildren(el('option', { value: '', text: models[0] ? `${models[0]} (the server’s first)` : 'The server’s' }),
      ...models.slice(1).map((model) => el('option', { value: model, text: model })));
    select.closest('.field').hidden = models.length < 2;
    this.#fill(settings);
    byId('set-key').value = loadKey();
    byId('set-key-keep').checked = keyIsKept();
    this.#dialog.showModal();
  }

  #fill(settings) {
    for (const name of FIELDS) {
      const input = field(name);
      if (input.type === 'checkbox') input.checked = settings[name];
      else input.value = settings[name] ?? '';
    }
  }

  #apply() {
    const read = {};
    for (const name of FIELDS) {
      const input = field(name);
      if (input.type === 'checkbox') read[name] = input.checked;
      else if (input.type === 'number') read[name] = input.value === '' ? null : input.valueAsNumber;
      else read[name] = input.value || null;
      // What is out of range stays marked by the browser and does not count until it is mended.
      input.toggleAttribute('aria-invalid', false);
      if (!input.checkValidity()) input.setAttribute('aria-invalid', 'true');
    }
    this.onchange(checkedSettings(read));
  }
}

const dates = new Intl.DateTimeFormat(undefined, { dateStyle: 'medium', timeStyle: 'short' });

// The conversations that are kept. actions: open(id), remove(id), exportJson(), exportMarkdown(), importFile(file), forget(), startNew().
export class ConversationsDialog {
  #dialog = byId('conversations');
  #list = byId('conversation-list');

  constructor(actions) {
    this.actions = actions;
    byId('export-json').addEventListener('click', () => actions.exportJson());
    byId('export-markdown').addEventListener('click', () => actions.exportMarkdown());
    byId('conversations-forget').addEventListener('click', () => actions.forget());
    const file = byId('import-file');
    byId('import').addEventListener('click', () => file.click());
    file.addEventListener('change', async () => {
      const [chosen] = file.files;
      file.value = '';
      if (chosen && await actions.importFile(chosen)) this.#dialog.close();
    });
  }

  open(summaries, current, canExport) {
    this.show(summaries, current);
    byId('export-json').disabled = byId('export-markdown').disabled = !canExport;
    if (!this.#dialog.open) this.#dialog.showModal();
  }

  show(summaries, current) {
    byId('conversations-empty').hidden = summaries.length > 0;
    this.#list.replaceChildren(...summaries.map(({ id, title, updated, questions }) => {
      const open = el('button', { type: 'button', class: 'conversation', 'aria-current': id === current ? 'true' : null, onclick: () => {
        this.#dialog.close();
        this.actions.open(id);
      } }, el('span', { class: 'conversation-title', text: title }),
        el('span', { class: 'conversation-date', text: `${questions} ${questions === 1 ? 'question' : 'questions'}, ${dates.format(updated)}` }));
      return el('li', {}, open, iconButton('trash', `Delete “${title}”`, () => this.actions.remove(id)));
    }));
  }

  close() { this.#dialog.close(); }
}
