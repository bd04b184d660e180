// An answer while it comes: progress, words, thoughts, facts, following, stopping.
import assert from 'node:assert/strict';
import { addFiles, answers, ask, example, field, finishedAnswer, gate, mock, pageTest } from '../harness.mjs';
import { answer, SHAPES } from '../mock_server.mjs';

pageTest('progress first, then words as they come, then the facts', async ({ page, shot }) => {
  const [zeroth, first, second, third] = [gate(), gate(), gate(), gate()];
  const { steps } = answer('Two circles, and more.', { pieces: 1, images: SHAPES.images });
  mock.replies.push({ steps: [{ comment: 'working' }, { comment: 'progress {broken' }, { wait: zeroth.wait }, { progress: { phase: 'vision', done: 30, total: 120 } }, { wait: first.wait },
    { progress: { phase: 'prefill', done: 1, total: 2 } }, { wait: second.wait }, 'Two **cir', { wait: third.wait }, 'cles**, ', ...steps.slice(1)] });
  await addFiles(page, example);
  await ask(page, 'How many?', { finished: false });
  const activity = page.locator('.activity');
  await activity.getByText('Waiting for the server').waitFor();
  assert.ok(!await activity.locator('progress').isVisible());
  zeroth.open();
  await activity.getByText('Looking at the picture').waitFor();
  await page.waitForFunction(() => document.querySelector('.activity progress').value === 0.25);
  await shot('progress');
  assert.equal(await page.locator('article.answer .actions').isVisible(), false);
  first.open();
  await activity.getByText('Reading').waitFor();
  second.open();
  await page.locator('.answer-text strong', { hasText: 'cir' }).waitFor();
  assert.equal(await page.locator('.answer-text').textContent().then((text) => text.trim()), 'Two cir');
  assert.ok(!await activity.isVisible());
  await shot('streaming');
  third.open();
  await finishedAnswer(page);
  assert.equal(await page.locator('.answer-text').textContent().then((text) => text.trim()), 'Two circles,');
  const facts = page.locator('details.facts');
  assert.equal(await facts.locator('summary').textContent(), '24 tokens · 24.1 tokens/s · first after 1.28 s');
  await facts.locator('summary').click();
  const rows = Object.fromEntries(await facts.locator('dl div').evaluateAll((divs) => divs.map((div) => [div.children[0].textContent, div.children[1].textContent])));
  assert.equal(rows.Prompt, '161 tokens');
  assert.equal(rows['of these from memory'], '96 tokens');
  assert.equal(rows['of these pictures'], '140 tokens');
  assert.equal(rows['Pictures encoded in'], '812 ms');
  assert.deepEqual(await facts.locator('tbody tr').first().locator('th, td').allTextContents(), ['shapes.png', '192 × 160', 'as it is', '30', '38.2 ms']);
  assert.match(await page.locator('#live').textContent(), /^Answer: Two \*\*circles\*\*, /);
  await shot('facts');
});

pageTest('a resized picture and one from memory are told apart', async ({ page }) => {
  mock.replies.push(answer('Yes.', { images: [{ ...SHAPES.images[0], width: 4032, height: 3024, resized_width: 1024, resized_height: 768, tokens: 768, cached: true, encode_ms: 0 }] }));
  await addFiles(page, example);
  await ask(page, 'Is it?');
  await page.locator('details.facts summary').click();
  assert.deepEqual(await page.locator('.facts tbody td').allTextContents(), ['4,032 × 3,024', '1,024 × 768', '768', 'from memory']);
});

pageTest('thoughts stand apart, collapsed', async ({ page, shot }) => {
  mock.replies.push(answer('Two.', { reasoning: 'Let me count: one, two.' }));
  await ask(page, 'How many?');
  const thoughts = page.locator('details.thinking');
  assert.equal(await thoughts.getAttribute('open'), null);
  assert.ok(!await page.locator('.thinking-text').isVisible());
  await thoughts.locator('summary').click();
  assert.equal(await page.locator('.thinking-text').textContent(), 'Let me count: one, two.');
  assert.equal(await page.locator('.answer-text').textContent().then((text) => text.trim()), 'Two.');
  await shot('thinking');
});

for (const how of ['button', 'Escape']) {
  pageTest(`stop by ${how}: the server is told, what came stays, the next question works`, async ({ page }) => {
    const never = gate();
    mock.replies.push({ steps: ['Half an ans', { wait: never.wait }] });
    await ask(page, 'Talk.', { finished: false });
    await page.locator('.answer-text', { hasText: 'Half an ans' }).waitFor();
    // Enter does not throw the answer away.
    await field(page).press('Enter');
    assert.equal(mock.requests[0].gone, false);
    if (how === 'button') await page.getByRole('button', { name: 'Stop' }).click();
    else await page.keyboard.press('Escape');
    await mock.requests[0].closed;
    assert.equal(mock.requests[0].gone, true);
    never.open();
    await finishedAnswer(page);
    assert.equal(await answers(page).locator('.note').textContent(), 'Stopped. The answer is not complete.');
    assert.equal(await page.locator('.answer-text').textContent().then((text) => text.trim()), 'Half an ans');
    await ask(page, 'Go on.');
    assert.equal(mock.requests[1].body.messages[1].content, 'Half an ans');
  });
}

pageTest('why an answer is short is said', async ({ page }) => {
  for (const [reason, pattern] of [['max_tokens', /limit of tokens/], ['repetition', /repeating itself/], ['context', /fills all/], ['timeout', /time limit/]]) {
    mock.replies.push(answer('Many words', { reason: 'length', details: { reason } }));
    await ask(page, reason);
    assert.match(await answers(page).last().locator('.note').textContent(), pattern);
  }
});

pageTest('the window follows the answer until the reader scrolls up', async ({ page }) => {
  const [middle, end] = [gate(), gate()];
  const lines = Array.from({ length: 40 }, (_, i) => `Line ${i}\n\n`);
  mock.replies.push({ steps: [...lines, { wait: middle.wait }, ...lines, { wait: end.wait }, ...answer('end').steps] });
  await ask(page, 'Long?', { finished: false });
  const distance = () => page.evaluate(() => document.documentElement.scrollHeight - scrollY - innerHeight);
  await page.getByText('Line 39').waitFor();
  await page.waitForFunction(() => document.documentElement.scrollHeight - scrollY - innerHeight < 4);
  await page.mouse.move(500, 300);
  await page.mouse.wheel(0, -600);
  await page.waitForFunction(() => document.documentElement.scrollHeight - scrollY - innerHeight > 300);
  middle.open();
  await page.waitForFunction(() => document.querySelectorAll('.answer-text p').length > 79);
  assert.ok(await distance() > 1000, 'it must not jump down while someone reads above');
  await page.getByRole('button', { name: 'Jump to the end' }).click();
  await page.waitForFunction(() => document.documentElement.scrollHeight - scrollY - innerHeight < 4);
  end.open();
  await finishedAnswer(page);
  assert.ok(await distance() < 4);
});

pageTest('events may be cut anywhere, joined, and end in any kind of line end', async ({ page }) => {
  const got = await page.evaluate(async () => {
    const { EventParser } = await import('/page/sse.js');
    const text = ': hello\r\n\r\ndata: {"a":"ü€😀"}\r\n\r\ndata:one\ndata: two\n\ndata: three\r\rid: 1\nevent: x\nretry: 5\ndata\n\ndata: [DONE]\n\ndata: cut off';
    const bytes = new TextEncoder().encode(text);
    const results = new Set();
    for (let size = 1; size <= bytes.length; ++size) {
      const parser = new EventParser();
      const found = [];
      for (let i = 0; i < bytes.length; i += size) found.push(...parser.push(bytes.slice(i, i + size)));
      results.add(JSON.stringify(found));
    }
    return [...results];
  });
  assert.deepEqual(got.map((text) => JSON.parse(text)), [[{ comment: 'hello' }, { data: '{"a":"ü€😀"}' }, { data: 'one\ntwo' }, { data: 'three' }, { data: '' }, { data: '[DONE]' }]]);
});
