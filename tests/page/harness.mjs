// A browser for all tests, a fresh profile and a fresh server state for each, and what must be true after every test: nothing on the
// console, no violation of the security policy, no request to another host.
import assert from 'node:assert/strict';
import { existsSync, mkdirSync, readFileSync } from 'node:fs';
import { createRequire } from 'node:module';
import { basename, dirname, join } from 'node:path';
import { test } from 'node:test';
import { fileURLToPath } from 'node:url';
import { MockServer } from './mock_server.mjs';

export const root = join(dirname(fileURLToPath(import.meta.url)), '..', '..');
const modules = process.env.QVL_PAGE_MODULES ?? join(root, 'build/third_party/page-tests');
export const libraries = process.env.QVL_PAGE_LIBRARIES ?? join(root, 'build/third_party/page');
// Nothing waits this long on a quiet machine.
const patience = 30_000;
const shots = process.env.QVL_PAGE_SCREENSHOTS;
// How many times slower the page's thread shall run: a test that does not wait for what it asserts fails at 10.
const slowness = Number(process.env.QVL_PAGE_SLOWNESS ?? 1);

// Why the tests cannot run here, or null.
export function missing() {
  if (!existsSync(join(modules, 'node_modules/playwright-core'))) return `playwright-core in ${modules} (tests/page/setup.sh)`;
  if (!chromiumPath()) return 'Chromium (Debian: chromium-headless-shell; or QVL_CHROMIUM=/path)';
  if (!existsSync(join(libraries, 'marked.js'))) return `the page's libraries in ${libraries} (scripts/lib/page.sh)`;
  return null;
}

function chromiumPath() {
  // The shell is the same Chromium without windows: it takes less than half of the time.
  return [process.env.QVL_CHROMIUM, '/usr/bin/chromium-headless-shell', '/usr/bin/chromium', '/usr/bin/chromium-browser', '/usr/bin/google-chrome'].find((path) => path && existsSync(path));
}

const required = createRequire(join(modules, 'package.json'));
export const axePath = () => required.resolve('axe-core/axe.min.js');

let browser;
let scratch;  // a page without a policy, to decode pictures in
export const mock = new MockServer({ libraries });

export async function startAll() {
  const { chromium } = required('playwright-core');
  browser = await chromium.launch({ executablePath: chromiumPath(), args: ['--no-sandbox', '--disable-dev-shm-usage', '--disable-gpu',
    '--use-fake-device-for-media-stream', '--use-fake-ui-for-media-stream'] });
  scratch = await (await browser.newContext()).newPage();
  await mock.start();
  if (shots) mkdirSync(shots, { recursive: true });
}

export async function stopAll() {
  await browser?.close();
  await mock.stop();
}

// A test of the page. `run({page, context, shot, url, open})`. Options: width, height, dark, reducedMotion, touch, url (of another server),
// expectConsole: a pattern of console errors that the test provokes, setUp(mock): before the page opens, prepare(context).
export function pageTest(name, options, run) {
  if (typeof options === 'function') return pageTest(name, {}, options);
  return test(name, { timeout: 5 * patience }, async () => {
    mock.reset();
    await options.setUp?.(mock);
    const context = await browser.newContext({ viewport: { width: options.width ?? 1000, height: options.height ?? 800 },
      colorScheme: options.dark ? 'dark' : 'light', reducedMotion: options.reducedMotion ?? 'reduce', hasTouch: Boolean(options.touch), isMobile: Boolean(options.touch),
      acceptDownloads: true, permissions: options.permissions ?? [] });
    context.setDefaultTimeout(patience);
    await context.addInitScript(() => {
      window.violations = [];
      document.addEventListener('securitypolicyviolation', (event) => window.violations.push(`${event.violatedDirective} ${event.blockedURI} ${event.sample}`));
    });
    const problems = [];
    const url = options.url ?? mock.url;
    context.on('request', (request) => {
      if (!request.url().startsWith(`${url}/`) && !/^(blob|data):/.test(request.url())) problems.push(`request to ${request.url()}`);
    });
    const watch = (page) => {
      page.on('console', (message) => {
        if (['error', 'warning'].includes(message.type()) && !options.expectConsole?.test(message.text())) problems.push(`console: ${message.text()}`);
      });
      page.on('pageerror', (error) => problems.push(`exception: ${error.stack ?? error}`));
    };
    const open = async () => {
      const page = await context.newPage();
      watch(page);
      if (slowness > 1) await (await context.newCDPSession(page)).send('Emulation.setCPUThrottlingRate', { rate: slowness });
      await page.goto(`${url}/`);
      await page.waitForSelector('html[data-ready="true"]');
      return page;
    };
    let page;
    const shot = async (label) => {
      if (shots) await page.screenshot({ path: join(shots, `${label}.png`) });
    };
    try {
      page = await open();
      await run({ page, context, shot, url, open });
      for (const each of context.pages()) {
        if (!each.isClosed()) assert.deepEqual(await each.evaluate(() => window.violations ?? []), [], 'security policy');
      }
      assert.deepEqual(problems, []);
    } catch (error) {
      if (shots) await page?.screenshot({ path: join(shots, `failed-${name.replace(/\W+/g, '-')}.png`) }).catch(() => {});
      if (problems.length > 0 && !error.message.includes(problems[0])) error.message += `\n(${problems.join('\n')})`;
      throw error;
    } finally {
      await context.close();
    }
  });
}

// ---- Doing -----------------------------------------------------------------------------------------------------------------

export const field = (page) => page.getByRole('textbox', { name: 'Your question' });

// Types and sends; with `finished` waits for the end of the answer.
export async function ask(page, text, { finished = true } = {}) {
  await field(page).fill(text);
  await field(page).press('Enter');
  if (finished) await finishedAnswer(page);
}

export const answers = (page) => page.locator('article.answer');

export async function finishedAnswer(page) {
  await page.locator('article.answer[aria-busy="true"]').waitFor({ state: 'detached' });
  await page.locator('article.answer[aria-busy="false"]').last().waitFor();
}

// The page finishes what a click began when it can (a picture is decoded, the browser's store answers): what it then shows is
// waited for.
export async function hasCount(locator, expected) {
  const until = Date.now() + patience;
  while (await locator.count() !== expected && Date.now() < until) await new Promise((resolve) => setTimeout(resolve, 20));
  assert.equal(await locator.count(), expected, String(locator));
}

// The same for a dialog: the conversations are read from the browser's store before theirs opens.
export const opened = (page) => page.locator('dialog[open]').waitFor();

// What a server has heard or done, which the page does not show.
export async function until(condition) {
  for (const end = Date.now() + patience; !await condition() && Date.now() < end;) await new Promise((resolve) => setTimeout(resolve, 20));
  assert.ok(await condition(), String(condition));
}

// A promise and the function that fulfils it.
export function gate() {
  let open;
  return { wait: new Promise((resolve) => { open = resolve; }), open };
}

// The content of the last message that the server got with a request.
export const parts = (request) => request.body.messages.at(-1).content;

// `files`: paths, or {name, mimeType, buffer}.
export async function addFiles(page, ...files) {
  const payloads = files.map((file) => (typeof file === 'string' ? { name: basename(file), mimeType: 'image/png', buffer: readFileSync(file) } : file));
  await page.locator('#composer input[type="file"][multiple]').setInputFiles(payloads);
  await page.locator('#composer .thumb').nth(files.length - 1).waitFor();
}

// The next Tab goes to the first thing of the page.
export const fromTheTop = (page) => page.evaluate(() => {
  document.body.tabIndex = -1;
  document.body.focus();
  document.body.removeAttribute('tabindex');
});

export const example = join(root, 'examples/shapes.png');

// ---- Pictures --------------------------------------------------------------------------------------------------------------

// Draws rectangles [[colour, x, y, width, height], ...]; a Buffer of the encoded picture.
export async function drawn(width, height, rectangles, type = 'image/png') {
  const bytes = await scratch.evaluate(async ([w, h, list, mime]) => {
    const canvas = document.createElement('canvas');
    canvas.width = w;
    canvas.height = h;
    const context = canvas.getContext('2d');
    for (const [colour, ...place] of list) {
      context.fillStyle = colour;
      context.fillRect(...place);
    }
    const blob = await new Promise((resolve) => canvas.toBlob(resolve, mime, 0.95));
    return [...new Uint8Array(await blob.arrayBuffer())];
  }, [width, height, rectangles, type]);
  return Buffer.from(bytes);
}

// A JPEG with an EXIF orientation (1 to 8) put in front of its other segments.
export function withOrientation(jpeg, orientation) {
  const tiff = Buffer.from([0x49, 0x49, 0x2a, 0, 8, 0, 0, 0, 1, 0, 0x12, 0x01, 3, 0, 1, 0, 0, 0, orientation, 0, 0, 0, 0, 0, 0, 0]);
  const body = Buffer.concat([Buffer.from('Exif\0\0', 'latin1'), tiff]);
  const head = Buffer.from([0xff, 0xe1, (body.length + 2) >> 8, (body.length + 2) & 255]);
  return Buffer.concat([jpeg.subarray(0, 2), head, body, jpeg.subarray(2)]);
}

// {width, height, at: [[r, g, b, a], ...]} of an encoded picture at some places.
export async function pixels(bytes, places) {
  return scratch.evaluate(async ([base64, list]) => {
    const image = new Image();
    image.src = `data:image/png;base64,${base64}`;
    await image.decode();
    const canvas = document.createElement('canvas');
    canvas.width = image.naturalWidth;
    canvas.height = image.naturalHeight;
    const context = canvas.getContext('2d');
    context.drawImage(image, 0, 0);
    return { width: canvas.width, height: canvas.height, at: list.map(([x, y]) => [...context.getImageData(x, y, 1, 1).data]) };
  }, [bytes.toString('base64'), places]);
}

export function assertClose(got, expected, tolerance, what) {
  assert.equal(got.length, expected.length, what);
  got.forEach((value, i) => assert.ok(Math.abs(value - expected[i]) <= tolerance, `${what}: expected ${expected}, got ${got}`));
}
