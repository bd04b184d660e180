// What an answer points at: each picture it names with boxes and points over it, switches, a list of the items, and the
// picture with its boxes as a file.
import { download, el, fileName, icon } from './dom.js';
import { checkedItems, colourOf, describeItem, drawPicture, Overlay } from './overlay.js';

function toggle(label, onchange) {
  const box = el('input', { type: 'checkbox', onchange: () => onchange(box.checked) });
  box.checked = true;
  return el('label', { class: 'switch' }, box, label);
}

// `pictures`: those sent with the request, in its order; {url, name, width, height} or null where one is lost. `facts`: the
// server's `images`, whose sizes the pixels refer to. `onerror(message)` hears of a download that failed.
// Returns an element, or null where the answer points at nothing.
export function groundingElement(grounding, pictures, facts, onerror) {
  const items = checkedItems(grounding);
  if (items.length === 0) return null;
  const section = el('section', { class: 'grounding', 'aria-label': 'Boxes and points' });
  const entries = items.map((item, number) => ({ item, number }));
  const drawn = new Set();
  pictures.forEach((picture, index) => {
    const here = entries.filter(({ item }) => item.image === index && item.pixels !== null && picture);
    if (here.length === 0) return;
    here.forEach(({ number }) => drawn.add(number));
    section.append(pictureElement(picture, facts?.[index], here, onerror));
  });
  const rest = entries.filter(({ number }) => !drawn.has(number));
  if (rest.length > 0) section.append(restElement(rest));
  if (grounding.unread > 0) {
    section.append(el('p', { class: 'note', text: `${grounding.unread === 1 ? 'One set' : `${grounding.unread} sets`} of coordinates in the answer could not be read.` }));
  }
  return section;
}

function restElement(rest) {
  return el('ul', { class: 'items plain-list', 'aria-label': 'Not drawn' },
    rest.map(({ item }) => el('li', { class: 'item-rest' }, `${item.label || item.kind}: ${describeItem(item)}`)));
}

function pictureElement(picture, fact, entries, onerror) {
  const size = Number.isFinite(fact?.width) && Number.isFinite(fact?.height) && fact.width > 0 && fact.height > 0 ?
    { width: fact.width, height: fact.height } : { width: picture.width, height: picture.height };
  const items = entries.map(({ item }) => item);
  const numbers = entries.map(({ number }) => number);
  const names = items.map((item, i) => item.label || `${item.kind} ${numbers[i] + 1}`);
  const overlay = new Overlay({ url: picture.url, size, items, numbers, alt: `${picture.name} with ${names.join(', ')} marked` });
  const shown = { items: true, labels: true };
  const show = (change) => {
    Object.assign(shown, change);
    overlay.show(shown);
  };

  let pinned = null;
  const buttons = items.map((item, i) => {
    const { fill } = colourOf(numbers[i]);
    const swatch = el('span', { class: `swatch ${item.kind}`, 'aria-hidden': 'true' });
    swatch.style.setProperty('--item', fill);
    const button = el('button', { type: 'button', class: 'item', 'aria-pressed': 'false' }, swatch, el('span', { class: 'item-name', text: names[i] }),
      el('span', { class: 'item-place', text: describeItem(item) }));
    button.addEventListener('click', () => {
      pinned = pinned === i ? null : i;
      buttons.forEach((other, j) => other.setAttribute('aria-pressed', String(j === pinned)));
      overlay.highlight(pinned);
    });
    button.addEventListener('pointerenter', () => overlay.highlight(i));
    button.addEventListener('focus', () => overlay.highlight(i));
    for (const type of ['pointerleave', 'blur']) button.addEventListener(type, () => overlay.highlight(pinned));
    return button;
  });

  const save = el('button', { type: 'button', class: 'quiet' }, icon('download'), 'Save as PNG');
  save.addEventListener('click', async () => {
    save.disabled = true;
    try {
      const blob = await drawPicture({ url: picture.url, size, items: shown.items ? items : [], numbers, labels: shown.labels });
      download(blob, fileName(`${picture.name.replace(/\.\w+$/, '')}-boxes`, 'png'));
    } catch (error) {
      onerror(`The picture could not be saved: ${error.message}.`);
    } finally {
      save.disabled = false;
    }
  });

  const zoom = el('button', { type: 'button', class: 'quiet', 'aria-pressed': 'false' }, icon('zoom'), 'Original size');
  const stage = el('div', { class: 'stage' }, overlay.element);
  // Small pictures are enlarged, so that lines and labels do not hide what they mark.
  overlay.element.style.setProperty('--natural', `${size.width}px`);
  overlay.element.style.setProperty('--ratio', `${size.width / size.height}`);
  zoom.addEventListener('click', () => {
    const on = stage.classList.toggle('natural');
    zoom.setAttribute('aria-pressed', String(on));
    if (on) stage.setAttribute('tabindex', '0');
    else stage.removeAttribute('tabindex');
  });

  return el('figure', { class: 'grounded' }, stage,
    el('figcaption', {},
      el('div', { class: 'tools' }, toggle('Marks', (on) => show({ items: on })), toggle('Labels', (on) => show({ labels: on })), zoom, save),
      el('ul', { class: 'items plain-list' }, buttons.map((button) => el('li', {}, button)))));
}
