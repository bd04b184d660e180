// A picture is read while its question is typed: by a request of its own that the question waits for, and that ends where nobody
// wants it any more.
import assert from 'node:assert/strict';
import { addFiles, answers, ask, drawn, example, field, finishedAnswer, gate, hasCount, mock, pageTest, parts, until } from '../harness.mjs';
import { answer, failure } from '../mock_server.mjs';

pageTest('pictures are read once, before the question and behind everybody else', async ({ page }) => {
  await addFiles(page, example);
  await until(() => mock.preparations.length === 1);
  await field(page).pressSequentially('How many?');
  await page.waitForTimeout(400);
  await ask(page, 'How many are there?');
  assert.equal(mock.preparations.length, 1);
  assert.equal(mock.requests.length, 1);
  const [prepared, asked] = [mock.preparations[0].body, mock.requests[0].body];
  assert.deepEqual([prepared.priority, prepared.max_tokens], [1, 1]);
  assert.deepEqual([asked.priority, asked.max_tokens], [undefined, undefined]);
  assert.deepEqual(parts(mock.preparations[0]), parts(mock.requests[0]).slice(0, 1));
  assert.equal(mock.preparations[0].gone, false);
  // In a conversation, too, with all that was said.
  mock.fallback = () => answer('Two.');
  await addFiles(page, { name: 'red.png', mimeType: 'image/png', buffer: await drawn(80, 60, [['#ff0000', 0, 0, 80, 60]]) });
  await until(() => mock.preparations.length === 2);
  assert.deepEqual(mock.preparations[1].body.messages.map((message) => message.role), ['user', 'assistant', 'user']);
});

pageTest('a question waits for its picture, and shows how far it is', async ({ page, shot }) => {
  const read = gate();
  mock.preparation = () => ({ steps: [{ progress: { phase: 'vision', done: 30, total: 120 } }, { wait: read.wait }, ...answer('It').steps] });
  await addFiles(page, example);
  await until(() => mock.preparations.length === 1);
  await ask(page, 'How many?', { finished: false });
  await page.locator('.activity').getByText('Looking at the picture').waitFor();
  await page.waitForFunction(() => document.querySelector('.activity progress').value === 0.25);
  await shot('waits-for-picture');
  assert.equal(mock.requests.length, 0);
  read.open();
  await finishedAnswer(page);
  assert.equal(mock.requests.length, 1);
  assert.equal(mock.preparations[0].gone, false);
});

pageTest('stop ends it while the question waits', async ({ page }) => {
  const never = gate();
  mock.preparation = () => ({ steps: [{ wait: never.wait }] });
  await addFiles(page, example);
  await until(() => mock.preparations.length === 1);
  await ask(page, 'How many?', { finished: false });
  await page.getByRole('button', { name: 'Stop' }).click();
  await mock.preparations[0].closed;
  assert.equal(mock.preparations[0].gone, true);
  never.open();
  await finishedAnswer(page);
  assert.match(await answers(page).locator('.note').textContent(), /^Stopped/);
  assert.equal(mock.requests.length, 0);
});

pageTest('a picture that is taken away, or joined by another, is given up', async ({ page }) => {
  const never = gate();
  mock.preparation = () => ({ steps: [{ wait: never.wait }] });
  await addFiles(page, example);
  await until(() => mock.preparations.length === 1);
  await page.locator('#composer input[type="file"][multiple]').setInputFiles({ name: 'red.png', mimeType: 'image/png', buffer: await drawn(80, 60, [['#ff0000', 0, 0, 80, 60]]) });
  await until(() => mock.preparations.length === 2);
  await mock.preparations[0].closed;
  assert.equal(mock.preparations[0].gone, true);
  assert.deepEqual(parts(mock.preparations[1]).map((part) => part.type), ['image_url', 'image_url']);
  for (const left of [1, 0]) {
    await page.getByRole('button', { name: /^Remove / }).first().click();
    await hasCount(page.locator('#composer .thumb'), left);
  }
  await mock.preparations[1].closed;
  assert.equal(mock.preparations[1].gone, true);
  never.open();
});

pageTest('where it fails the question is asked all the same', { expectConsole: /Failed to load resource/ }, async ({ page }) => {
  mock.preparation = () => failure(429, 'rate_limit_exceeded', '64 requests wait.');
  await addFiles(page, example);
  await until(() => mock.preparations.length === 1);
  await ask(page, 'How many?');
  assert.equal(mock.requests.length, 1);
  assert.equal(await page.locator('.notice').count(), 0);
});

pageTest('it can be switched off', async ({ page }) => {
  await page.getByRole('button', { name: 'Settings' }).click();
  await page.getByLabel('Read pictures while their question is typed').uncheck();
  await page.getByRole('button', { name: 'Done' }).click();
  await addFiles(page, example);
  await page.waitForTimeout(600);
  await ask(page, 'How many?');
  assert.equal(mock.preparations.length, 0);
  assert.equal(mock.requests.length, 1);
});
