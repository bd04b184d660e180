// The page on the real server with the small model: QVL_SERVER=http://... one that runs, or QVL_BINARY=build/release/qvl to start one.
import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { existsSync, readFileSync } from 'node:fs';
import { test } from 'node:test';
import { addFiles, answers, ask, drawn, example, finishedAnswer, pageTest, until } from '../harness.mjs';

// Starts `qvl serve` on a free port with the small model; {url, stop}. The first line on stdout has the address.
async function startServer(binary) {
  const child = spawn(binary, ['serve', '--port', '0', '--image-memory', 'off'], { stdio: ['ignore', 'pipe', 'pipe'] });
  let [out, errors] = ['', ''];
  const url = await new Promise((resolve, reject) => {
    const timer = setTimeout(() => reject(new Error(`qvl serve said nothing in 20 s: ${errors}`)), 20_000);
    const settle = (action, value) => {
      clearTimeout(timer);
      action(value);
    };
    child.stderr.on('data', (data) => { errors += data; });
    child.stdout.on('data', (data) => {
      out += data;
      const address = out.match(/http:\/\/[\w.:[\]]+/);
      if (address && out.includes('\n')) settle(resolve, address[0]);
    });
    child.on('error', (error) => settle(reject, error));
    child.on('exit', (code) => settle(reject, new Error(`qvl serve ended with ${code}: ${errors}`)));
  });
  const ended = new Promise((resolve) => child.on('exit', resolve));
  return { url: url.replace(/\/$/, ''), stop: async () => {
    child.kill('SIGTERM');
    return ended;
  } };
}

const binary = process.env.QVL_BINARY;
const hasServer = binary && existsSync(binary) && await helpNamesServe();

async function helpNamesServe() {
  const child = spawn(binary, ['--help'], { stdio: ['ignore', 'pipe', 'ignore'] });
  let text = '';
  for await (const data of child.stdout) text += data;
  return /^\s*serve\b/m.test(text);
}

if (process.env.QVL_SERVER || hasServer) {
  const server = process.env.QVL_SERVER ? { url: process.env.QVL_SERVER.replace(/\/$/, ''), stop: async () => 0 } : await startServer(binary);

  pageTest('real server: asks about the example, streams, draws its box, remembers the picture', { url: server.url }, async ({ page, shot }) => {
    assert.notEqual(await page.locator('#model').textContent(), '');
    await addFiles(page, example);
    await ask(page, 'How many circles are there?');
    assert.equal((await answers(page).locator('.answer-text').textContent()).trim(), '2');
    await page.locator('details.facts summary').click();
    assert.equal(await page.locator('.facts tbody td').first().textContent(), '192 × 160');
    await ask(page, 'Where is the blue square?');
    await page.locator('figure.grounded .label', { hasText: 'blue square' }).waitFor();
    const box = await page.locator('.overlay .box rect.line').evaluate((rect) => ['x', 'y', 'width', 'height'].map((name) => Number(rect.getAttribute(name))));
    // The square of the picture: 69..109 x 96..136.
    const iou = overlap([box[0], box[1], box[0] + box[2], box[1] + box[3]], [69, 96, 109, 136]);
    assert.ok(iou > 0.6, `IoU ${iou} of ${box}`);
    await page.locator('details.facts summary').last().click();
    assert.equal(await page.locator('.facts tbody td').last().textContent(), 'from memory');
    await shot('real');
  });

  pageTest('real server: a picture is read before it is asked about', { url: server.url }, async ({ page }) => {
    const pictures = async () => Number((await (await fetch(`${server.url}/metrics`)).text()).match(/^qvl_images_total\{memory="miss"\} (\d+)/m)[1]);
    const before = await pictures();
    await addFiles(page, { name: 'new.png', mimeType: 'image/png', buffer: await drawn(160, 120, [['#ffffff', 0, 0, 160, 120], ['#ff0000', 40, 30, 60, 60]]) });
    await until(async () => await pictures() > before);
    await ask(page, 'How many shapes are there?');
    await page.locator('details.facts summary').click();
    assert.equal(await page.locator('.facts tbody td').last().textContent(), 'from memory');
    const rows = Object.fromEntries(await page.locator('details.facts dl div').evaluateAll((divs) => divs.map((div) => [div.children[0].textContent, div.children[1].textContent])));
    assert.ok(Number.parseInt(rows['of these from memory'], 10) >= Number.parseInt(rows['of these pictures'], 10), JSON.stringify(rows));
  });

  pageTest('real server: an error in its own words, and the way on', { url: server.url, expectConsole: /Failed to load resource/ }, async ({ page }) => {
    // Broken behind its header: the browser shows it, the server must refuse it.
    const png = readFileSync(example);
    await addFiles(page, { name: 'cut.png', mimeType: 'image/png', buffer: png });
    await page.evaluate(() => {
      const { fetch } = window;
      window.fetch = (path, options) => fetch(path, { ...options, body: options?.body?.replace(/(base64,[\w+/]{200})[\w+/=]*/, '$1') });
    });
    await ask(page, 'Describe this image.');
    assert.equal((await page.locator('.failure-title').textContent()).trim(), 'A picture could not be read');
    await page.reload();
    await page.waitForSelector('html[data-ready="true"]');
    await page.getByRole('button', { name: 'Try again' }).click();
    await finishedAnswer(page);
    assert.match(await answers(page).locator('.answer-text').textContent(), /red circle/);
  });

  test('real server: stops when it is told to', async () => {
    assert.equal(await server.stop(), 0);
  });
} else {
  console.error(`SKIPPED: the page on the real server (${binary ? `${binary} has no command serve` : 'QVL_BINARY is not set'})`);
}

function overlap(a, b) {
  const width = Math.max(0, Math.min(a[2], b[2]) - Math.max(a[0], b[0]));
  const height = Math.max(0, Math.min(a[3], b[3]) - Math.max(a[1], b[1]));
  const area = (r) => (r[2] - r[0]) * (r[3] - r[1]);
  return (width * height) / (area(a) + area(b) - width * height);
}
