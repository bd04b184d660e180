// A photograph from the computer's camera: preview in a dialog, one picture out. The camera is on only while the dialog is open.
import { byId } from './dom.js';
import { canvasBlob } from './pictures.js';

// Browsers give cameras to secure contexts alone (https, localhost).
export function hasCamera() { return Boolean(navigator.mediaDevices?.getUserMedia); }

const REASONS = { NotAllowedError: 'the browser does not allow it', NotFoundError: 'there is none',
  NotReadableError: 'another program uses it' };

// A JPEG file of what the camera saw, or null when the person changed their mind. onerror(message) hears of a camera that
// cannot be used.
export async function takePhoto(onerror) {
  const dialog = byId('camera');
  const video = dialog.querySelector('video');
  let stream;
  try {
    stream = await navigator.mediaDevices.getUserMedia({ audio: false, video: { facingMode: 'environment', width: { ideal: 4096 }, height: { ideal: 2160 } } });
  } catch (error) {
    onerror(`The camera cannot be used: ${REASONS[error.name] ?? error.message}.`);
    return null;
  }
  video.srcObject = stream;
  dialog.returnValue = '';
  dialog.showModal();
  try {
    await video.play();
    await new Promise((resolve) => dialog.addEventListener('close', resolve, { once: true }));
    if (dialog.returnValue !== 'take') return null;
    const canvas = document.createElement('canvas');
    canvas.width = video.videoWidth;
    canvas.height = video.videoHeight;
    canvas.getContext('2d').drawImage(video, 0, 0);
    const blob = await canvasBlob(canvas, 'image/jpeg', 0.95);
    const time = new Date().toISOString().slice(0, 19).replace(/[T:]/g, '-');
    return new File([blob], `photo-${time}.jpg`, { type: 'image/jpeg' });
  } catch (error) {
    onerror(`The camera cannot be used: ${error.message}.`);
    return null;
  } finally {
    stream.getTracks().forEach((track) => track.stop());
    video.srcObject = null;
    if (dialog.open) dialog.close();
  }
}
