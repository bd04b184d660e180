// Files become pictures of a message: recognised by their first bytes, decoded once to know their size, and sent as they are.
// Only a format that the server does not read and this browser does is converted, and that is said.
import { newId } from './dom.js';

// What the server decodes, by the first bytes of the file.
const FORMATS = [
  ['image/png', [[0, '\x89PNG\r\n\x1a\n']]],
  ['image/jpeg', [[0, '\xff\xd8\xff']]],
  ['image/webp', [[0, 'RIFF'], [8, 'WEBP']]],
  ['image/gif', [[0, 'GIF8']]],
  ['image/bmp', [[0, 'BM']]],
];

// The MIME type that the server reads these bytes as, or null.
export function sniff(bytes) {
  const at = (offset, text) => [...text].every((c, i) => bytes[offset + i] === c.charCodeAt(0));
  return FORMATS.find(([, marks]) => marks.every(([offset, text]) => at(offset, text)))?.[0] ?? null;
}

// The size as shown, after EXIF orientation, in pixels. Rejects where the browser cannot decode the picture.
async function sizeOf(url) {
  const image = new Image();
  image.src = url;
  await image.decode();
  return { image, width: image.naturalWidth, height: image.naturalHeight };
}

function toPng(image) {
  const canvas = document.createElement('canvas');
  canvas.width = image.naturalWidth;
  canvas.height = image.naturalHeight;
  canvas.getContext('2d').drawImage(image, 0, 0);
  return canvasBlob(canvas, 'image/png');
}

export function canvasBlob(canvas, type, quality) {
  return new Promise((resolve, reject) => {
    canvas.toBlob((blob) => (blob ? resolve(blob) : reject(new Error('the picture is too large for this browser to draw'))), type, quality);
  });
}

// A File or Blob becomes {id, name, type, blob, url, width, height, note}; url is an object URL that lives until
// releasePicture. Throws an Error that names the file.
export async function readPicture(file, name = file.name || 'picture', id = newId()) {
  const type = sniff(new Uint8Array(await file.slice(0, 16).arrayBuffer()));
  // The type is ours, never the file's own: an SVG that calls itself a PNG stays a broken PNG.
  let blob = type ? new Blob([file], { type }) : file;
  if (!type && (file.type === 'image/svg+xml' || !file.type.startsWith('image/'))) throw unreadable(name, 'it is no picture that this page knows');
  let url = URL.createObjectURL(blob);
  try {
    const { image, width, height } = await sizeOf(url).catch(() => { throw unreadable(name, 'the browser cannot decode it'); });
    if (type) return { id, name, type, blob, url, width, height, note: '' };
    blob = await toPng(image).catch((error) => { throw unreadable(name, error.message); });
    URL.revokeObjectURL(url);
    url = URL.createObjectURL(blob);
    return { id, name, type: 'image/png', blob, url, width, height, note: `converted from ${file.type.replace('image/', '').toUpperCase()} to PNG` };
  } catch (error) {
    URL.revokeObjectURL(url);
    throw error;
  }
}

function unreadable(name, why) {
  return new Error(`“${name}” could not be read: ${why}.`);
}

export function releasePicture(picture) { URL.revokeObjectURL(picture.url); }

// "data:image/png;base64,..." of a blob.
export function dataUrl(blob) {
  return new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.onload = () => resolve(reader.result);
    reader.onerror = () => reject(reader.error);
    reader.readAsDataURL(blob);
  });
}

export async function base64(blob) {
  const url = await dataUrl(blob);
  return url.slice(url.indexOf(',') + 1);
}

// The reverse, for imports. Throws where the text is not base64.
export function blobFromBase64(text) {
  return new Blob([Uint8Array.from(atob(text), (c) => c.charCodeAt(0))]);
}

// Pictures among what was dropped or pasted.
export function filesOf(transfer) {
  return [...(transfer?.files ?? [])];
}

export function formatBytes(bytes) {
  if (bytes < 1000) return `${bytes} B`;
  if (bytes < 999_500) return `${Math.round(bytes / 1000)} kB`;
  return `${(bytes / 1e6).toFixed(1)} MB`;
}
