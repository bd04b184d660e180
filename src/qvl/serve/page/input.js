// Keys, drops and pastes anywhere on the page.
import { isDialogOpen } from './dialogs.js';
import { filesOf } from './pictures.js';

const dragsFiles = (event) => event.dataTransfer?.types.includes('Files');
// A link or a picture of another page: the browser would go there.
const dragsAddress = (event) => event.dataTransfer?.types.includes('text/uri-list');

// Calls shortcuts[event.code]() for Alt with a key, by the key's place, so that layouts and the special characters of macOS do
// not matter; escape() for Escape, which says whether it did something.
export function initKeys({ shortcuts, escape }) {
  document.addEventListener('keydown', (event) => {
    if (isDialogOpen()) return;
    const action = event.altKey && !event.ctrlKey && !event.metaKey && Object.hasOwn(shortcuts, event.code) ? shortcuts[event.code] : null;
    if (action) action();
    if (action || (event.key === 'Escape' && escape())) event.preventDefault();
  });
}

// add(files): a promise; fail(message) hears of drops that hold no file.
export function initDrops({ add, fail }) {
  // Counts enters and leaves, because both come for every element on the way.
  let depth = 0;
  const enter = (change) => {
    depth = change === null ? 0 : Math.max(0, depth + change);
    document.body.classList.toggle('dropping', depth > 0);
  };
  document.addEventListener('dragenter', (event) => {
    if (!dragsFiles(event)) return;
    event.preventDefault();
    enter(1);
  });
  document.addEventListener('dragover', (event) => {
    if (dragsFiles(event) || dragsAddress(event)) event.preventDefault();
  });
  document.addEventListener('dragleave', (event) => {
    if (dragsFiles(event)) enter(-1);
  });
  document.addEventListener('drop', (event) => {
    enter(null);
    const files = filesOf(event.dataTransfer);
    // Text goes into fields as usual. Anything else must not make the browser leave the page.
    if (files.length === 0 && event.target.closest?.('textarea, input')) return;
    event.preventDefault();
    if (isDialogOpen()) return;
    if (files.length > 0) add(files);
    else if (event.dataTransfer.types.length > 0) fail('Only files can be dropped here. Save the picture first, or copy and paste it.');
  });
}

// Pictures on the clipboard go to `composer()`; text goes where the cursor is.
export function initPastes(composer) {
  document.addEventListener('paste', (event) => {
    if (!isDialogOpen()) composer().paste(event);
  });
}
