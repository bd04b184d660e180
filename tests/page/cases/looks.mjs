// Colours, widths, keys, screen readers.
import assert from 'node:assert/strict';
import { readFileSync } from 'node:fs';
import { addFiles, answers, ask, axePath, example, field, finishedAnswer, fromTheTop, hasCount, mock, opened, pageTest } from '../harness.mjs';
import { answer, SHAPES } from '../mock_server.mjs';

const RICH = 'Here they are:\n\n| shape | colour | where it is in the picture |\n|---|---|---|\n| circle | red | left |\n\n```\na very long line of code that does not fit into the width of any phone at all, whatever its make\n```\n\n- averylongwordwithoutanyspaceinitthatgoesonandonandonandonandonandonandonandon\n';
const paper = (page) => page.evaluate(() => getComputedStyle(document.documentElement).backgroundColor);
const LIGHT = 'rgb(250, 249, 246)';
const DARK = 'rgb(21, 24, 27)';

async function fill(page) {
  mock.replies.push(answer(RICH, { ...SHAPES, reasoning: 'Let me see.' }));
  await addFiles(page, example);
  await ask(page, 'Where are the shapes, and which colours have they?');
  await page.locator('details.facts summary').click();
}

async function axe(page, what) {
  await page.evaluate(readFileSync(axePath(), 'utf8'));
  const found = await page.evaluate(async () => (await window.axe.run(document, { runOnly: ['wcag2a', 'wcag2aa', 'wcag21a', 'wcag21aa', 'wcag22aa', 'best-practice'] })).violations
    .map(({ id, nodes }) => `${id}: ${nodes.map((node) => `${node.html.slice(0, 140)} ${node.failureSummary}`).join(' | ')}`));
  assert.deepEqual(found, [], `accessibility: ${what}`);
}

for (const dark of [false, true]) {
  const theme = dark ? 'dark' : 'light';
  pageTest(`${theme} as the system says, and no fault for screen readers anywhere`, { dark }, async ({ page, shot }) => {
    assert.equal(await paper(page), dark ? DARK : LIGHT);
    await shot(`empty-${theme}`);
    await axe(page, 'empty');
    await fill(page);
    await shot(`answer-${theme}`);
    await axe(page, 'answer');
    for (const name of ['Conversations', 'Settings', 'Keyboard shortcuts']) {
      await page.getByRole('button', { name, exact: true }).click();
      await opened(page);
      await axe(page, name);
      await page.keyboard.press('Escape');
    }
  });
}

pageTest('the chosen theme wins over the system and is there from the first frame', { dark: true }, async ({ page }) => {
  await page.getByRole('button', { name: 'Light or dark' }).click();
  assert.equal(await paper(page), LIGHT);
  await page.reload({ waitUntil: 'commit' });
  await page.waitForSelector('body');
  assert.equal(await paper(page), LIGHT);
  await page.waitForSelector('html[data-ready="true"]');
  await page.getByRole('button', { name: 'Light or dark' }).click();
  assert.equal(await paper(page), DARK);
});

for (const [width, height] of [[320, 568], [390, 844]]) {
  pageTest(`a phone of ${width} pixels has no sideways scrolling`, { width, height, touch: true }, async ({ page, shot }) => {
    // innerWidth grows where a phone zooms out to show what is too wide.
    const overflow = () => page.evaluate((device) => [...document.querySelectorAll('body *')].filter((element) => {
      const { right, left, width: w } = element.getBoundingClientRect();
      // What scrolls inside a frame of its own may be wider.
      return w > 1 && (right > device + 0.5 || left < -0.5) && !element.closest('.table-frame, pre, .stage, .visually-hidden, .skip, .symbols, dialog:not([open])');
    }).map((element) => `${element.nodeName}.${element.className}`).slice(0, 5).concat(document.documentElement.scrollWidth > device ? [`the page: ${document.documentElement.scrollWidth}`] : []), width);
    assert.deepEqual(await overflow(), []);
    await shot(`phone-${width}-empty`);
    assert.ok((await page.locator('#welcome-title').boundingBox()).y > 50, 'it starts at the top');
    await addFiles(page, example, example);
    await shot(`phone-${width}-pictures`);
    assert.deepEqual(await overflow(), []);
    await page.getByRole('button', { name: 'Remove shapes.png' }).first().click();
    mock.replies.push(answer(RICH, { ...SHAPES, reasoning: 'Let me see.' }));
    await field(page).fill('Where are the shapes?');
    // Enter makes a line here; the button sends.
    await field(page).press('Enter');
    assert.equal(mock.requests.length, 0);
    await page.getByRole('button', { name: 'Send' }).tap();
    await finishedAnswer(page);
    await page.locator('details.facts summary').tap();
    assert.deepEqual(await overflow(), []);
    await shot(`phone-${width}-answer`);
    await page.evaluate(() => scrollTo(0, 0));
    await shot(`phone-${width}-top`);
    for (const name of ['Conversations', 'Settings']) {
      await page.getByRole('button', { name, exact: true }).tap();
      await opened(page);
      assert.deepEqual(await overflow(), []);
      await shot(`phone-${width}-${name.toLowerCase()}`);
      await page.keyboard.press('Escape');
    }
    // Fingers need room.
    const small = await page.evaluate(() => [...document.querySelectorAll('button, summary, input[type="checkbox"]')].filter((element) => {
      const { width: w, height: h } = (element.closest('label') ?? element).getBoundingClientRect();
      return w > 0 && !element.closest('.visually-hidden') && (w < 24 || h < 24);
    }).map((element) => element.outerHTML.slice(0, 100)));
    assert.deepEqual(small, []);
  });
}

pageTest('the phone’s own camera is asked where there is one', { width: 390, height: 844, touch: true }, async ({ page }) => {
  const [chooser] = await Promise.all([page.waitForEvent('filechooser'), page.getByRole('button', { name: 'Take a photo' }).last().tap()]);
  assert.equal(await (await chooser.element()).getAttribute('capture'), 'environment');
  await chooser.setFiles(example);
  await page.locator('#composer .thumb').waitFor();
});

pageTest('everything by keyboard alone', async ({ page, shot }) => {
  const focused = () => page.evaluate(() => {
    const { activeElement: e } = document;
    return e.getAttribute('aria-label') || e.textContent.trim() || e.id;
  });
  const outline = () => page.evaluate(() => getComputedStyle(document.activeElement).outlineStyle);
  await fromTheTop(page);
  await page.keyboard.press('Tab');
  assert.equal(await focused(), 'Skip to your question');
  const order = [];
  for (let i = 0; i < 13; ++i) {
    await page.keyboard.press('Tab');
    order.push(await focused());
    if (order.at(-1) !== 'Your question') assert.notEqual(await outline(), 'none', `the focus on ${order.at(-1)} can be seen`);
  }
  assert.deepEqual(order, ['New conversation', 'Conversations', 'Light or dark', 'Keyboard shortcuts', 'Settings', 'Choose a picture', 'Take a photo', 'Use the example',
    'Describe this image.', 'What does it say?', 'How many circles are there?', 'Where is the …?', 'Your question']);
  await page.getByRole('button', { name: 'Use the example' }).focus();
  await page.keyboard.press('Enter');
  await page.locator('#composer .thumb').waitFor();
  assert.equal(await focused(), 'Your question');
  mock.replies.push(answer('There.', SHAPES));
  await page.keyboard.press('Enter');
  await finishedAnswer(page);
  assert.equal(await focused(), 'Your question');
  await shot('keyboard');
  // Alt+C, Alt+R, Alt+E with Escape, Alt+/, Alt+N.
  await page.keyboard.press('Alt+r');
  await page.locator('.branches:not([hidden])').waitFor();
  await finishedAnswer(page);
  await page.keyboard.press('Alt+e');
  assert.equal(await focused(), 'Edit the question');
  await page.keyboard.press('Escape');
  assert.equal(await focused(), 'Edit');
  await page.keyboard.press('Alt+/');
  await page.getByRole('dialog', { name: 'Keyboard' }).waitFor();
  await page.keyboard.press('Escape');
  assert.equal(await focused(), 'Edit', 'focus returns from a dialog');
  await page.keyboard.press('Alt+i');
  assert.equal(await focused(), 'Your question');
  await page.keyboard.press('Alt+n');
  await page.getByRole('heading', { name: 'Ask about a picture' }).waitFor();
  assert.equal(mock.requests.length, 2);
});

pageTest('the skip link leads to the question', async ({ page }) => {
  await fromTheTop(page);
  await page.keyboard.press('Tab');
  await page.getByRole('link', { name: 'Skip to your question' }).and(page.locator(':focus')).waitFor();
  await page.keyboard.press('Enter');
  await page.keyboard.press('Tab');
  assert.ok(await page.evaluate(() => document.querySelector('#composer').contains(document.activeElement)));
});

pageTest('movement stops where it is not wanted', { reducedMotion: 'no-preference' }, async ({ page }) => {
  mock.replies.push({ steps: [{ wait: 100_000 }] });
  await ask(page, 'Wait', { finished: false });
  const animation = () => page.locator('.dots i').first().evaluate((dot) => getComputedStyle(dot).animationName);
  assert.equal(await animation(), 'breathe');
  await page.emulateMedia({ reducedMotion: 'reduce' });
  assert.equal(await animation(), 'none');
});

pageTest('built without its libraries the page shows plain text and says so', { setUp: (server) => server.withoutLibraries() }, async ({ page, shot }) => {
  await page.getByText('This build has no Markdown library').waitFor();
  mock.replies.push(answer('Some **bold**\n<img src=x onerror="window.hit=1">', { pieces: 9 }));
  await ask(page, 'Say.');
  assert.equal(await answers(page).locator('.answer-text').textContent(), 'Some **bold**\n<img src=x onerror="window.hit=1">');
  await hasCount(answers(page).locator('.answer-text *'), 0);
  await shot('plain');
});
