// Boxes and points over a picture. Coordinates are pixels of the original picture, upright (after EXIF orientation), as the server
// reports them; the SVG's viewBox is the picture, so it scales with it. Labels keep their size on the screen and look for
// a free place. The same layout draws the picture with its boxes for download.
import { el, svg } from './dom.js';
import { canvasBlob } from './pictures.js';

// Far apart in hue and lightness, each with the ink that reads on it. Lines get a dark and a light edge, so that they show on any picture.
const COLOURS = [
  ['#ffd43b', '#1c1c1c'], ['#d6336c', '#ffffff'], ['#38d9a9', '#1c1c1c'], ['#4263eb', '#ffffff'], ['#ff922b', '#1c1c1c'],
  ['#9c36b5', '#ffffff'], ['#66d9e8', '#1c1c1c'], ['#a9e34b', '#1c1c1c'], ['#c92a2a', '#ffffff'], ['#faa2c1', '#1c1c1c'],
];

export function colourOf(number) {
  const [fill, ink] = COLOURS[number % COLOURS.length];
  return { fill, ink };
}

const PROBLEMS = { malformed: 'coordinates could not be read', out_of_range: 'reached beyond the picture, cut to it',
  swapped: 'corners were swapped', degenerate: 'without area, not drawn', no_such_image: 'names a picture that is not there' };

// The items of an answer from the server's `grounding` (generate/grounding.h), or from an imported file, which may hold anything.
// Returns [{kind: 'box', label, image, pixels: [x1, y1, x2, y2] or null, note} | {kind: 'point', ..., pixels: [x, y] or null}];
// what has no pixels cannot be drawn and `note` says why.
export function checkedItems(grounding) {
  if (!Array.isArray(grounding?.items)) return [];
  return grounding.items.filter((item) => item?.kind === 'box' || item?.kind === 'point').map((item) => {
    const problems = Array.isArray(item.problems) ? item.problems.map(String) : [];
    const whole = Array.isArray(item.pixels) && item.pixels.length === (item.kind === 'box' ? 4 : 2) && item.pixels.every(Number.isFinite);
    return { kind: item.kind, label: typeof item.label === 'string' ? item.label : '',
      image: Number.isInteger(item.image) ? item.image : -1,
      pixels: whole && !problems.includes('degenerate') ? item.pixels : null,
      note: problems.map((problem) => PROBLEMS[problem] ?? problem).join(', ') };
  });
}

export function describeItem(item) {
  if (!item.pixels) return item.note || 'not drawn';
  const [x1, y1, x2, y2] = item.pixels.map(Math.round);
  const place = item.kind === 'point' ? `point at ${x1}, ${y1}` : `${x2 - x1} × ${y2 - y1} at ${x1}, ${y1}`;
  return item.note ? `${place} (${item.note})` : place;
}

const overlaps = (a, b) => a.x < b.x + b.width && b.x < a.x + a.width && a.y < b.y + b.height && b.y < a.y + a.height;

// Where labels go. `anchors`: [{x, y, width, height}] of the items (a point has no extent); `sizes`: [{width, height}] of the
// labels, null for none; `bounds`: {width, height}. All in one unit. Every label lies inside the bounds, beside its item where
// that is free, and covers no earlier label if any of its places allows that. Returns [{x, y, width, height} or null].
export function placeLabels(anchors, sizes, bounds, gap = 2) {
  const placed = [];
  return anchors.map((anchor, i) => {
    if (!sizes[i]) return null;
    const { width, height } = sizes[i];
    const inside = (x, y) => ({ x: Math.max(0, Math.min(x, bounds.width - width)), y: Math.max(0, Math.min(y, bounds.height - height)), width, height });
    const right = anchor.x + anchor.width;
    const bottom = anchor.y + anchor.height;
    const above = anchor.y - height - gap;
    const wanted = [
      ...(above >= 0 ? [[anchor.x, above], [right - width, above]] : []),
      ...(bottom + gap + height <= bounds.height ? [[anchor.x, bottom + gap], [right - width, bottom + gap]] : []),
      [anchor.x + gap, anchor.y + gap], [right - width - gap, anchor.y + gap],
      [anchor.x + gap, bottom - height - gap], [right - width - gap, bottom - height - gap],
      [right + gap, anchor.y], [anchor.x - width - gap, anchor.y],
    ].map(([x, y]) => inside(x, y));
    const place = wanted.find((candidate) => !placed.some((other) => overlaps(candidate, other))) ?? wanted[0];
    placed.push(place);
    return place;
  });
}

function anchorOf(item, scale, pointRadius) {
  const [x1, y1, x2, y2] = item.pixels.map((value) => value * scale);
  if (item.kind === 'box') return { x: x1, y: y1, width: x2 - x1, height: y2 - y1 };
  return { x: x1 - pointRadius, y: y1 - pointRadius, width: 2 * pointRadius, height: 2 * pointRadius };
}

// A picture with its items. `size`: {width, height} of the original. `items`: those of checkedItems with pixels, `numbers` their
// places in the answer's list (they choose colours, and name what has no label).
export class Overlay {
  #groups = [];
  #labels = [];
  #observer;

  constructor({ url, alt, size, items, numbers }) {
    this.size = size;
    this.items = items;
    this.numbers = numbers;
    this.image = el('img', { src: url, alt, decoding: 'async', width: size.width, height: size.height, draggable: 'false' });
    this.svg = svg('svg', { viewBox: `0 0 ${size.width} ${size.height}`, preserveAspectRatio: 'none', 'aria-hidden': 'true' });
    this.labels = el('div', { class: 'labels', 'aria-hidden': 'true' });
    items.forEach((item, i) => {
      const { fill, ink } = colourOf(numbers[i]);
      const group = svg('g', { class: item.kind }, ...shapes(item));
      group.style.setProperty('--item', fill);
      this.#groups.push(group);
      this.svg.append(group);
      const label = el('span', { class: 'label', text: item.label || `${numbers[i] + 1}` });
      label.style.setProperty('--item', fill);
      label.style.setProperty('--item-ink', ink);
      this.#labels.push(label);
      this.labels.append(label);
    });
    this.element = el('div', { class: 'overlay' }, this.image, this.svg, this.labels);
    this.#observer = new ResizeObserver(() => this.#layout());
    this.#observer.observe(this.element);
  }

  #layout() {
    const { width, height } = this.image.getBoundingClientRect();
    if (width === 0) return;
    const scale = width / this.size.width;
    const sizes = this.#labels.map((label) => ({ width: label.offsetWidth, height: label.offsetHeight }));
    placeLabels(this.items.map((item) => anchorOf(item, scale, 9)), sizes, { width, height }).forEach((place, i) => {
      this.#labels[i].style.left = `${place.x}px`;
      this.#labels[i].style.top = `${place.y}px`;
    });
  }

  show({ items, labels }) {
    this.element.classList.toggle('hide-items', !items);
    this.element.classList.toggle('hide-labels', !labels);
  }

  // Brings out one item; null none. `index` counts within this picture.
  highlight(index) {
    this.element.classList.toggle('has-highlight', index !== null);
    for (const list of [this.#groups, this.#labels]) list.forEach((part, i) => part.classList.toggle('highlighted', i === index));
  }
}

function shapes(item) {
  if (item.kind === 'box') {
    const [x1, y1, x2, y2] = item.pixels;
    const place = { x: x1, y: y1, width: x2 - x1, height: y2 - y1 };
    return ['edge', 'line'].map((name) => svg('rect', { class: name, ...place }));
  }
  // A line without length has round ends: a disc of a constant size on the screen, whatever the scale.
  const [x, y] = item.pixels;
  return ['edge', 'ring', 'line'].map((name) => svg('path', { class: name, d: `M${x} ${y}h0` }));
}

// The picture in its original size with the items drawn into it, as a PNG.
export async function drawPicture({ url, size, items, numbers, labels }) {
  const image = new Image();
  image.src = url;
  await image.decode();
  const canvas = document.createElement('canvas');
  canvas.width = size.width;
  canvas.height = size.height;
  const context = canvas.getContext('2d');
  if (!context) throw new Error('the picture is too large for this browser to draw');
  context.drawImage(image, 0, 0, size.width, size.height);

  const unit = Math.max(1, Math.min(size.width, size.height) / 400);
  for (const [i, item] of items.entries()) {
    const [x1, y1, x2, y2] = item.pixels;
    for (const [style, line, disc] of [['#000000b3', 4.5, 8], ['#ffffff', 0, 6.5], [colourOf(numbers[i]).fill, 2.5, 5]]) {
      if (item.kind === 'box' && line > 0) {
        context.strokeStyle = style;
        context.lineWidth = line * unit;
        context.strokeRect(x1, y1, x2 - x1, y2 - y1);
      } else if (item.kind === 'point') {
        context.fillStyle = style;
        context.beginPath();
        context.arc(x1, y1, disc * unit, 0, 2 * Math.PI);
        context.fill();
      }
    }
  }
  if (labels) drawLabels(context, { size, items, numbers, unit });
  return canvasBlob(canvas, 'image/png');
}

function drawLabels(context, { size, items, numbers, unit }) {
  const font = Math.max(10, 13 * unit);
  const pad = font * 0.4;
  context.font = `600 ${font}px system-ui, sans-serif`;
  context.textBaseline = 'middle';
  const texts = items.map((item, i) => item.label || `${numbers[i] + 1}`);
  const sizes = texts.map((text) => ({ width: Math.min(context.measureText(text).width + 2 * pad, size.width), height: font * 1.5 }));
  placeLabels(items.map((item) => anchorOf(item, 1, 9 * unit)), sizes, size, 2 * unit).forEach((place, i) => {
    const { fill, ink } = colourOf(numbers[i]);
    context.fillStyle = fill;
    context.fillRect(place.x, place.y, place.width, place.height);
    context.fillStyle = ink;
    context.fillText(texts[i], place.x + pad, place.y + place.height / 2, Math.max(1, place.width - 2 * pad));
  });
}
