// Boxes and points lie where the server says, at every width of the window, and in the file that is saved.
import assert from 'node:assert/strict';
import { readFile } from 'node:fs/promises';
import { addFiles, answers, ask, assertClose, drawn, example, hasCount, mock, pageTest, pixels, withOrientation } from '../harness.mjs';
import { answer, SHAPES } from '../mock_server.mjs';

// Corners of the shapes on the screen, through the browser's own matrices; and the picture's rectangle.
const geometry = (page) => page.locator('.overlay').first().evaluate((overlay) => {
  const rectangle = overlay.querySelector('img').getBoundingClientRect();
  const corners = (shape) => {
    const { x, y, width, height } = shape.getBBox();
    const matrix = shape.getScreenCTM();
    const [from, to] = [new DOMPoint(x, y).matrixTransform(matrix), new DOMPoint(x + width, y + height).matrixTransform(matrix)];
    return [from.x, from.y, to.x, to.y];
  };
  return { image: [rectangle.left, rectangle.top, rectangle.width, rectangle.height], scroll: [scrollX, scrollY],
    shapes: [...overlay.querySelectorAll('.box rect.line, .point path.line')].map(corners),
    labels: [...overlay.querySelectorAll('.label')].map((label) => {
      const box = label.getBoundingClientRect();
      return [box.left, box.top, box.right, box.bottom];
    }) };
});

// Upright 200 x 300: a red rectangle, which the stored picture (300 x 200, to be turned to the right by 90 degrees) has on its side.
const RED = [20, 30, 120, 180];
async function rotatedPicture() {
  const stored = await drawn(300, 200, [['#ffffff', 0, 0, 300, 200], ['#ff0000', RED[1], 200 - RED[2], RED[3] - RED[1], RED[2] - RED[0]]], 'image/jpeg');
  return { name: 'turned.jpg', mimeType: 'image/jpeg', buffer: withOrientation(stored, 6) };
}
const ROTATED = { images: [{ ...SHAPES.images[0], width: 200, height: 300, resized_width: 192, resized_height: 288 }],
  grounding: { items: [
    { kind: 'box', label: 'red', relative: [100, 100, 600, 600], pixels: RED, image: 0, problems: [] },
    { kind: 'point', label: '', relative: [900, 900], pixels: [180, 270], image: 0, problems: [] },
  ], unread: 0 } };

pageTest('a picture with EXIF rotation, at three widths of the window', async ({ page, shot }) => {
  mock.replies.push(answer('There.', ROTATED));
  await addFiles(page, await rotatedPicture());
  assert.match(await page.locator('#composer .thumb img').getAttribute('alt'), /200 × 300/);
  await ask(page, 'Where is red?');
  for (const width of [340, 768, 1280]) {
    await page.setViewportSize({ width, height: 900 });
    await page.locator('.overlay').first().scrollIntoViewIfNeeded();
    await page.evaluate(() => new Promise((resolve) => requestAnimationFrame(() => requestAnimationFrame(resolve))));
    const { image, shapes, labels } = await geometry(page);
    const scale = image[2] / 200;
    assert.ok(Math.abs(image[3] / image[2] - 1.5) < 0.01, `upright: ${image}`);
    assertClose(shapes[0], RED.map((value, i) => image[i % 2] + value * scale), 1, `box at ${width}`);
    assertClose(shapes[1].slice(0, 2), [image[0] + 180 * scale, image[1] + 270 * scale], 1, `point at ${width}`);
    for (const [left, top, right, bottom] of labels) {
      assert.ok(left >= image[0] - 1 && top >= image[1] - 1 && right <= image[0] + image[2] + 1 && bottom <= image[1] + image[3] + 1, 'labels stay on the picture');
    }
    // What is under the box is what it marks: red inside its corners, white outside.
    await page.getByRole('checkbox', { name: 'Marks' }).uncheck();
    const at = (x, y) => [Math.round(image[0] + x * scale), Math.round(image[1] + y * scale)];
    const screen = await pixels(await page.screenshot(), [at(26, 36), at(114, 174), at(14, 24), at(126, 186)]);
    assert.deepEqual(screen.at.map(([r, g]) => r > 200 && g < 60), [true, true, false, false], `${width}: ${JSON.stringify(screen)}`);
    await page.getByRole('checkbox', { name: 'Marks' }).check();
    await shot(`rotated-${width}`);
  }
});

pageTest('saved as a PNG of the original size, with and without labels', async ({ page }) => {
  mock.replies.push(answer('There.', ROTATED));
  await addFiles(page, await rotatedPicture());
  await ask(page, 'Where is red?');
  const save = async () => {
    const [download] = await Promise.all([page.waitForEvent('download'), page.getByRole('button', { name: 'Save as PNG' }).click()]);
    assert.equal(download.suggestedFilename(), 'turned-boxes.png');
    return pixels(await readFile(await download.path()), [[70, 180], [120, 100], [20, 100], [70, 100], [10, 250], [180, 270]]);
  };
  const saved = await save();
  assert.deepEqual([saved.width, saved.height], [200, 300]);
  const [bottom, right, left, inside, outside, point] = saved.at;
  for (const edge of [bottom, right, left]) assertClose(edge.slice(0, 3), [0xff, 0xd4, 0x3b], 30, 'the line of the box');
  assertClose(inside.slice(0, 3), [254, 0, 0], 8, 'inside');
  assertClose(outside.slice(0, 3), [255, 255, 255], 8, 'outside');
  assertClose(point.slice(0, 3), [0xd6, 0x33, 0x6c], 8, 'the point');
  await page.getByRole('checkbox', { name: 'Marks' }).uncheck();
  await page.getByRole('checkbox', { name: 'Labels' }).uncheck();
  assertClose((await save()).at[1].slice(0, 3), [255, 255, 255], 60, 'nothing drawn when switched off');
});

pageTest('switches, highlighting, and what could not be drawn is said', async ({ page, shot }) => {
  const items = [...SHAPES.grounding.items,
    { kind: 'box', label: 'ghost', relative: [], pixels: null, image: null, problems: ['malformed'] },
    { kind: 'box', label: 'far', relative: [0, 0, 1200, 1200], pixels: [0, 0, 192, 160], image: 0, problems: ['out_of_range'] },
    { kind: 'point', label: 'elsewhere', relative: [1, 1], pixels: null, image: null, problems: ['no_such_image'] }];
  mock.replies.push(answer('There.', { images: SHAPES.images, grounding: { items, unread: 2 } }));
  await addFiles(page, example);
  await ask(page, 'Where is everything?');
  const figure = answers(page).locator('figure.grounded');
  await figure.scrollIntoViewIfNeeded();
  await shot('boxes');
  await hasCount(figure.locator('.label'), 4);
  const star = page.getByRole('button', { name: /yellow star/ });
  assert.match(await star.textContent(), /point at 156, 114/);
  await star.click();
  assert.equal(await star.getAttribute('aria-pressed'), 'true');
  assert.equal(await figure.locator('.label.highlighted').textContent(), 'yellow star');
  await hasCount(figure.locator('g.highlighted'), 1);
  await page.mouse.move(5, 5);
  assert.equal(await figure.locator('g.highlighted').count(), 1, 'a clicked item stays');
  await shot('boxes-highlight');
  await star.click();
  await page.mouse.move(5, 5);
  await page.getByRole('checkbox', { name: 'Labels' }).uncheck();
  assert.ok(!await figure.locator('.labels').isVisible());
  assert.ok(await figure.locator('svg').first().isVisible());
  assert.match(await page.getByRole('button', { name: /^far/ }).textContent(), /reached beyond the picture/);
  assert.deepEqual(await page.getByRole('list', { name: 'Not drawn' }).locator('li').allTextContents(),
    ['ghost: coordinates could not be read', 'elsewhere: names a picture that is not there']);
  await page.getByText('2 sets of coordinates in the answer could not be read.').waitFor();
});

pageTest('items of two pictures lie on their own picture', async ({ page }) => {
  const items = [{ kind: 'box', label: 'second', relative: [0, 0, 500, 500], pixels: [0, 0, 40, 30], image: 1, problems: [] },
    { kind: 'box', label: 'first', relative: [0, 0, 500, 500], pixels: [10, 10, 96, 80], image: 0, problems: [] }];
  mock.replies.push(answer('There.', { images: [SHAPES.images[0], { ...SHAPES.images[0], width: 80, height: 60 }], grounding: { items, unread: 0 } }));
  await addFiles(page, example, { name: 'blue.png', mimeType: 'image/png', buffer: await drawn(80, 60, [['#0000ff', 0, 0, 80, 60]]) });
  await ask(page, 'Where?');
  const figures = answers(page).locator('figure.grounded');
  await hasCount(figures, 2);
  assert.deepEqual(await figures.locator('.label').allTextContents(), ['first', 'second']);
  assert.match(await figures.nth(1).locator('img').getAttribute('alt'), /^blue\.png with second marked$/);
  assert.equal(await figures.nth(1).locator('svg').first().getAttribute('viewBox'), '0 0 80 60');
});

pageTest('labels avoid each other and stay inside', async ({ page }) => {
  const result = await page.evaluate(async () => {
    const { placeLabels } = await import('/page/overlay.js');
    const bounds = { width: 400, height: 300 };
    let state = 7;
    const random = (limit) => {
      state = (state * 1103515245 + 12345) % 2147483648;
      return (state / 2147483648) * limit;
    };
    let outside = 0;
    let covered = 0;
    for (let round = 0; round < 200; ++round) {
      const anchors = Array.from({ length: 6 }, () => ({ x: random(400), y: random(300), width: random(100), height: random(100) }));
      const sizes = anchors.map(() => ({ width: 20 + random(60), height: 18 }));
      const places = placeLabels(anchors, sizes, bounds);
      outside += places.filter((p) => p.x < 0 || p.y < 0 || p.x + p.width > 400.001 || p.y + p.height > 300.001).length;
      places.forEach((a, i) => places.slice(i + 1).forEach((b) => {
        if (a.x < b.x + b.width && b.x < a.x + a.width && a.y < b.y + b.height && b.y < a.y + a.height) ++covered;
      }));
    }
    const wide = placeLabels([{ x: 390, y: 0, width: 10, height: 10 }], [{ width: 400, height: 18 }], bounds)[0];
    return { outside, covered, wide };
  });
  assert.equal(result.outside, 0);
  assert.ok(result.covered < 20, `${result.covered} overlaps in 200 pictures of six`);
  assert.equal(result.wide.x, 0);
});

pageTest('labels can be read on every colour', async ({ page }) => {
  const contrasts = await page.evaluate(async () => {
    const { colourOf } = await import('/page/overlay.js');
    const luminance = (hex) => [0, 1, 2].map((i) => parseInt(hex.slice(1 + 2 * i, 3 + 2 * i), 16) / 255)
      .map((v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)).reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
    return Array.from({ length: 10 }, (_, i) => colourOf(i)).map(({ fill, ink }) => {
      const [low, high] = [luminance(fill), luminance(ink)].sort((a, b) => a - b);
      return (high + 0.05) / (low + 0.05);
    });
  });
  assert.ok(Math.min(...contrasts) >= 4.5, `${contrasts}`);
});
