// Answers as Markdown: right, harmless, and the same whether they come in pieces or whole.
import assert from 'node:assert/strict';
import { answers, ask, hasCount, mock, pageTest } from '../harness.mjs';
import { answer } from '../mock_server.mjs';

const RICH = `# Title

Some **bold**, *slanted*, ~~gone~~ and \`code\`.
A second line, and 2 * 3 * 4, and **more**:
- one
- two
  1. inner
  2. inner too
- [x] task

> quoted

| a | b |
|:--|--:|
| 1 | 2 |
| 3 | 4 |

\`\`\`js
const a = "<b>";
\`\`\`

[link](https://example.com/a?b=1&c=2), <https://example.org/>

Last with a [reference][r].

[r]: https://example.net/
`;

pageTest('headings, lists, tables, code, links', async ({ page, shot }) => {
  mock.replies.push(answer(RICH, { pieces: 40 }));
  await ask(page, 'Tell me.');
  const text = answers(page).locator('.answer-text');
  assert.equal(await text.locator('h3').textContent(), 'Title');
  assert.deepEqual(await text.locator('p strong, p em, p del, p > code').allTextContents(), ['bold', 'slanted', 'gone', 'code', 'more']);
  await hasCount(text.locator('li li'), 2);
  assert.match(await text.textContent(), /☑ task/);
  assert.equal(await text.locator('blockquote').textContent().then((t) => t.trim()), 'quoted');
  assert.deepEqual(await text.locator('td').allTextContents(), ['1', '2', '3', '4']);
  assert.equal(await text.locator('td').nth(1).getAttribute('align'), 'right');
  assert.equal(await text.locator('figure.code pre').textContent(), 'const a = "<b>";\n');
  assert.equal(await text.locator('figure.code figcaption span').first().textContent(), 'js');
  const links = await text.locator('a').evaluateAll((list) => list.map((a) => [a.getAttribute('href'), a.target, a.rel]));
  const rest = ['_blank', 'noopener noreferrer nofollow'];
  assert.deepEqual(links, [['https://example.com/a?b=1&c=2', ...rest], ['https://example.org/', ...rest], ['https://example.net/', ...rest]]);
  await shot('markdown');
});

pageTest('code is copied without its frame', { permissions: ['clipboard-read', 'clipboard-write'] }, async ({ page }) => {
  mock.replies.push(answer('```\nline 1\n  line 2\n```'));
  await ask(page, 'Code?');
  await page.locator('figure.code').getByRole('button', { name: 'Copy' }).click();
  await page.locator('.copy-code.done').waitFor();
  assert.equal(await page.evaluate(() => navigator.clipboard.readText()), 'line 1\n  line 2\n');
});

const ATTACKS = [
  '<img src=x onerror="window.hit=1">', '<script>window.hit=1</script>', '<svg onload="window.hit=1"><script>window.hit=1</script></svg>',
  '[click](javascript:window.hit=1)', '[click](JaVaScRiPt:window.hit=1)', '[click](data:text/html,<script>window.hit=1</script>)', '[click](vbscript:x)',
  '![picture](https://evil.example/track.png)', '![x](javascript:window.hit=1)', '<a href="javascript:window.hit=1">click</a>', '<iframe src="https://evil.example/"></iframe>',
  '<style>body{display:none}</style>', '<form action="https://evil.example/"><input name="q"></form>', '<math><mtext></mtext><mglyph><style><img src=x onerror="window.hit=1"></style></math>',
  '[a](https://example.com "\\"onmouseover=window.hit=1 x=\\"")', '`` <img src=x onerror=window.hit=1> ``', '```html" onload="window.hit=1\n<img src=x onerror=window.hit=1>\n```',
  '| <img src=x onerror=window.hit=1> |\n|---|\n| [x](javascript:window.hit=1) |', '<base href="https://evil.example/">', '<a id="app" name="live">x</a>', '[x]: javascript:window.hit=1\n\n[x]',
];

pageTest('nothing in an answer, a question, a label or an import acts', async ({ page }) => {
  const grounding = { items: [{ kind: 'box', label: ATTACKS[0], relative: [0, 0, 9, 9], pixels: [1, 1, 90, 90], image: 0, problems: [] }], unread: 0 };
  mock.replies.push(answer(ATTACKS.join('\n\n'), { pieces: 97, reasoning: ATTACKS.join('\n'), grounding }));
  await page.getByRole('button', { name: 'Use the example' }).click();
  await page.locator('#composer .thumb').waitFor();
  await ask(page, ATTACKS.join(' '));
  const bad = await page.evaluate(() => {
    const thread = document.getElementById('thread');
    const found = [...thread.querySelectorAll('script, iframe, style, form.x, input[name], base, math, object, embed, link')].map((e) => e.outerHTML);
    for (const element of thread.querySelectorAll('*')) {
      for (const { name, value } of element.attributes) {
        if (/^on/i.test(name) || /^\s*(javascript|data:text|vbscript)/i.test(value)) found.push(`${element.nodeName} ${name}=${value}`);
      }
    }
    for (const link of thread.querySelectorAll('.answer-text a[href]')) if (!/^https:/.test(link.href)) found.push(link.href);
    for (const image of thread.querySelectorAll('img')) if (!image.src.startsWith('blob:')) found.push(image.src);
    return found;
  });
  assert.deepEqual(bad, []);
  // HTML is shown as what it is.
  assert.match(await answers(page).locator('.answer-text').textContent(), /<img src=x onerror="window\.hit=1">/);
  for (const link of await answers(page).locator('.answer-text a').all()) {
    if (!await link.getAttribute('href')) await link.click();
  }
  await page.waitForTimeout(50);
  assert.equal(await page.evaluate(() => window.hit), undefined);
});

// The second line of defence alone, without the renderer that lets no HTML through.
// The policy applies to the document it parses in, and says so.
pageTest('the sanitiser alone removes what could act', { expectConsole: /Content Security Policy/ }, async ({ page }) => {
  const left = await page.evaluate(async (attacks) => {
    const { sanitize } = await import('/page/markdown.js');
    const box = document.createElement('div');
    box.append(sanitize(attacks.join('')));
    return [...box.querySelectorAll('*')].flatMap((element) => [element.nodeName, ...[...element.attributes].map(({ name, value }) => `${element.nodeName} ${name}=${value}`)]);
  }, [...ATTACKS, '<p style="color:red" class="failure" id="gone">p</p>', '<code class="language-js x">c</code>', '<td align="right">', '<a href="https://example.com/">ok</a>']);
  assert.deepEqual([...new Set(left)].sort(), ['A', 'A href=https://example.com/', 'A rel=noopener noreferrer nofollow', 'A target=_blank', 'CODE', 'P']);
  await page.evaluate(() => { window.violations = []; });
});

pageTest('in pieces as whole: at every cut the same end, and no flicker of half-written marks', async ({ page }) => {
  const { differing, flashes, same } = await page.evaluate(async (text) => {
    const { MarkdownView } = await import('/page/markdown.js');
    const view = () => {
      const root = document.createElement('div');
      return [root, new MarkdownView(root)];
    };
    const [whole, wholeView] = view();
    wholeView.update(text, { final: true });
    const out = { differing: [], flashes: [], same: 0 };
    for (const step of [1, 2, 3, 7, 31]) {
      const [root, pieces] = view();
      let first = null;
      for (let end = step; end < text.length + step; end += step) {
        pieces.update(text.slice(0, end));
        const shown = root.textContent;
        // Marks that never stand in the finished answer must not flash up before it.
        for (const mark of ['**', '~~', '``', '|:-', '](', '[x', '\n- ', '*slanted']) if (shown.includes(mark)) out.flashes.push(`${step}/${end}: ${mark}`);
        if (root.querySelector('h4')) out.flashes.push(`${step}/${end}: a heading out of a dash`);
        first ??= root.firstElementChild;
      }
      out.same += root.firstElementChild === first ? 1 : 0;
      pieces.update(text, { final: true });
      if (root.innerHTML !== whole.innerHTML) out.differing.push(step);
    }
    return out;
  }, RICH);
  assert.deepEqual(differing, []);
  assert.deepEqual(flashes, []);
  assert.equal(same, 5, 'the first block is rendered once and kept');
});

pageTest('a long answer costs its length, and settled blocks are left alone', async ({ page }) => {
  const result = await page.evaluate(async () => {
    const { MarkdownView } = await import('/page/markdown.js');
    const block = (i) => `Paragraph ${i} with **bold** text, \`code\` and a [link](https://example.com/${i}).\n\n- item one\n- item two\n\n`;
    const time = (blocks) => {
      const root = document.createElement('div');
      document.body.append(root);
      const view = new MarkdownView(root);
      let text = '';
      let replaced = 0;
      const start = performance.now();
      for (let i = 0; i < blocks; ++i) {
        const kept = root.children[Math.max(0, root.children.length - 4)];
        for (const piece of block(i).match(/[\s\S]{1,24}/g)) {
          text += piece;
          view.update(text);
        }
        if (kept && kept.parentNode !== root) ++replaced;
      }
      const ms = performance.now() - start;
      const count = root.children.length;
      root.remove();
      return { ms, replaced, count };
    };
    time(10);
    // Other work on the machine makes a run longer, never shorter: the best of three of each, in turns.
    const best = (a, b) => (b.ms < a.ms ? { ...b, replaced: a.replaced + b.replaced } : { ...a, replaced: a.replaced + b.replaced });
    let short = time(30);
    let long = time(240);
    for (let again = 0; again < 2; ++again) {
      short = best(short, time(30));
      long = best(long, time(240));
    }
    return { short, long };
  });
  assert.equal(result.long.count, 480);
  assert.equal(result.short.replaced + result.long.replaced, 0);
  // Eight times as long; quadratic work would take 64 times.
  assert.ok(result.long.ms < 24 * result.short.ms, `${JSON.stringify(result)}`);
});
