// How pictures get into a message, and what of them reaches the server.
import assert from 'node:assert/strict';
import { readFileSync } from 'node:fs';
import { addFiles, ask, drawn, example, field, hasCount, mock, pageTest, parts } from '../harness.mjs';

const thumbs = (page) => page.locator('#composer .thumb');
const bytesOf = (part) => Buffer.from(part.image_url.url.split(',')[1], 'base64');

pageTest('a picked picture is sent byte for byte, before the question', async ({ page, shot }) => {
  await addFiles(page, example);
  await shot('picked');
  assert.match(await thumbs(page).locator('img').getAttribute('alt'), /^shapes\.png, 192 × 160, /);
  await ask(page, 'How many circles are there?');
  const [image, text] = parts(mock.requests[0]);
  assert.ok(image.image_url.url.startsWith('data:image/png;base64,'));
  assert.deepEqual(bytesOf(image), readFileSync(example));
  assert.deepEqual(text, { type: 'text', text: 'How many circles are there?' });
  const { body } = mock.requests[0];
  assert.deepEqual([body.stream, body.stream_options, body.grounding, body.model], [true, { include_usage: true }, 'pixels', 'small']);
  assert.ok(!('temperature' in body) && !('max_tokens' in body), 'what is not set is left to the server');
  await hasCount(thumbs(page), 0);
  await hasCount(page.locator('article.question .gallery img'), 1);
  // The next question brings the picture along.
  await ask(page, 'And squares?');
  const roles = mock.requests[1].body.messages.map((message) => message.role);
  assert.deepEqual(roles, ['user', 'assistant', 'user']);
  assert.deepEqual(bytesOf(mock.requests[1].body.messages[0].content[0]), readFileSync(example));
});

pageTest('the file chooser opens from both buttons', async ({ page }) => {
  for (const name of ['Choose a picture', 'Add pictures']) {
    const [chooser] = await Promise.all([page.waitForEvent('filechooser'), page.getByRole('button', { name }).click()]);
    assert.equal(chooser.isMultiple(), true);
    await chooser.setFiles(example);
  }
  await thumbs(page).nth(1).waitFor();
});

pageTest('dropped anywhere', async ({ page, shot }) => {
  const data = await page.evaluateHandle(async () => {
    const bytes = await (await fetch('page/example.png')).blob();
    const transfer = new DataTransfer();
    transfer.items.add(new File([bytes], 'dropped.png', { type: 'image/png' }));
    return transfer;
  });
  await page.dispatchEvent('h1', 'dragenter', { dataTransfer: data });
  assert.ok(await page.locator('.drop-veil').isVisible());
  await shot('dropping');
  await page.dispatchEvent('h1', 'dragover', { dataTransfer: data });
  await page.dispatchEvent('h1', 'drop', { dataTransfer: data });
  await thumbs(page).first().waitFor();
  assert.ok(!await page.locator('.drop-veil').isVisible());
  assert.match(await thumbs(page).locator('img').getAttribute('alt'), /dropped\.png/);
  // A drag that leaves again takes the veil with it.
  await page.dispatchEvent('h1', 'dragenter', { dataTransfer: data });
  await page.dispatchEvent('h1', 'dragleave', { dataTransfer: data });
  assert.ok(!await page.locator('.drop-veil').isVisible());
});

pageTest('pasted with the keyboard; pasted text stays text', { permissions: ['clipboard-read', 'clipboard-write'] }, async ({ page }) => {
  await page.evaluate(async () => {
    const blob = await (await fetch('page/example.png')).blob();
    await navigator.clipboard.write([new ClipboardItem({ 'image/png': blob })]);
  });
  await field(page).focus();
  await page.keyboard.press('Control+V');
  await thumbs(page).first().waitFor();
  await page.evaluate(() => navigator.clipboard.writeText('What is this?'));
  await page.keyboard.press('Control+V');
  assert.equal(await field(page).inputValue(), 'What is this?');
  await hasCount(thumbs(page), 1);
});

pageTest('photographed with the camera, which is off again afterwards', { permissions: ['camera'] }, async ({ page, shot }) => {
  await page.getByRole('button', { name: 'Take a photo' }).last().click();
  const dialog = page.getByRole('dialog', { name: 'Take a photo' });
  await dialog.waitFor();
  await page.waitForFunction(() => document.querySelector('#camera video').videoWidth > 0);
  await shot('camera');
  const track = await page.evaluateHandle(() => document.querySelector('#camera video').srcObject.getTracks()[0]);
  await dialog.getByRole('button', { name: 'Take the photo' }).click();
  await thumbs(page).first().waitFor();
  assert.match(await thumbs(page).locator('img').getAttribute('alt'), /^photo-\d{4}-.*\.jpg, \d+ × \d+/);
  assert.equal(await track.evaluate((t) => t.readyState), 'ended');
  await ask(page, 'What is this?');
  assert.deepEqual([...bytesOf(parts(mock.requests[0])[0]).subarray(0, 3)], [0xff, 0xd8, 0xff]);
});

pageTest('several pictures: order, removal, reading order for the server', async ({ page, shot }) => {
  const files = [];
  for (const [name, colour] of [['a.png', '#ff0000'], ['b.png', '#00ff00'], ['c.png', '#0000ff']]) {
    files.push({ name, mimeType: 'image/png', buffer: await drawn(80, 60, [[colour, 0, 0, 80, 60]]) });
  }
  await addFiles(page, ...files);
  const names = () => thumbs(page).locator('img').evaluateAll((images) => images.map((image) => image.alt.split(',')[0]));
  assert.deepEqual(await names(), ['a.png', 'b.png', 'c.png']);
  await page.getByRole('button', { name: 'Move a.png later' }).click();
  assert.deepEqual(await names(), ['b.png', 'a.png', 'c.png']);
  // The focus goes with the picture, so that the key can be pressed again.
  await page.keyboard.press('Enter');
  assert.deepEqual(await names(), ['b.png', 'c.png', 'a.png']);
  assert.match(await page.locator('#live').textContent(), /a\.png is now picture 3 of 3/);
  await thumbs(page).nth(2).dragTo(thumbs(page).nth(0));
  assert.deepEqual(await names(), ['a.png', 'b.png', 'c.png']);
  await shot('three-pictures');
  await page.getByRole('button', { name: 'Remove b.png' }).click();
  assert.deepEqual(await names(), ['a.png', 'c.png']);
  await ask(page, 'What differs?');
  const sent = parts(mock.requests[0]);
  assert.deepEqual(sent.map((part) => part.type), ['image_url', 'image_url', 'text']);
  assert.deepEqual(bytesOf(sent[0]), files[0].buffer);
  assert.deepEqual(bytesOf(sent[1]), files[2].buffer);
});

pageTest('what is no picture is refused by name; what only the browser reads is converted', async ({ page }) => {
  await page.locator('#composer input[multiple]').setInputFiles([
    { name: 'notes.png', mimeType: 'image/png', buffer: Buffer.from('not a picture at all, only a name') },
    { name: 'evil.svg', mimeType: 'image/svg+xml', buffer: Buffer.from('<svg xmlns="http://www.w3.org/2000/svg"><script>alert(1)</script></svg>') },
    { name: 'cut.jpg', mimeType: 'image/jpeg', buffer: Buffer.from([0xff, 0xd8, 0xff, 0xe0, 0, 16, 1, 2, 3]) },
  ]);
  for (const name of ['notes.png', 'evil.svg', 'cut.jpg']) await page.locator('.notice', { hasText: `“${name}” could not be read` }).waitFor();
  await hasCount(thumbs(page), 0);
  const ico = Buffer.concat([Buffer.from([0, 0, 1, 0, 1, 0, 16, 16, 0, 0, 1, 0, 32, 0]), (() => {
    const place = Buffer.alloc(8);
    return place;
  })()]);
  const png = await drawn(16, 16, [['#123456', 0, 0, 16, 16]]);
  ico.writeUInt32LE(png.length, 14);
  ico.writeUInt32LE(22, 18);
  await addFiles(page, { name: 'tiny.ico', mimeType: 'image/x-icon', buffer: Buffer.concat([ico, png]) });
  assert.match(await thumbs(page).locator('img').getAttribute('alt'), /tiny\.ico, 16 × 16, .*converted from X-ICON to PNG/);
  await ask(page, 'What is this?');
  assert.ok(parts(mock.requests[0])[0].image_url.url.startsWith('data:image/png;base64,'));
});

pageTest('the example picture, its question, and pictures without a question', async ({ page }) => {
  await page.getByRole('button', { name: 'Use the example' }).click();
  await thumbs(page).first().waitFor();
  assert.equal(await field(page).inputValue(), 'Where is the yellow star?');
  await field(page).fill('');
  assert.ok(await page.getByRole('button', { name: 'Send' }).isDisabled());
  await field(page).press('Enter');
  await page.locator('.notice', { hasText: 'Write a question' }).waitFor();
  assert.equal(mock.requests.length, 0);
  // A question with a gap has it selected.
  await page.getByRole('button', { name: 'Where is the …?' }).click();
  await page.keyboard.type('star');
  assert.equal(await field(page).inputValue(), 'Where is the star?');
});
