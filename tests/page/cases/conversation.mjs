// Asking again, editing, branches, copying, and what is kept, exported, imported and forgotten.
import assert from 'node:assert/strict';
import { readFile } from 'node:fs/promises';
import { addFiles, answers, ask, example, field, finishedAnswer, hasCount, mock, opened, pageTest } from '../harness.mjs';
import { answer, SHAPES } from '../mock_server.mjs';

const answerText = async (page) => (await answers(page).last().locator('.answer-text').textContent()).trim();
const branch = (page) => page.locator('.branches:not([hidden]) > span');

pageTest('ask again makes a version beside the old one', async ({ page }) => {
  mock.replies.push(answer('First.'), answer('Second.'));
  await ask(page, 'Say.');
  await page.getByRole('button', { name: 'Ask again' }).click();
  await finishedAnswer(page);
  assert.equal(await answerText(page), 'Second.');
  assert.match(await branch(page).textContent(), /^2 \/ 2/);
  assert.deepEqual(mock.requests[0].body.messages, mock.requests[1].body.messages);
  await page.getByRole('button', { name: 'Earlier version' }).click();
  assert.equal(await answerText(page), 'First.');
  // The next question follows what is shown.
  await ask(page, 'And?');
  assert.equal(mock.requests[2].body.messages[1].content, 'First.');
});

pageTest('editing a question branches the conversation from there', async ({ page, shot }) => {
  mock.replies.push(answer('One.'), answer('Two.'), answer('Three.'));
  await addFiles(page, example);
  await ask(page, 'How many circels?');
  await ask(page, 'Sure?');
  await page.locator('article.question').first().getByRole('button', { name: 'Edit' }).click();
  const editor = page.getByRole('textbox', { name: 'Edit the question' });
  assert.equal(await editor.inputValue(), 'How many circels?');
  assert.ok(await editor.evaluate((e) => e === document.activeElement));
  await hasCount(page.locator('.editing .thumb'), 1);
  await shot('editing');
  // Escape leaves everything as it was.
  await editor.press('Escape');
  await hasCount(page.locator('article'), 4);
  await page.locator('article.question').first().getByRole('button', { name: 'Edit' }).click();
  await editor.fill('How many circles?');
  await editor.press('Enter');
  await finishedAnswer(page);
  await hasCount(page.locator('article'), 2);
  assert.equal(await answerText(page), 'Three.');
  const [message] = mock.requests[2].body.messages;
  assert.equal(mock.requests[2].body.messages.length, 1);
  assert.equal(message.content[1].text, 'How many circles?');
  assert.equal(message.content[0].image_url.url, mock.requests[0].body.messages[0].content[0].image_url.url);
  await page.getByRole('button', { name: 'Earlier version' }).click();
  await hasCount(page.locator('article'), 4);
  assert.equal(await answerText(page), 'Two.');
});

pageTest('copy an answer, also where the page is not in a secure context', { permissions: ['clipboard-read', 'clipboard-write'] }, async ({ page }) => {
  mock.replies.push(answer('Some **bold** answer.'));
  await ask(page, 'Say.');
  await answers(page).getByRole('button', { name: 'Copy' }).click();
  await answers(page).locator('.done').waitFor();
  assert.equal(await page.evaluate(() => navigator.clipboard.readText()), 'Some **bold** answer.');
  await page.evaluate(async () => {
    await navigator.clipboard.writeText('');
    navigator.clipboard.writeText = undefined;
  });
  await page.locator('article.question').getByRole('button', { name: 'Copy' }).click();
  await page.locator('article.question .done').waitFor();
  assert.equal(await page.evaluate(() => navigator.clipboard.readText()), 'Say.');
});

pageTest('a conversation is there again after a reload and in another tab', async ({ page, open }) => {
  mock.replies.push(answer('Here.', SHAPES));
  await addFiles(page, example);
  await ask(page, 'Where is the star?');
  await page.reload();
  await answers(page).waitFor();
  assert.equal(await answerText(page), 'Here.');
  await page.locator('figure.grounded .label').first().waitFor();
  assert.equal(await page.locator('.gallery img').evaluate((image) => image.decode().then(() => image.naturalWidth)), 192);
  await ask(page, 'Again?');
  assert.equal(mock.requests[1].body.messages[0].content[0].image_url.url, mock.requests[0].body.messages[0].content[0].image_url.url);
  const other = await open();
  await ask(other, 'From the other tab');
  await page.getByText('From the other tab').waitFor();
  // Closed in the middle of an answer: what had come is kept and called incomplete.
  mock.replies.push({ steps: ['Begun', { wait: 100_000 }] });
  await other.close();
  await ask(page, 'Long?', { finished: false });
  await page.locator('.answer-text', { hasText: 'Begun' }).waitFor();
  await page.reload();
  await answers(page).last().getByText('Stopped. The answer is not complete.').waitFor();
});

pageTest('several conversations: new, open, delete', async ({ page, shot }) => {
  await ask(page, 'The first conversation');
  await page.getByRole('button', { name: 'New conversation' }).click();
  await page.getByRole('heading', { name: 'Ask about a picture' }).waitFor();
  await ask(page, 'The second conversation');
  await page.getByRole('button', { name: 'Conversations', exact: true }).click();
  const list = page.locator('.conversation');
  await hasCount(list, 2);
  assert.deepEqual(await list.locator('.conversation-title').allTextContents(), ['The second conversation', 'The first conversation']);
  await shot('conversations');
  await list.nth(1).click();
  await page.locator('.bubble', { hasText: 'The first conversation' }).waitFor();
  assert.equal(await page.title(), 'The first conversation – qvl');
  await page.getByRole('button', { name: 'Conversations', exact: true }).click();
  await page.getByRole('button', { name: 'Delete “The first conversation”' }).click();
  await page.getByRole('button', { name: 'Cancel' }).click();
  await hasCount(list, 2);
  await page.getByRole('button', { name: 'Delete “The first conversation”' }).click();
  await page.getByRole('button', { name: 'Delete', exact: true }).click();
  await page.waitForFunction(() => document.querySelectorAll('.conversation').length === 1);
  await page.getByRole('heading', { name: 'Ask about a picture' }).waitFor({ state: 'attached' });
});

pageTest('export and import bring everything back; damaged files leave nothing', async ({ page, shot }) => {
  mock.replies.push(answer('Here **it** is.', { ...SHAPES, reasoning: 'Hm.' }), answer('Other.'));
  await addFiles(page, example);
  await ask(page, 'Where is the star?');
  await page.getByRole('button', { name: 'Ask again' }).click();
  await finishedAnswer(page);
  await page.getByRole('button', { name: 'Earlier version' }).click();
  await page.getByRole('button', { name: 'Conversations', exact: true }).click();
  await opened(page);
  const save = async (name) => {
    const [download] = await Promise.all([page.waitForEvent('download'), page.getByRole('button', { name }).click()]);
    return [download.suggestedFilename(), await readFile(await download.path(), 'utf8')];
  };
  const [markdownName, markdown] = await save('Export as Markdown');
  assert.equal(markdownName, 'Where-is-the-star.md');
  assert.equal(markdown, '# Where is the star?\n\n## Question\n\n*Picture: shapes.png (192 × 160)*\n\nWhere is the star?\n\n## Answer\n\nHere **it** is.\n');
  const [jsonName, json] = await save('Export as JSON');
  assert.equal(jsonName, 'Where-is-the-star.json');
  const file = JSON.parse(json);
  assert.equal(file.format, 'qvl-conversation');
  assert.deepEqual(Buffer.from(file.pictures[0].data, 'base64'), await readFile(example));

  const importing = (text) => page.locator('#import-file').setInputFiles({ name: 'x.json', mimeType: 'application/json', buffer: Buffer.from(text) });
  const broken = (change) => {
    const copy = JSON.parse(json);
    change(copy);
    return JSON.stringify(copy);
  };
  const cases = [['{', 'the file is not JSON'], ['{}', '"format" is not'], [broken((f) => { f.version = 99; }), 'its version is 99'],
    [broken((f) => { f.conversation.nodes[0].parent = 'nobody'; }), 'follows a message that is not in the file'],
    [broken((f) => { f.conversation.nodes[0].role = 'system'; }), 'neither user nor assistant'],
    [broken((f) => { f.pictures[0].id = 'else'; }), 'names a picture that is not in the file'],
    [broken((f) => { f.pictures[0].data = Buffer.from('<svg xmlns="http://www.w3.org/2000/svg"/>').toString('base64'); }), 'could not be read']];
  for (const [text, message] of cases) {
    await importing(text);
    await page.locator('.notice', { hasText: message }).first().waitFor({ state: 'attached' });
  }
  await hasCount(page.locator('.conversation'), 1);
  await importing(json);
  await page.getByRole('dialog', { name: 'Conversations' }).waitFor({ state: 'hidden' });
  assert.equal(await answerText(page), 'Here it is.');
  assert.match(await branch(page).textContent(), /^1 \/ 2/);
  await hasCount(page.locator('figure.grounded .label'), 3);
  await page.locator('details.facts summary').click();
  await hasCount(page.locator('.facts tbody tr'), 1);
  await page.getByRole('button', { name: 'Conversations', exact: true }).click();
  await hasCount(page.locator('.conversation'), 2);
  await shot('imported');
});

pageTest('settings are sent, kept, checked and forgotten', async ({ page, context, shot }) => {
  await page.getByRole('button', { name: 'Settings' }).click();
  await shot('settings');
  const dialog = page.getByRole('dialog', { name: 'Settings' });
  await dialog.getByLabel('System prompt').fill('Answer briefly.');
  await dialog.getByLabel('Temperature').fill('0.7');
  await dialog.getByLabel('Top p').fill('0.9');
  await dialog.getByLabel('Answer length').fill('300');
  await dialog.getByLabel('Seed').fill('42');
  await dialog.getByLabel('Thinking').selectOption('off');
  await dialog.getByLabel('Draw boxes').uncheck();
  // Out of range: marked, and the request keeps the server's default.
  await dialog.getByLabel('Temperature').fill('9');
  assert.equal(await dialog.getByLabel('Temperature').getAttribute('aria-invalid'), 'true');
  await dialog.getByLabel('Temperature').fill('0.7');
  await dialog.getByRole('button', { name: 'Done' }).click();
  await page.reload();
  await page.waitForSelector('html[data-ready="true"]');
  await ask(page, 'Hello');
  const { body } = mock.requests[0];
  assert.deepEqual([body.temperature, body.top_p, body.max_tokens, body.seed, body.grounding], [0.7, 0.9, 300, 42, undefined]);
  assert.deepEqual(body.chat_template_kwargs, { enable_thinking: false });
  assert.deepEqual(body.messages[0], { role: 'system', content: 'Answer briefly.' });

  await page.getByRole('button', { name: 'Settings' }).click();
  await dialog.getByRole('button', { name: 'Forget everything …' }).click();
  await shot('forget');
  await Promise.all([page.waitForEvent('load'), page.getByRole('button', { name: 'Forget everything', exact: true }).click()]);
  await page.waitForSelector('html[data-ready="true"]');
  const left = await page.evaluate(async () => {
    const database = await new Promise((resolve) => { indexedDB.open('qvl', 1).onsuccess = (event) => resolve(event.target.result); });
    const count = (name) => new Promise((resolve) => { database.transaction(name).objectStore(name).count().onsuccess = (event) => resolve(event.target.result); });
    return [await count('conversations'), await count('pictures'), localStorage.length, sessionStorage.length];
  });
  assert.deepEqual(left, [0, 0, 0, 0]);
  assert.equal((await context.cookies()).length, 0);
  await ask(page, 'Hello again');
  assert.equal(mock.requests[1].body.temperature, undefined);
});

pageTest('the field says what it is for, and long questions keep their lines', async ({ page }) => {
  await field(page).focus();
  await page.keyboard.type('one');
  await page.keyboard.press('Shift+Enter');
  await page.keyboard.type('two');
  assert.equal(await field(page).inputValue(), 'one\ntwo');
  await page.keyboard.press('Enter');
  await finishedAnswer(page);
  assert.equal(mock.requests[0].body.messages[0].content, 'one\ntwo');
  assert.equal(await page.locator('.bubble').innerText(), 'one\ntwo');
  await field(page).press('ArrowUp');
  assert.equal(await page.getByRole('textbox', { name: 'Edit the question' }).inputValue(), 'one\ntwo');
});
