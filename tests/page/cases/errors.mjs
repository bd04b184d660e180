// What goes wrong is said in words, keeps what was there, and offers the way on.
import assert from 'node:assert/strict';
import { addFiles, answers, ask, example, finishedAnswer, hasCount, mock, pageTest } from '../harness.mjs';
import { answer, failure } from '../mock_server.mjs';

// Chromium writes every failed request on the console itself.
const NETWORK = /Failed to load resource|net::ERR_/;
const failures = (page) => page.locator('.failure');
const title = async (page) => (await failures(page).locator('.failure-title').textContent()).trim();

const STATUSES = [
  ['413', failure(413, 'request_too_large', 'The request has more than 64 MB.'), 'Too large for this server', 'more than 64 MB'],
  ['413 of a proxy', { status: 413, body: '<html>too large</html>' }, 'Too large for this server', 'status 413'],
  ['500', failure(500, 'internal_error', 'Something went wrong in the server.'), 'The server failed', 'Something went wrong'],
  ['context', failure(400, 'context_length_exceeded', 'The prompt has 41,230 tokens.'), 'More than the model can read at once', '41,230'],
  ['a picture', failure(400, 'image_parse_error', '[messages[0]] PNG: broken chunk.'), 'A picture could not be read', 'broken chunk'],
  ['a refusal', failure(400, 'invalid_value', 'temperature is too hot.'), 'The server refused the request', 'too hot'],
  // Chromium itself sends a request again after a 408 on a connection that was used before; in the stream it cannot.
  ['of time', { steps: [{ error: { message: 'More than 600 s.', type: 'server_error', param: null, code: 'request_timeout' } }] }, 'The server took too long', '600 s'],
];
pageTest('refusals and failures: said, and the same place is asked again', { expectConsole: NETWORK }, async ({ page, shot }) => {
  for (const [name, reply, expected, detail] of STATUSES) {
    mock.replies.push(reply, answer('Now.'));
    await addFiles(page, example);
    await ask(page, 'What?');
    assert.equal(await title(page), expected);
    assert.match(await failures(page).textContent(), new RegExp(detail.replace(/[[\]()]/g, '\\$&')));
    assert.match(await page.locator('#live').textContent(), /^Failed: /);
    await shot(`error-${name.replace(/\W/g, '-')}`);
    await page.getByRole('button', { name: 'Try again' }).click();
    await page.locator('.answer-text', { hasText: 'Now.' }).waitFor();
    await hasCount(page.locator('article'), 2);
    assert.equal(await page.locator('.branches:not([hidden])').count(), 0, 'a failure is no version');
    await page.getByRole('button', { name: 'New conversation' }).click();
  }
});

pageTest('401: the key is asked for, sent, kept for the tab alone, and a wrong one is told', { expectConsole: NETWORK, setUp: (server) => { server.models.key = 'right-key'; } }, async ({ page, open, shot }) => {
  const dialog = page.getByRole('dialog', { name: 'API key' });
  await dialog.waitFor();
  await shot('key');
  assert.ok(await page.getByLabel('Key', { exact: true }).evaluate((e) => e === document.activeElement && e.type === 'password'));
  await page.keyboard.type('wrong-key');
  await page.keyboard.press('Enter');
  await dialog.getByRole('button', { name: 'Cancel' }).waitFor();
  await dialog.getByRole('button', { name: 'Cancel' }).click();
  mock.replies.push(failure(401, 'invalid_api_key', 'This API key is not known.'), answer('Welcome.'));
  await ask(page, 'Let me in');
  assert.equal(mock.requests[0].key, 'wrong-key');
  assert.equal(await title(page), 'The server does not accept this API key');
  await page.getByRole('button', { name: 'Enter the API key' }).click();
  await page.keyboard.type('right-key');
  await page.keyboard.press('Enter');
  await page.locator('.answer-text', { hasText: 'Welcome.' }).waitFor();
  assert.equal(mock.requests[1].key, 'right-key');
  assert.equal(await page.locator('#model').textContent(), 'small');
  assert.deepEqual(await page.evaluate(() => [sessionStorage.getItem('qvl.key'), localStorage.getItem('qvl.key')]), ['right-key', null]);
  const other = await open();
  await other.getByRole('dialog', { name: 'API key' }).waitFor();
});

pageTest('429: counts down as the server says, asks again by itself, or not', { expectConsole: NETWORK }, async ({ page, shot }) => {
  const busy = (message) => failure(429, 'rate_limit_exceeded', message, { 'Retry-After': '60' });
  await page.clock.install();
  mock.replies.push(busy('64 requests wait.'), answer('There was room.'));
  await ask(page, 'Now?');
  await page.getByText(/Asking again in (60|5\d) s/).waitFor();
  assert.equal(await title(page), 'The server is busy');
  await shot('busy');
  await page.clock.fastForward(60_000);
  await page.locator('.answer-text', { hasText: 'There was room.' }).waitFor();
  assert.equal(mock.requests.length, 2);
  // A click is quicker, "Do not ask again" is the end of it.
  mock.replies.push(busy('64 requests wait.'), busy('Still.'));
  await ask(page, 'And now?');
  await page.getByRole('button', { name: 'Try again' }).click();
  await failures(page).getByText('Still.').waitFor();
  await page.getByRole('button', { name: 'Do not ask again' }).click();
  await page.clock.fastForward(120_000);
  assert.equal(await page.locator('.wait').textContent(), '');
  assert.equal(mock.requests.length, 4);
  // By itself it asks three times, then it waits for a person.
  mock.replies.push(...[1, 2, 3, 4].map((i) => busy(`Round ${i}.`)));
  await ask(page, 'Patience');
  for (const i of [1, 2, 3]) {
    await failures(page).last().getByText(`Round ${i}.`).waitFor();
    await page.clock.fastForward(60_000);
  }
  await failures(page).last().getByText('Round 4.').waitFor();
  await failures(page).last().getByText('It may have room').waitFor();
  await page.clock.fastForward(60_000);
  assert.equal(mock.requests.length, 8);
});

pageTest('Retry-After may be a date', async ({ page }) => {
  const got = await page.evaluate(async () => {
    const { retryAfter } = await import('/page/api.js');
    const now = Date.parse('2026-01-01T00:00:00Z');
    return [retryAfter('7', now), retryAfter('Thu, 01 Jan 2026 00:00:30 GMT', now), retryAfter('Wed, 31 Dec 2025 00:00:00 GMT', now), retryAfter(null), retryAfter('soon')];
  });
  assert.deepEqual(got, [7, 30, 0, null, null]);
});

pageTest('the connection breaks in the middle: what came is kept', { expectConsole: NETWORK }, async ({ page, shot }) => {
  let cut;
  mock.replies.push({ steps: ['Half of ', { wait: new Promise((resolve) => { cut = resolve; }) }, { cut: true }] }, { steps: ['No end.'] },
    { steps: ['Some ', { error: { message: 'A stage failed.', type: 'server_error', param: null, code: 'internal_error' } }] }, { steps: [{ raw: 'data: {nonsense\n\n' }] });
  await ask(page, 'One', { finished: false });
  await page.locator('.answer-text', { hasText: 'Half of' }).waitFor();
  cut();
  assert.equal(await title(page), 'The connection broke off');
  assert.equal(await page.locator('.answer-text').textContent().then((text) => text.trim()), 'Half of');
  await shot('broken');
  // With words in it the failed answer is a version of its own.
  await page.getByRole('button', { name: 'Try again' }).click();
  await failures(page).getByText('The server ended the answer without finishing it.').waitFor();
  assert.match(await page.locator('.branches:not([hidden]) > span').textContent(), /^2 \/ 2/);
  await page.getByRole('button', { name: 'Try again' }).click();
  await failures(page).getByText('A stage failed.').waitFor();
  await page.getByRole('button', { name: 'Try again' }).click();
  await failures(page).getByText('not JSON').waitFor();
});

pageTest('the server is gone and comes back', { expectConsole: NETWORK }, async ({ page, shot }) => {
  const { port } = mock;
  await mock.stop();
  try {
    await ask(page, 'Anyone?');
    assert.equal(await title(page), 'The server does not answer');
    await page.getByRole('alert').filter({ hasText: 'does not answer' }).waitFor();
    await shot('gone');
  } finally {
    await mock.start(port);
  }
  await page.getByRole('button', { name: 'Look again' }).click();
  await page.locator('#gone').waitFor({ state: 'hidden' });
  await page.getByRole('button', { name: 'Try again' }).click();
  await finishedAnswer(page);
  await hasCount(failures(page), 0);
  await hasCount(answers(page), 1);
});
