// The page in a real Chromium: node tests/page/page_test.mjs. Skips with exit code 77 where something is missing, fails there
// if QVL_REQUIRE_PAGE=1. QVL_PAGE_SCREENSHOTS=folder keeps pictures of what it looked like; QVL_BINARY=build/release/qvl also
// runs it against that server.
import { after, before } from 'node:test';
import { missing, startAll, stopAll } from './harness.mjs';

const lack = missing();
if (lack) {
  console.error(`SKIPPED: the tests of the page need ${lack}`);
  process.exit(process.env.QVL_REQUIRE_PAGE === '1' ? 1 : 77);
}
before(startAll);
after(stopAll);
for (const name of ['upload', 'preparation', 'markdown', 'stream', 'boxes', 'conversation', 'errors', 'looks', 'server']) {
  await import(`./cases/${name}.mjs`);
}
