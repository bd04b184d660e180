// Where a message is written: text, pictures in an order, send or stop. The main one stands below the conversation, another
// one appears where a question is edited.
import { byId, el, icon, iconButton } from './dom.js';
import { hasCamera, takePhoto } from './camera.js';
import { filesOf, formatBytes, readPicture } from './pictures.js';

const PICTURE_DRAG = 'application/x-qvl-picture';
const ACCEPT = 'image/*,.jpg,.jpeg,.png,.webp,.gif,.bmp';

// On a phone Enter makes a line, as everywhere there; with a keyboard it sends.
const touchOnly = () => matchMedia('(hover: none) and (pointer: coarse)').matches;

export class Composer {
  pictures = [];
  #running = false;
  #reading = 0;

  // handlers: onsubmit({text, pictures}), onstop(), oncancel() (Escape and a button, only while editing), onerror(message),
  // onchange(), onarrowup() in the empty field; all but onsubmit and onerror may be missing.
  constructor({ label, placeholder, handlers, submitLabel = 'Send' }) {
    this.handlers = handlers;
    this.text = el('textarea', { rows: 1, 'aria-label': label, placeholder, enterkeyhint: 'send', autocapitalize: 'sentences',
      oninput: () => this.#changed(), onkeydown: (event) => this.#key(event) });
    this.thumbs = el('ol', { class: 'thumbs plain-list', 'aria-label': 'Pictures of this message', hidden: true });
    this.file = el('input', { type: 'file', accept: ACCEPT, multiple: true, class: 'visually-hidden', tabindex: '-1', 'aria-hidden': 'true',
      onchange: () => this.#take(this.file) });
    this.capture = el('input', { type: 'file', accept: 'image/*', capture: 'environment', class: 'visually-hidden', tabindex: '-1',
      'aria-hidden': 'true', onchange: () => this.#take(this.capture) });
    this.submit = el('button', { type: 'submit', class: 'send' }, icon('send'), el('span', { class: 'send-label visually-hidden', text: submitLabel }));
    this.submit.setAttribute('aria-label', submitLabel);
    this.cancel = handlers.oncancel ? el('button', { type: 'button', class: 'quiet', text: 'Cancel', onclick: () => handlers.oncancel() }) : null;
    this.element = el('form', { class: 'composer', onsubmit: (event) => this.#submit(event) },
      this.thumbs, this.text,
      el('div', { class: 'composer-row' },
        iconButton('picture', 'Add pictures', () => this.pick()),
        iconButton('camera', 'Take a photo', () => this.photograph()),
        el('span', { class: 'composer-hint' }),
        this.cancel, this.submit),
      this.file, this.capture);
    this.#changed();
  }

  set running(running) {
    this.#running = running;
    this.#changed();
  }

  get value() { return this.text.value; }
  set value(text) {
    this.text.value = text;
    this.#changed();
  }

  get isEmpty() { return this.text.value.trim() === '' && this.pictures.length === 0; }

  focus() { this.text.focus(); }

  // A question to finish: what stands between the marks is selected.
  suggest(text) {
    const open = text.indexOf('…');
    this.value = text;
    this.focus();
    if (open >= 0) this.text.setSelectionRange(open, open + 1);
  }

  clear() {
    this.pictures = [];
    this.value = '';
    this.#showThumbs();
  }

  setPictures(pictures) {
    this.pictures = [...pictures];
    this.#showThumbs();
  }

  pick() { this.file.click(); }

  async photograph() {
    // The phone's own camera is better than any preview in a page.
    if (touchOnly() || !hasCamera()) {
      this.capture.click();
      return;
    }
    const photo = await takePhoto(this.handlers.onerror);
    if (photo) await this.addFiles([photo]);
    this.focus();
  }

  // Adds pictures in the order given; says of each that cannot be read why.
  async addFiles(files) {
    this.#reading += 1;
    this.#changed();
    const read = await Promise.allSettled(files.map((file) => readPicture(file)));
    this.#reading -= 1;
    for (const result of read) {
      if (result.status === 'fulfilled') this.pictures.push(result.value);
      else this.handlers.onerror(result.reason.message);
    }
    this.#showThumbs();
  }

  // Takes pictures out of a paste; leaves text to the field.
  async paste(event) {
    const files = filesOf(event.clipboardData);
    if (files.length === 0) return;
    event.preventDefault();
    await this.addFiles(files);
    this.focus();
  }

  async #take(input) {
    const files = [...input.files];
    input.value = '';
    await this.addFiles(files);
    this.focus();
  }

  #key(event) {
    // 229: Safari ends a composition before the key that ended it.
    if (event.isComposing || event.keyCode === 229) return;
    if (event.key === 'Enter' && !event.shiftKey && !touchOnly()) {
      event.preventDefault();
      this.element.requestSubmit();
    } else if (event.key === 'Escape' && this.handlers.oncancel) {
      event.preventDefault();
      event.stopPropagation();
      this.handlers.oncancel();
    } else if (event.key === 'ArrowUp' && this.isEmpty && this.handlers.onarrowup) {
      event.preventDefault();
      this.handlers.onarrowup();
    }
  }

  #submit(event) {
    event.preventDefault();
    if (this.#running) {
      // Enter while an answer runs must not throw it away: only the button stops.
      if (event.submitter === this.submit) this.handlers.onstop?.();
      return;
    }
    if (this.#reading > 0) return;
    const text = this.text.value.trim();
    if (text === '') {
      if (this.pictures.length > 0) this.handlers.onerror('Write a question about the picture first.');
      this.focus();
      return;
    }
    this.handlers.onsubmit({ text, pictures: this.pictures });
  }

  #changed() {
    this.text.style.height = 'auto';
    this.text.style.height = `${this.text.scrollHeight}px`;
    const label = this.#running ? 'Stop' : this.submit.querySelector('.send-label').textContent;
    this.submit.setAttribute('aria-label', label);
    this.submit.title = this.#running ? 'Stop (Esc)' : `${label} (Enter)`;
    this.submit.classList.toggle('stop', this.#running);
    this.submit.querySelector('use').setAttribute('href', this.#running ? '#i-stop' : '#i-send');
    this.submit.disabled = !this.#running && (this.#reading > 0 || this.text.value.trim() === '');
    this.element.classList.toggle('reading', this.#reading > 0);
    this.handlers.onchange?.(this);
  }

  #showThumbs(focus = null) {
    this.thumbs.hidden = this.pictures.length === 0;
    this.thumbs.replaceChildren(...this.pictures.map((picture, i) => this.#thumb(picture, i)));
    this.#changed();
    if (!focus) return;
    const item = this.thumbs.children[focus.index];
    const button = item?.querySelector(`[data-role="${focus.role}"]:not(:disabled)`) ?? item?.querySelector('button:not(:disabled)');
    (button ?? this.text).focus();
  }

  #thumb(picture, i) {
    const count = this.pictures.length;
    const about = `${picture.name}, ${picture.width} × ${picture.height}, ${formatBytes(picture.blob.size)}${picture.note ? `, ${picture.note}` : ''}`;
    const item = el('li', { class: 'thumb', draggable: count > 1 ? 'true' : 'false', title: about },
      el('img', { src: picture.url, alt: about, draggable: 'false' }),
      count > 1 ? el('span', { class: 'thumb-number', 'aria-hidden': 'true', text: `${i + 1}` }) : null,
      el('span', { class: 'thumb-buttons' },
        count > 1 ? iconButton('left', `Move ${picture.name} earlier`, () => this.#move(i, i - 1, 'left'), { disabled: i === 0, dataset: { role: 'left' } }) : null,
        count > 1 ? iconButton('right', `Move ${picture.name} later`, () => this.#move(i, i + 1, 'right'), { disabled: i === count - 1, dataset: { role: 'right' } }) : null,
        iconButton('close', `Remove ${picture.name}`, () => this.#remove(i), { dataset: { role: 'remove' } })));
    item.addEventListener('dragstart', (event) => {
      event.dataTransfer.setData(PICTURE_DRAG, String(i));
      event.dataTransfer.effectAllowed = 'move';
    });
    item.addEventListener('dragover', (event) => {
      if (!event.dataTransfer.types.includes(PICTURE_DRAG)) return;
      event.preventDefault();
      item.classList.add('drop-here');
    });
    item.addEventListener('dragleave', () => item.classList.remove('drop-here'));
    item.addEventListener('drop', (event) => {
      const from = event.dataTransfer.getData(PICTURE_DRAG);
      if (from === '') return;
      event.preventDefault();
      event.stopPropagation();
      this.#move(Number(from), i);
    });
    return item;
  }

  #move(from, to, role) {
    const [picture] = this.pictures.splice(from, 1);
    this.pictures.splice(to, 0, picture);
    this.#showThumbs(role ? { index: to, role } : null);
    byId('live').textContent = `${picture.name} is now picture ${to + 1} of ${this.pictures.length}`;
  }

  // The object URL stays: another branch of the conversation may show the same picture.
  #remove(i) {
    const [picture] = this.pictures.splice(i, 1);
    this.#showThumbs({ index: Math.min(i, this.pictures.length - 1), role: 'remove' });
    byId('live').textContent = `${picture.name} removed`;
  }
}
