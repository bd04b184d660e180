// The conversation on the screen: one view per node, kept while the node is shown, so that a stream touches only what it adds.
import { copyText, el, icon, iconButton } from './dom.js';
import { endingNote, factsElement } from './facts.js';
import { MarkdownView } from './markdown.js';
import { groundingElement } from './picture_view.js';

const TITLES = {
  unauthorized: 'This server asks for an API key',
  busy: 'The server is busy',
  too_large: 'Too large for this server',
  context: 'More than the model can read at once',
  image: 'A picture could not be read',
  timeout: 'The server took too long',
  invalid: 'The server refused the request',
  server: 'The server failed',
  gone: 'The server does not answer',
  lost: 'The connection broke off',
};

const HINTS = {
  too_large: 'Edit the question and send smaller or fewer pictures.',
  context: 'Start a new conversation, or edit the question and send fewer pictures.',
  image: 'Edit the question and choose another picture.',
  gone: 'Is qvl serve still running?',
  lost: 'What had arrived is kept above.',
};

const PHASES = { vision: 'Looking at the picture', prefill: 'Reading' };
const WAITING = 'Waiting for the server';

const MAX_AUTOMATIC_RETRIES = 3;

// actions: copy(node), retry(node), edit(node), choose(node), askKey(), startNew(), error(message); pictureOf(id) gives
// {url, name, width, height} or undefined.
export class Thread {
  #views = new Map();

  constructor(root, actions, pictureOf) {
    this.root = root;
    this.actions = actions;
    this.pictureOf = pictureOf;
  }

  // Shows these nodes; `siblingsOf(node)` are the branches beside one.
  render(path, siblingsOf) {
    const views = path.map((node) => {
      let view = this.#views.get(node.id);
      if (!view || view.node !== node) {
        view?.discard();
        view?.element.remove();
        view = node.role === 'user' ? new QuestionView(node, this) : new AnswerView(node, this);
        this.#views.set(node.id, view);
      }
      view.showBranches(siblingsOf(node));
      return view;
    });
    const kept = new Set(views);
    for (const [id, view] of this.#views) {
      if (kept.has(view)) continue;
      view.discard();
      view.element.remove();
      this.#views.delete(id);
    }
    views.forEach((view, i) => {
      if (this.root.children[i] !== view.element) this.root.insertBefore(view.element, this.root.children[i] ?? null);
    });
  }

  view(node) { return this.#views.get(node.id); }
}

class View {
  constructor(node, thread) {
    this.node = node;
    this.thread = thread;
    this.branches = el('span', { class: 'branches', hidden: true });
  }

  showBranches(siblings) {
    this.branches.hidden = siblings.length < 2;
    if (siblings.length < 2) return;
    const at = siblings.indexOf(this.node);
    const step = (to, name, label) => iconButton(name, label, () => this.thread.actions.choose(siblings[to]), { disabled: !siblings[to] });
    this.branches.replaceChildren(step(at - 1, 'left', 'Earlier version'),
      el('span', { text: `${at + 1} / ${siblings.length}` }, el('span', { class: 'visually-hidden', text: ' versions' })),
      step(at + 1, 'right', 'Later version'));
  }

  copyButton(text) {
    const button = iconButton('copy', 'Copy', async () => {
      try {
        await copyText(text());
        confirmCopied(button);
      } catch (error) {
        this.thread.actions.error(`Copying failed: ${error.message}.`);
      }
    });
    return button;
  }

  discard() {}
}

// Shows a tick for a moment.
export function confirmCopied(button) {
  const use = button.querySelector('use');
  use.setAttribute('href', '#i-check');
  button.classList.add('done');
  setTimeout(() => {
    use.setAttribute('href', '#i-copy');
    button.classList.remove('done');
  }, 1500);
}

class QuestionView extends View {
  constructor(node, thread) {
    super(node, thread);
    const pictures = node.images.map((id) => {
      const picture = thread.pictureOf(id);
      if (!picture) return el('li', { class: 'lost', text: 'A picture that is no longer stored' });
      return el('li', {}, el('img', { src: picture.url, alt: `${picture.name}, ${picture.width} × ${picture.height}`,
        title: picture.name, width: picture.width, height: picture.height, decoding: 'async' }));
    });
    this.body = el('div', { class: 'question-body' },
      pictures.length > 0 ? el('ol', { class: 'gallery plain-list' }, pictures) : null,
      node.text ? el('div', { class: 'bubble', text: node.text }) : null);
    this.footer = el('div', { class: 'actions' }, this.branches, this.copyButton(() => node.text),
      iconButton('edit', 'Edit', () => thread.actions.edit(node)));
    this.element = el('article', { class: 'question' }, el('h2', { class: 'visually-hidden', text: 'Question' }), this.body, this.footer);
  }

  // Puts a composer in the place of the question until endEdit.
  startEdit(composer) {
    this.body.hidden = this.footer.hidden = true;
    this.editor = composer.element;
    this.element.append(this.editor);
    this.element.classList.add('editing');
  }

  endEdit() {
    this.editor?.remove();
    this.editor = null;
    this.body.hidden = this.footer.hidden = false;
    this.element.classList.remove('editing');
    this.footer.querySelector('button[aria-label="Edit"]').focus();
  }
}

class AnswerView extends View {
  #frame = 0;
  #restUntil = 0;
  #timer = 0;

  constructor(node, thread) {
    super(node, thread);
    this.reasoningText = document.createTextNode('');
    this.reasoning = el('details', { class: 'thinking', hidden: true }, el('summary', { text: 'Thinking' }),
      el('div', { class: 'thinking-text' }, this.reasoningText));
    this.text = el('div', { class: 'answer-text' });
    this.markdown = new MarkdownView(this.text);
    this.activityText = el('span', { text: WAITING });
    this.meter = el('progress', { max: 1, value: 0, hidden: true, 'aria-label': 'Progress' });
    this.activity = el('div', { class: 'activity', hidden: true }, el('span', { class: 'dots', 'aria-hidden': 'true' }, el('i'), el('i'), el('i')),
      this.activityText, this.meter);
    this.after = el('div', { class: 'answer-after' });
    this.copy = this.copyButton(() => node.text);
    this.retry = iconButton('retry', 'Ask again', () => thread.actions.retry(node));
    this.actions = el('div', { class: 'actions' }, this.branches, this.copy, this.retry);
    this.element = el('article', { class: 'answer' }, el('h2', { class: 'visually-hidden', text: 'Answer' }),
      this.reasoning, this.text, this.activity, this.after, this.actions);
    this.settle();
  }

  // Shows what is new, at most once a frame, and never more than a fifth of the time: a very long block costs more to lay
  // out, so it is laid out less often.
  update() {
    if (this.#frame) return;
    this.#frame = requestAnimationFrame(() => {
      this.#frame = 0;
      const start = performance.now();
      if (start < this.#restUntil) {
        this.update();
        return;
      }
      this.#render(false);
      const end = performance.now();
      this.#restUntil = end + 4 * (end - start);
      this.thread.actions.grew();
    });
  }

  #render(final) {
    const { node } = this;
    if (node.reasoning) {
      this.reasoning.hidden = false;
      this.reasoning.querySelector('summary').textContent = !final && !node.text ? 'Thinking …' : 'Thoughts';
      if (node.reasoning.startsWith(this.reasoningText.data)) this.reasoningText.appendData(node.reasoning.slice(this.reasoningText.length));
      else this.reasoningText.data = node.reasoning;
    } else {
      this.reasoning.hidden = true;
      this.reasoningText.data = '';
    }
    this.markdown.update(node.text, { final });
    this.element.classList.toggle('streaming', !final && node.text !== '');
  }

  // What the server is doing before the first words; null when they come.
  setActivity(text, share = null) {
    this.activity.hidden = text === null;
    if (text !== null) this.activityText.textContent = text;
    this.meter.hidden = share === null;
    if (share !== null) this.meter.value = share;
  }

  setProgress({ phase, done, total }) {
    const share = total > 0 && done >= 0 ? Math.min(1, done / total) : null;
    this.setActivity(PHASES[phase] ?? WAITING, share);
  }

  // Shows the node as it is stored: after its end, after loading, and at its start.
  settle() {
    const { node } = this;
    cancelAnimationFrame(this.#frame);
    this.#frame = 0;
    clearInterval(this.#timer);
    const running = node.status === 'running';
    this.#render(!running);
    this.element.setAttribute('aria-busy', String(running));
    this.setActivity(running ? WAITING : null);
    this.actions.hidden = running;
    this.copy.hidden = !node.text;
    // The failure has its own button.
    this.retry.hidden = node.status === 'failed';
    this.after.replaceChildren(...(running ? [] : this.#afterword()));
  }

  #afterword() {
    const { node, thread } = this;
    const pictures = (node.sent ?? []).map((id) => thread.pictureOf(id) ?? null);
    const ending = node.status === 'stopped' ? 'Stopped. The answer is not complete.' : endingNote(node.finish);
    const empty = node.status === 'done' && !node.text ? 'The model answered nothing.' : '';
    return [
      empty || ending ? el('p', { class: 'note', text: empty || ending }) : null,
      node.status === 'failed' ? this.#failure(node.error) : null,
      node.grounding ? groundingElement(node.grounding, pictures, node.qvl?.images, thread.actions.error) : null,
      factsElement(node, pictures.map((picture) => picture?.name)),
    ].filter(Boolean);
  }

  #failure(error) {
    const { thread, node } = this;
    const retry = el('button', { type: 'button', class: 'primary', onclick: () => thread.actions.retry(node) }, icon('retry'), 'Try again');
    const buttons = [retry];
    const wait = el('p', { class: 'wait' });
    if (error.kind === 'unauthorized') buttons.unshift(el('button', { type: 'button', class: 'primary', text: 'Enter the API key', onclick: () => thread.actions.askKey(node) }));
    if (error.kind === 'unauthorized') retry.className = 'quiet';
    if (error.kind === 'context') buttons.push(el('button', { type: 'button', class: 'quiet', text: 'New conversation', onclick: () => thread.actions.startNew() }));
    if (error.kind === 'busy' && error.retryAt) this.#countDown(error.retryAt, wait, buttons);
    const title = error.kind === 'unauthorized' && error.keySent ? 'The server does not accept this API key' : TITLES[error.kind] ?? TITLES.server;
    return el('div', { class: 'failure', role: 'group', 'aria-label': title },
      el('p', { class: 'failure-title' }, icon('alert'), title),
      error.message === `${title}.` ? null : el('p', { text: error.message }),
      HINTS[error.kind] ? el('p', { class: 'hint', text: HINTS[error.kind] }) : null,
      wait, el('div', { class: 'failure-buttons' }, buttons));
  }

  // Asks again by itself when the server's time is over, a few times; a click goes before.
  #countDown(retryAt, line, buttons) {
    const { node, thread } = this;
    const automatic = (node.attempts ?? 0) < MAX_AUTOMATIC_RETRIES;
    if (automatic) {
      buttons.push(el('button', { type: 'button', class: 'quiet', text: 'Do not ask again', onclick: (event) => {
        clearInterval(this.#timer);
        line.textContent = '';
        event.currentTarget.remove();
      } }));
    }
    const tick = () => {
      const seconds = Math.ceil((retryAt - Date.now()) / 1000);
      line.textContent = seconds > 0 ? `${automatic ? 'Asking again' : 'It may have room'} in ${seconds} s` : '';
      if (seconds > 0) return;
      clearInterval(this.#timer);
      if (automatic) thread.actions.retry(node, { automatic: true });
    };
    this.#timer = setInterval(tick, 250);
    tick();
  }

  discard() {
    cancelAnimationFrame(this.#frame);
    clearInterval(this.#timer);
  }
}
