"""The official openai package for Python, unchanged but for its base_url."""

import asyncio
import base64
import concurrent.futures
import json
import math
from typing import Literal

import openai
from pydantic import BaseModel

import harness
from harness import KEY, PHOTO, SHAPES, WITH_KEY, ask, check, data_url, equal, run_cli

ABOUT = f"the official openai Python client {openai.__version__}"

QUESTION = "How many circles are there?"
DESCRIBE = "Describe this image."
TOOL = {"type": "function",
        "function": {"name": "paint", "description": "Paints a shape",
                     "parameters": {"type": "object", "additionalProperties": False, "required": ["shape", "size"],
                                    "properties": {"shape": {"enum": ["circle", "square"]},
                                                   "size": {"type": "integer", "minimum": 1, "maximum": 9}}}}}
OTHER = {"type": "function",
         "function": {"name": "erase", "parameters": {"type": "object", "additionalProperties": False, "properties": {}}}}


class Shape(BaseModel):
    color: Literal["red", "green", "blue", "yellow"]
    sides: int


class Picture(BaseModel):
    shapes: list[Shape]
    dark: bool


def server_options(options):
    return WITH_KEY + ["--queue", "4"]


def client_of(server, **more):
    return openai.OpenAI(base_url=server.base_url, api_key=KEY, max_retries=0, timeout=120 * harness.patience, **more)


def create(client, messages, **fields):
    return client.chat.completions.create(model="qvl", messages=messages, **{"temperature": 0, **fields})


def models(server, client, options):
    listed = client.models.list().data
    check(listed, "no model is listed")
    equal(listed[0].object, "model", "models[0].object")
    equal(client.models.retrieve(listed[0].id).id, listed[0].id, "models.retrieve")


def text_chat(server, client, options):
    reply = create(client, [{"role": "system", "content": "Be brief."}, ask("Hello")])
    equal(reply.object, "chat.completion", "object")
    choice = reply.choices[0]
    equal(choice.finish_reason, "stop", "finish_reason")
    equal(choice.message.role, "assistant", "role")
    check(choice.message.content, "no content")
    usage = reply.usage
    equal(usage.total_tokens, usage.prompt_tokens + usage.completion_tokens, "usage.total_tokens")
    expected = run_cli(options.binary, "run", "--greedy", "--system", "Be brief.", "Hello").removesuffix("\n")
    equal(choice.message.content, expected, "the answer of `qvl run`")


def image(server, client, options):
    for path in (SHAPES, PHOTO):
        for question in (QUESTION, DESCRIBE):
            reply = create(client, [ask(question, path)])
            expected = run_cli(options.binary, "run", "--greedy", "-i", path, question).removesuffix("\n")
            equal(reply.choices[0].message.content, expected, f"{path.name}, {question}: the answer of `qvl run`")
    facts = reply.to_dict()["qvl"]["images"][0]
    for key in ("width", "height", "resized_width", "resized_height", "grid_thw", "tokens", "encode_ms", "cached"):
        check(key in facts, f"qvl.images[0] has no {key}", facts)
    for detail in ("low", "high", "auto"):
        message = ask(QUESTION, SHAPES)
        message["content"][0]["image_url"]["detail"] = detail
        other = create(client, [message]).to_dict()["qvl"]["images"][0]
        equal((other["width"], other["resized_width"]), (192, other["resized_width"]), "detail changes nothing")
        equal(other["tokens"], create(client, [ask(QUESTION, SHAPES)]).to_dict()["qvl"]["images"][0]["tokens"],
              f"tokens with detail {detail}")
    again = create(client, [ask(QUESTION, SHAPES)])
    check(again.usage.prompt_tokens_details.cached_tokens > 0, "nothing cached the second time", again.usage)


def several_images(server, client, options):
    first, second = SHAPES.with_name("first.png"), SHAPES.with_name("second.png")
    reply = create(client, [ask("What differs?", first, second)])
    expected = run_cli(options.binary, "run", "--greedy", "-i", first, "-i", second, "What differs?").removesuffix("\n")
    equal(reply.choices[0].message.content, expected, "the answer of `qvl run`")
    # In any order with text between them.
    content = [{"type": "text", "text": "One: "}, ask("", first)["content"][0], {"type": "text", "text": " two: "},
               ask("", second)["content"][0], {"type": "text", "text": "What differs?"}]
    check(create(client, [{"role": "user", "content": content}]).choices[0].message.content, "no answer")


def turns(server, client, options):
    first = create(client, [ask(DESCRIBE, SHAPES)]).choices[0].message.content
    reply = create(client, [ask(DESCRIBE, SHAPES), {"role": "assistant", "content": first}, ask(QUESTION)])
    check(reply.usage.prompt_tokens_details.cached_tokens > 40, "the picture was computed again", reply.usage)


def streaming(server, client, options):
    whole = create(client, [ask(DESCRIBE, SHAPES)])
    chunks = list(create(client, [ask(DESCRIBE, SHAPES)], stream=True, stream_options={"include_usage": True}))
    equal({c.object for c in chunks}, {"chat.completion.chunk"}, "objects of a stream")
    equal(len({c.id for c in chunks}), 1, "ids of a stream")
    equal(chunks[0].choices[0].delta.role, "assistant", "the first delta's role")
    text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    equal(text, whole.choices[0].message.content, "the text of a stream")
    reasons = [c.choices[0].finish_reason for c in chunks if c.choices and c.choices[0].finish_reason]
    equal(reasons, ["stop"], "finish reasons of a stream")
    equal(chunks[-1].choices, [], "choices of the last chunk")
    equal(chunks[-1].usage.completion_tokens, whole.usage.completion_tokens, "usage of a stream")
    check(all(c.usage is None for c in chunks[:-1]), "usage before the last chunk")
    check(len(chunks) > 5, "the answer came in one piece", len(chunks))
    without = list(create(client, [ask("Hello")], stream=True))
    check(all(c.usage is None for c in without) and without[-1].choices, "usage that nobody asked for")


def stream_helper(server, client, options):
    with client.chat.completions.stream(model="qvl", messages=[ask(DESCRIBE, SHAPES)], temperature=0) as stream:
        events = [event.type for event in stream]
        final = stream.get_final_completion()
    check("content.delta" in events and "content.done" in events, "events of the helper", events)
    equal(final.choices[0].message.content, create(client, [ask(DESCRIBE, SHAPES)]).choices[0].message.content, "final text")


def leaving_a_stream(server, client, options):
    stream = create(client, [ask("Hello")], stream=True, max_tokens=2000, extra_body={"ignore_eos": True})
    for i, _ in enumerate(stream):
        if i == 3:
            break
    stream.close()
    server.wait_idle(5, "a stream that was left")


def check_call(call, names):
    equal(call.type, "function", "type of a call")
    check(call.id.startswith("call_"), "id of a call", call.id)
    check(call.function.name in names, "name of a call", call.function.name)
    arguments = json.loads(call.function.arguments)
    if call.function.name == "paint":
        check(arguments["shape"] in ("circle", "square") and 1 <= arguments["size"] <= 9 and len(arguments) == 2,
              "arguments of a call", arguments)
    else:
        equal(arguments, {}, "arguments of a call")
    return arguments


def tools_auto(server, client, options):
    for choice in (None, "auto"):
        fields = {"tool_choice": choice} if choice else {}
        reply = create(client, [ask(QUESTION, SHAPES)], tools=[TOOL, OTHER], max_tokens=64, **fields).choices[0]
        if reply.message.tool_calls:
            equal(reply.finish_reason, "tool_calls", "finish_reason")
            for call in reply.message.tool_calls:
                check_call(call, ("paint", "erase"))
        else:
            check(reply.message.content, "neither a call nor text", reply)
    reply = create(client, [ask(QUESTION, SHAPES)], tools=[TOOL], tool_choice="none", max_tokens=64).choices[0]
    check(reply.message.tool_calls is None and reply.message.content, "a call in spite of none", reply)


def tools_required(server, client, options):
    for seed in range(4):
        reply = create(client, [ask("Paint something.", SHAPES)], tools=[TOOL, OTHER], tool_choice="required", temperature=1,
                       seed=seed, max_tokens=200).choices[0]
        equal(reply.finish_reason, "tool_calls", "finish_reason")
        check(reply.message.tool_calls, "no call", reply)
        for call in reply.message.tool_calls:
            check_call(call, ("paint", "erase"))


def tools_named(server, client, options):
    named = {"type": "function", "function": {"name": "paint"}}
    fields = dict(tools=[OTHER, TOOL], tool_choice=named, max_tokens=200, parallel_tool_calls=False)
    reply = create(client, [ask("Paint the circle.", SHAPES)], **fields).choices[0]
    equal(len(reply.message.tool_calls), 1, "number of calls")
    arguments = check_call(reply.message.tool_calls[0], ("paint",))
    # Streamed, its pieces make the same call.
    name, text, ids = "", "", set()
    for chunk in create(client, [ask("Paint the circle.", SHAPES)], stream=True, **fields):
        for call in (chunk.choices[0].delta.tool_calls or []) if chunk.choices else []:
            equal(call.index, 0, "index of a call")
            name += call.function.name or ""
            text += call.function.arguments or ""
            ids |= {call.id} if call.id else set()
        reason = chunk.choices[0].finish_reason if chunk.choices else None
        if reason:
            equal(reason, "tool_calls", "finish_reason of the stream")
    equal((name, json.loads(text), len(ids)), ("paint", arguments, 1), "the streamed call")


def tool_results(server, client, options):
    call = {"id": "call_1", "type": "function", "function": {"name": "paint", "arguments": '{"shape": "circle", "size": 3}'}}
    reply = create(client, [ask("Paint."), {"role": "assistant", "content": None, "tool_calls": [call]},
                            {"role": "tool", "tool_call_id": "call_1", "content": '{"painted": true}'}],
                   tools=[TOOL], tool_choice="none", max_tokens=32).choices[0]
    equal(reply.message.role, "assistant", "role")


def json_schema(server, client, options):
    reply = client.chat.completions.parse(model="qvl", messages=[ask("List the shapes.", SHAPES)], temperature=0,
                                          response_format=Picture, max_tokens=600)
    check(isinstance(reply.choices[0].message.parsed, Picture), "not parsed", reply.choices[0])
    schema = {"type": "object", "required": ["answer"], "additionalProperties": False,
              "properties": {"answer": {"type": "integer", "minimum": 0, "maximum": 20}}}
    wanted = {"type": "json_schema", "json_schema": {"name": "count", "strict": True, "schema": schema}}
    answer = create(client, [ask(QUESTION, SHAPES)], response_format=wanted, max_tokens=100).choices[0]
    equal(answer.finish_reason, "stop", "finish_reason")
    check(0 <= json.loads(answer.message.content)["answer"] <= 20, "content", answer.message.content)
    streamed = "".join(c.choices[0].delta.content or "" for c in create(
        client, [ask(QUESTION, SHAPES)], response_format=wanted, max_tokens=100, stream=True) if c.choices)
    equal(streamed, answer.message.content, "the streamed answer")


def json_object(server, client, options):
    reply = create(client, [ask("Describe this image as JSON.", SHAPES)], response_format={"type": "json_object"}, max_tokens=400)
    if reply.choices[0].finish_reason == "stop":
        check(isinstance(json.loads(reply.choices[0].message.content), dict), "no object", reply.choices[0].message.content)
    equal(create(client, [ask("Hello")], response_format={"type": "text"}).choices[0].finish_reason, "stop", "format text")


def parsed_tools(server, client, options):
    class Paint(BaseModel):
        shape: Literal["circle", "square"]
        size: Literal[1, 2, 3]

    reply = client.chat.completions.parse(model="qvl", messages=[ask("Paint.")], tools=[openai.pydantic_function_tool(Paint)],
                                          tool_choice="required", parallel_tool_calls=False, temperature=0, max_tokens=200)
    call = reply.choices[0].message.tool_calls[0]
    check(isinstance(call.function.parsed_arguments, Paint), "not parsed", call)


def logprobs(server, client, options):
    reply = create(client, [ask(DESCRIBE, SHAPES)], logprobs=True, top_logprobs=3).choices[0]
    tokens = reply.logprobs.content
    check(tokens, "no logprobs")
    text = b"".join(bytes(t.bytes) for t in tokens)
    check(text.decode(errors="replace").startswith(reply.message.content) or text.decode() == reply.message.content,
          "the tokens are not the text", text, reply.message.content)
    for token in tokens:
        check(-1e-3 <= -token.logprob < 1e3, "logprob", token)
        equal(len(token.top_logprobs), 3, "top_logprobs")
        ordered = [t.logprob for t in token.top_logprobs]
        equal(ordered, sorted(ordered, reverse=True), "order of top_logprobs")
        check(abs(token.logprob - ordered[0]) < 1e-6, "greedy takes the likeliest", token)
        check(sum(math.exp(p) for p in ordered) < 1.0001, "probabilities above 1", ordered)
    streamed = [t for c in create(client, [ask(DESCRIBE, SHAPES)], logprobs=True, stream=True) if c.choices and c.choices[0].logprobs
                for t in c.choices[0].logprobs.content or []]
    equal([t.token for t in streamed], [t.token for t in tokens], "tokens of the stream")


def three_choices(server, client, options):
    fields = dict(temperature=1.5, seed=7, max_tokens=24)
    reply = create(client, [ask(DESCRIBE, SHAPES)], n=3, **fields)
    equal([c.index for c in reply.choices], [0, 1, 2], "indexes")
    texts = [c.message.content for c in reply.choices]
    equal([c.message.content for c in create(client, [ask(DESCRIBE, SHAPES)], n=3, **fields).choices], texts, "the same seed again")
    equal(create(client, [ask(DESCRIBE, SHAPES)], **fields).choices[0].message.content, texts[0], "one choice of the same seed")
    check(len(set(texts)) > 1, "three choices are one", texts)
    streamed = {0: "", 1: "", 2: ""}
    for chunk in create(client, [ask(DESCRIBE, SHAPES)], n=3, stream=True, **fields):
        for choice in chunk.choices:
            streamed[choice.index] += choice.delta.content or ""
    equal([streamed[i] for i in range(3)], texts, "streamed choices")


def stop_and_length(server, client, options):
    whole = create(client, [ask(DESCRIBE, SHAPES)]).choices[0].message.content
    word = whole.split()[3]
    for stop in (word, ["never said", word]):
        reply = create(client, [ask(DESCRIBE, SHAPES)], stop=stop).choices[0]
        equal(reply.message.content, whole[:whole.index(word)], "the text before a stop string")
        equal(reply.finish_reason, "stop", "finish_reason")
    for limit in ("max_tokens", "max_completion_tokens"):
        reply = create(client, [ask(DESCRIBE, SHAPES)], **{limit: 3})
        equal((reply.choices[0].finish_reason, reply.usage.completion_tokens), ("length", 3), limit)


def seeds_and_sampling(server, client, options):
    def say(**fields):
        return create(client, [ask(DESCRIBE, SHAPES)], **{"temperature": 1.5, "max_tokens": 24, **fields}).choices[0].message.content
    equal(say(seed=3), say(seed=3), "the same seed")
    check(len({say(seed=s) for s in range(5)}) > 1, "five seeds say the same")
    greedy = say(temperature=0)
    equal(say(seed=1, top_p=1e-6), greedy, "top_p near 0")
    equal(say(seed=1, extra_body={"top_k": 1}), greedy, "top_k 1")
    equal(say(seed=1, extra_body={"min_p": 1}), greedy, "min_p 1")
    check(say(seed=1, presence_penalty=1.0, frequency_penalty=0.5), "penalties")


def completions(server, client, options):
    fields = dict(model="qvl", max_tokens=6, temperature=0, extra_body={"ignore_eos": True})
    reply = client.completions.create(prompt="The text", **fields)
    equal((reply.object, reply.choices[0].finish_reason), ("text_completion", "length"), "completion")
    text = reply.choices[0].text
    equal(client.completions.create(prompt="The text", echo=True, **fields).choices[0].text, "The text" + text, "echo")
    two = client.completions.create(prompt=["The text", "A red"], n=2, **fields)
    equal([c.index for c in two.choices], [0, 1, 2, 3], "indexes")
    equal(two.choices[0].text, two.choices[1].text, "two greedy choices")
    streamed = "".join(c.choices[0].text for c in client.completions.create(prompt="The text", stream=True, **fields) if c.choices)
    equal(streamed, text, "the streamed text")
    choice = client.completions.create(model="qvl", prompt="The text", max_tokens=3, temperature=0, logprobs=2).choices[0]
    likely = choice.logprobs
    equal("".join(likely.tokens), choice.text, "tokens")
    equal(len(likely.token_logprobs), len(likely.tokens), "token_logprobs")


def raises(kind, status, what, call, code=None):
    try:
        call()
    except kind as error:
        if status is not None:
            equal(error.status_code, status, f"{what}: status")
            check(isinstance(error.body, dict) and error.body.get("message"), f"{what}: no message", error.body)
            check(error.response.headers.get("x-request-id"), f"{what}: no x-request-id")
            check({"message", "type", "param", "code"} <= set(error.body), f"{what}: fields of the error", error.body)
        if code is not None:
            equal(error.code, code, f"{what}: code")
        return error
    raise AssertionError(f"{what}: expected {kind.__name__}, nothing was raised")


def errors(server, client, options):
    bad = openai.BadRequestError
    error = raises(bad, 400, "temperature", lambda: create(client, [ask("Hi")], temperature=-1))
    equal(error.param, "temperature", "param")
    error = raises(bad, 400, "unknown field", lambda: create(client, [ask("Hi")], extra_body={"nonsense": 1}))
    check("nonsense" in str(error), "the field is not named", str(error))
    raises(bad, 400, "no messages", lambda: create(client, []))
    raises(bad, 400, "audio", lambda: create(client, [ask("Hi")], modalities=["text", "audio"], audio={"voice": "alloy", "format": "wav"}))
    broken = {"type": "image_url", "image_url": {"url": "data:image/png;base64," + base64.b64encode(b"no picture").decode()}}
    error = raises(bad, 400, "broken picture", lambda: create(client, [{"role": "user", "content": [broken]}]))
    check("messages[0].content[0]" in (error.param or ""), "param of a broken picture", error.param)
    for url in ("http://127.0.0.1/x.png", "https://example.com/x.png", "file:///etc/passwd", "/etc/passwd"):
        raises(bad, 400, url, lambda: create(client, [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": url}}]}]))
    raises(bad, 400, "schema", lambda: create(client, [ask("Hi")], response_format={
        "type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "nonsense"}}}))
    raises(bad, 400, "too many tokens", lambda: create(client, [ask("word " * 400000)]), "context_length_exceeded")
    wrong = openai.OpenAI(base_url=server.base_url, api_key="sk-wrong", max_retries=0)
    raises(openai.AuthenticationError, 401, "wrong key", lambda: wrong.models.list(), "invalid_api_key")
    raises(openai.AuthenticationError, 401, "wrong key", lambda: create(wrong, [ask("Hi")]), "invalid_api_key")
    raises(openai.NotFoundError, 404, "model", lambda: client.models.retrieve("no-such-model"), "model_not_found")
    raises(openai.NotFoundError, 404, "route", lambda: client.embeddings.create(model="qvl", input="Hi"))
    elsewhere = client.with_options(default_headers={"Host": "evil.example"})
    raises(openai.PermissionDeniedError, 403, "another host", lambda: elsewhere.models.list())
    raises(openai.APITimeoutError, None, "timeout", lambda: create(client.with_options(timeout=0.001), [ask(DESCRIBE, PHOTO)]))
    nobody = openai.OpenAI(base_url="http://127.0.0.1:9/v1", api_key=KEY, max_retries=0)
    raises(openai.APIConnectionError, None, "nobody there", lambda: nobody.models.list())
    huge = "x" * (200 << 20)
    try:
        create(client, [ask(huge)])
        raise AssertionError("a body of 200 MB was taken")
    except openai.APIStatusError as error:
        equal(error.status_code, 413, "a body of 200 MB")
    except openai.APIConnectionError:
        pass  # the server answered 413 and closed while the client was still sending
    server.wait_idle(10, "refused requests")


def rate_limit(server, client, options):
    def one(_):
        try:
            create(client, [ask("Hello")], max_tokens=600, extra_body={"ignore_eos": True})
            return None
        except openai.RateLimitError as error:
            return error
    with concurrent.futures.ThreadPoolExecutor(64) as pool:
        refused = [e for e in pool.map(one, range(64)) if e]
    check(refused, "64 requests at once and a queue of 4: none was refused")
    check(len(refused) < 64, "all were refused")
    for error in refused:
        equal((error.status_code, error.code), (429, "rate_limit_exceeded"), "a full queue")
        check(int(error.response.headers["retry-after"]) >= 1, "Retry-After", dict(error.response.headers))
    server.wait_idle(30, "a burst")
    # The client's own retries get through.
    patient = openai.OpenAI(base_url=server.base_url, api_key=KEY, max_retries=20, timeout=120 * harness.patience)
    with concurrent.futures.ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(lambda _: create(patient, [ask("Hello")], max_tokens=50), range(16)))
    equal(len({a.choices[0].message.content for a in answers}), 1, "greedy answers under load")


def asynchronous(server, client, options):
    async def run():
        async with openai.AsyncOpenAI(base_url=server.base_url, api_key=KEY, max_retries=20) as each:
            async def text(question):
                stream = await each.chat.completions.create(model="qvl", messages=[ask(question, SHAPES)], temperature=0, stream=True)
                return "".join([c.choices[0].delta.content or "" async for c in stream if c.choices])
            return await asyncio.gather(*(text(q) for q in (QUESTION, DESCRIBE, QUESTION, "What colour is the square?")))
    together = asyncio.run(run())
    alone = [create(client, [ask(q, SHAPES)]).choices[0].message.content for q in (QUESTION, DESCRIBE, QUESTION, "What colour is the square?")]
    equal(together, alone, "answers side by side")


def grounding(server, client, options):
    reply = create(client, [ask("Where is the red circle?", SHAPES)], extra_body={"grounding": "pixels"})
    items = reply.choices[0].to_dict()["qvl"]["grounding"]["items"]
    equal(len(items), 1, "boxes")
    x0, y0, x1, y1 = items[0]["pixels"]
    check(0 <= x0 < x1 <= 192 and 0 <= y0 < y1 <= 160, "a box in the picture", items)


CASES = [models, text_chat, image, several_images, turns, streaming, stream_helper, leaving_a_stream, tools_auto, tools_required,
         tools_named, tool_results, json_schema, json_object, parsed_tools, logprobs, three_choices, stop_and_length,
         seeds_and_sampling, completions, errors, rate_limit, asynchronous, grounding]


def run(server, options):
    failures = []
    with client_of(server) as client:
        for case in CASES:
            try:
                case(server, client, options)
            except (AssertionError, openai.OpenAIError, KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
                failures.append(f"{case.__name__}: {type(error).__name__}: {error}")
            server.must_be_alive()
    check(not failures, f"{len(failures)} of {len(CASES)} cases failed:\n    " + "\n    ".join(failures))
    return [f"{len(CASES)} cases: " + ", ".join(case.__name__ for case in CASES)]
