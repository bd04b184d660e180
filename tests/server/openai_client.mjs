// What an application does with the official openai package: the same core as proof_openai_python.py. Prints one line of
// what was done; exit code 1 and the failures otherwise.
import assert from 'node:assert/strict';
import { execFileSync } from 'node:child_process';
import { readFileSync } from 'node:fs';
import { createRequire } from 'node:module';
import { pathToFileURL } from 'node:url';

const { QVL_BASE_URL: baseURL, QVL_KEY: apiKey, QVL_ROOT: root, QVL_BINARY: binary, QVL_NODE_MODULES: modules } = process.env;
const require = createRequire(`${modules}/`);
const { default: OpenAI } = await import(pathToFileURL(require.resolve('openai')));
const { version } = JSON.parse(readFileSync(`${modules}/openai/package.json`));

const client = new OpenAI({ baseURL, apiKey, maxRetries: 0, timeout: 120000 });
const shapes = `${root}/examples/shapes.png`;
const picture = (path) => ({
  type: 'image_url',
  image_url: { url: `data:image/png;base64,${readFileSync(path).toString('base64')}` },
});
const ask = (text, ...paths) => ({ role: 'user', content: [...paths.map(picture), { type: 'text', text }] });
const create = (messages, more = {}) => client.chat.completions.create({ model: 'qvl', messages, temperature: 0, ...more });
const answer = async (...args) => (await create(...args)).choices[0].message.content;
const cli = (...args) =>
  execFileSync(binary, args, { encoding: 'utf8', env: { ...process.env, QVL_IMAGE_MEMORY: 'off' } }).replace(/\n$/, '');
const DESCRIBE = 'Describe this image.';
const paint = {
  type: 'function',
  function: {
    name: 'paint',
    parameters: {
      type: 'object', additionalProperties: false, required: ['shape', 'size'],
      properties: { shape: { enum: ['circle', 'square'] }, size: { type: 'integer', minimum: 1, maximum: 9 } },
    },
  },
};

const cases = {
  async models() {
    const list = [];
    for await (const model of await client.models.list()) list.push(model);
    assert.equal(list[0].object, 'model');
    assert.equal((await client.models.retrieve(list[0].id)).id, list[0].id);
  },
  async chat() {
    const reply = await create([{ role: 'system', content: 'Be brief.' }, { role: 'user', content: 'Hello' }]);
    assert.equal(reply.choices[0].message.content, cli('run', '--greedy', '--system', 'Be brief.', 'Hello'));
    assert.equal(reply.usage.total_tokens, reply.usage.prompt_tokens + reply.usage.completion_tokens);
  },
  async image() {
    const reply = await create([ask('How many circles are there?', shapes)]);
    assert.equal(reply.choices[0].message.content, cli('run', '--greedy', '-i', shapes, 'How many circles are there?'));
    assert.equal(reply.qvl.images[0].width, 192);
  },
  async streaming() {
    const stream = await create([ask(DESCRIBE, shapes)], { stream: true, stream_options: { include_usage: true } });
    let text = '', usage = null, reason = null;
    for await (const chunk of stream) {
      text += chunk.choices[0]?.delta?.content ?? '';
      reason ??= chunk.choices[0]?.finish_reason;
      usage = chunk.usage ?? usage;
    }
    assert.equal(text, await answer([ask(DESCRIBE, shapes)]));
    assert.equal(reason, 'stop');
    assert.ok(usage.completion_tokens > 5);
  },
  async streamHelper() {
    const runner = client.chat.completions.stream({ model: 'qvl', messages: [ask(DESCRIBE, shapes)], temperature: 0 });
    let deltas = '';
    runner.on('content', (delta) => (deltas += delta));
    assert.equal(await runner.finalContent(), deltas);
    assert.equal((await runner.finalChatCompletion()).choices[0].finish_reason, 'stop');
  },
  async abort() {
    const controller = new AbortController();
    const stream = await client.chat.completions.create(
      { model: 'qvl', messages: [ask('Hello')], max_tokens: 2000, stream: true, ignore_eos: true },
      { signal: controller.signal });
    let seen = 0;
    try {
      for await (const chunk of stream) if (++seen === 3) controller.abort();
    } catch (error) {
      assert.ok(error instanceof OpenAI.APIUserAbortError);
    }
    assert.ok(seen < 100);
  },
  async tools() {
    for (const tool_choice of ['required', { type: 'function', function: { name: 'paint' } }]) {
      const reply = await create([ask('Paint the circle.', shapes)], { tools: [paint], tool_choice, max_tokens: 200 });
      assert.equal(reply.choices[0].finish_reason, 'tool_calls');
      const call = reply.choices[0].message.tool_calls[0];
      assert.equal(call.function.name, 'paint');
      assert.ok(['circle', 'square'].includes(JSON.parse(call.function.arguments).shape));
      const again = await create(
        [ask('Paint the circle.', shapes), reply.choices[0].message,
          ...reply.choices[0].message.tool_calls.map(({ id }) => ({ role: 'tool', tool_call_id: id, content: 'done' }))],
        { tools: [paint], tool_choice: 'none', max_tokens: 32 });
      assert.equal(again.choices[0].message.role, 'assistant');
    }
    const auto = (await create([ask('Hello')], { tools: [paint], tool_choice: 'auto', max_tokens: 64 })).choices[0];
    assert.ok(auto.message.content || auto.message.tool_calls);
    const runner = client.chat.completions.stream({ model: 'qvl', messages: [ask('Paint.')], temperature: 0, tools: [paint],
      tool_choice: 'required', max_tokens: 200 });
    const streamed = (await runner.finalChatCompletion()).choices[0].message.tool_calls[0];
    assert.ok(JSON.parse(streamed.function.arguments).size >= 1);
  },
  async schema() {
    const response_format = {
      type: 'json_schema',
      json_schema: {
        name: 'count', strict: true,
        schema: { type: 'object', required: ['circles'], additionalProperties: false,
          properties: { circles: { type: 'integer', minimum: 0, maximum: 20 } } },
      },
    };
    const reply = await client.chat.completions.parse({ model: 'qvl', messages: [ask('How many circles are there?', shapes)],
      temperature: 0, response_format, max_tokens: 100 });
    assert.ok(Number.isInteger(reply.choices[0].message.parsed.circles));
    const object = (await create([ask('As JSON.', shapes)], { response_format: { type: 'json_object' }, max_tokens: 400 })).choices[0];
    if (object.finish_reason === 'stop') assert.equal(typeof JSON.parse(object.message.content), 'object');
  },
  async logprobs() {
    const reply = (await create([ask(DESCRIBE, shapes)], { logprobs: true, top_logprobs: 2 })).choices[0];
    assert.ok(reply.logprobs.content.length > 5);
    for (const token of reply.logprobs.content) assert.equal(token.top_logprobs.length, 2);
  },
  async choicesStopAndSeed() {
    const fields = { n: 3, temperature: 1.5, seed: 7, max_tokens: 24 };
    const texts = (reply) => reply.choices.map((c) => c.message.content);
    const first = texts(await create([ask(DESCRIBE, shapes)], fields));
    assert.equal(first.length, 3);
    assert.deepEqual(texts(await create([ask(DESCRIBE, shapes)], fields)), first);
    const whole = await answer([ask(DESCRIBE, shapes)]);
    const word = whole.split(' ')[3];
    assert.equal(await answer([ask(DESCRIBE, shapes)], { stop: [word] }), whole.slice(0, whole.indexOf(word)));
  },
  async completions() {
    const fields = { model: 'qvl', prompt: 'The text', max_tokens: 6, temperature: 0, ignore_eos: true };
    const reply = await client.completions.create(fields);
    assert.equal(reply.choices[0].finish_reason, 'length');
    let text = '';
    for await (const chunk of await client.completions.create({ ...fields, stream: true }))
      text += chunk.choices[0]?.text ?? '';
    assert.equal(text, reply.choices[0].text);
  },
  async errors() {
    await assert.rejects(create([ask('Hi')], { temperature: -1 }),
      (e) => e instanceof OpenAI.BadRequestError && e.param === 'temperature' && Boolean(e.requestID));
    await assert.rejects(create([ask('Hi')], { nonsense: 1 }), OpenAI.BadRequestError);
    await assert.rejects(new OpenAI({ baseURL, apiKey: 'sk-wrong', maxRetries: 0 }).models.list(),
      (e) => e instanceof OpenAI.AuthenticationError && e.code === 'invalid_api_key');
    await assert.rejects(client.models.retrieve('no-such-model'), OpenAI.NotFoundError);
    await assert.rejects(client.embeddings.create({ model: 'qvl', input: 'Hi' }), OpenAI.NotFoundError);
    await assert.rejects(new OpenAI({ baseURL: 'http://127.0.0.1:9/v1', apiKey, maxRetries: 0 }).models.list(), OpenAI.APIConnectionError);
    await assert.rejects(client.chat.completions.create({ model: 'qvl', messages: [ask(DESCRIBE, shapes)] }, { timeout: 1 }),
      OpenAI.APIConnectionTimeoutError);
  },
  async rateLimit() {
    const all = await Promise.allSettled(Array.from({ length: 64 }, () =>
      create([ask('Hello')], { max_tokens: 600, ignore_eos: true })));
    const refused = all.filter((r) => r.status === 'rejected').map((r) => r.reason);
    assert.ok(refused.length > 0 && refused.length < 64, `${refused.length} of 64 refused`);
    for (const error of refused) assert.ok(error instanceof OpenAI.RateLimitError && error.headers.get('retry-after'), String(error));
  },
};

let failed = 0;
for (const [name, run] of Object.entries(cases)) {
  try {
    await run();
  } catch (error) {
    ++failed;
    console.error(`${name}: ${error.stack ?? error}`);
  }
}
if (failed) process.exit(1);
console.log(`openai ${version}, node ${process.version}: ${Object.keys(cases).join(', ')}`);
