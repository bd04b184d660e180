// Conversations out of the page and into it, as files.
import { exportJson, exportMarkdown, importJson } from './conversation.js';
import { download, fileName } from './dom.js';
import { base64, blobFromBase64, readPicture, releasePicture } from './pictures.js';

// `pictures`: Map of id to picture.
export async function saveAsJson(conversation, pictures) {
  const ids = [...conversation.imageIds()].filter((id) => pictures.has(id));
  const list = await Promise.all(ids.map(async (id) => {
    const { name, type, blob } = pictures.get(id);
    return { id, name, type, data: await base64(blob) };
  }));
  download(new Blob([exportJson(conversation, list)], { type: 'application/json' }), fileName(conversation.title, 'json'));
}

export function saveAsMarkdown(conversation, pictures) {
  const text = exportMarkdown(conversation, (id) => pictures.get(id));
  download(new Blob([text], { type: 'text/markdown' }), fileName(conversation.title, 'md'));
}

// Puts the conversation of a file into the store; its id. Throws an Error that says what is wrong with the file; then
// nothing was stored, because everything is read before anything is kept.
export async function importFile(file, store) {
  const { conversation, pictures } = importJson(await file.text());
  const read = await Promise.all(pictures.map(async ({ id, name, data }) => {
    let blob;
    try {
      blob = blobFromBase64(data);
    } catch {
      throw new Error(`“${name}” could not be read: its data is not base64.`);
    }
    return readPicture(blob, name, id);
  }));
  for (const picture of read) {
    releasePicture(picture);
    const { url, ...stored } = picture;
    await store.savePicture({ ...stored, conversation: conversation.id });
  }
  await store.save(conversation);
  return conversation.id;
}
