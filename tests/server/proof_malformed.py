"""Malformed requests: schemathesis on the server's own OpenAPI description, and mutated bytes on plain sockets."""

import collections
import concurrent.futures
import json
import random
import re
import socket
import time

import harness
from harness import KEY, SHAPES, ask, check, check_measure, equal

ABOUT = "10,000 malformed requests: no crash, no 5xx but by design, no leak, no stuck slot"

# By design: not implemented, not now, not this version of HTTP.
BY_DESIGN = {501, 503, 505}


def server_options(options):
    # Requests that stay valid shall be over soon.
    return ["--queue", "64", "--max-tokens", "8", "--context", "1024"]


# ---- schemathesis


def by_description(server, wanted, seed, seen):
    import hypothesis
    import schemathesis
    from schemathesis import GenerationMode

    status, _, text = server.request("GET", "/openapi.json")
    equal(status, 200, "/openapi.json")
    operations = [result.ok() for result in schemathesis.openapi.from_dict(json.loads(text)).get_all_operations()]
    check(len(operations) >= 5, "operations of the description", [o.label for o in operations])
    done = 0
    failures = []
    # The two that take a body get most.
    weights = {o: 10 if o.method.upper() == "POST" else 1 for o in operations}
    for operation in operations:
        for mode, share in ((GenerationMode.NEGATIVE, 0.7), (GenerationMode.POSITIVE, 0.3)):
            count = max(5, int(wanted * share * weights[operation] / sum(weights.values())))
            try:
                strategy = operation.as_strategy(generation_mode=mode)

                @hypothesis.seed(seed)
                @hypothesis.settings(max_examples=count, deadline=None, database=None, phases=[hypothesis.Phase.generate],
                                     suppress_health_check=list(hypothesis.HealthCheck))
                @hypothesis.given(case=strategy)
                def send(case):
                    nonlocal done
                    done += 1
                    response = case.call(base_url=server.url, headers={"Authorization": f"Bearer {KEY}"}, timeout=60 * harness.patience)
                    seen[response.status_code] += 1
                    if response.status_code >= 500 and response.status_code not in BY_DESIGN:
                        failures.append(f"{operation.label}: {response.status_code}: {case.as_curl_command()[:600]}")
                    elif response.status_code >= 400 and response.request.method != "HEAD":
                        problem = not_an_error_object(response.content)
                        if problem:
                            failures.append(f"{operation.label}: {response.status_code}: {problem}: {case.as_curl_command()[:600]}")

                send()
            except hypothesis.errors.Unsatisfiable:
                pass  # nothing to make wrong in an operation without parameters
            check(not failures, f"{len(failures)} answers are wrong:\n    " + "\n    ".join(failures[:5]))
            server.must_be_alive()
    return done


def not_an_error_object(body):
    try:
        error = json.loads(body)["error"]
        return None if {"message", "type", "param", "code"} <= set(error) and error["message"] else f"no error object: {body[:200]!r}"
    except (ValueError, KeyError, TypeError):
        return f"no error object: {body[:200]!r}"


# ---- bytes


def corpus(server):
    tool = {"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {"a": {"type": "integer"}}}}}
    chat = "/v1/chat/completions"
    small = {"model": "qvl", "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 4}
    image = {**small, "messages": [ask("Hi", SHAPES)]}
    small_text = json.dumps(small).encode()

    def post(path, body, headers=None):
        return server.bytes_of("POST", path, body, headers)

    return [
        post(chat, small), post(chat, image), post(chat, {**small, "stream": True}),
        post(chat, {**small, "tools": [tool], "tool_choice": "required", "temperature": 0.5, "seed": 3}),
        post(chat, {**small, "response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": {
            "type": "object", "properties": {"a": {"enum": [1, 2]}}, "required": ["a"], "additionalProperties": False}}}}),
        post(chat, {**small, "logprobs": True, "top_logprobs": 5, "n": 2, "stop": ["a", "b"], "logit_bias": {"5": -3}}),
        post(chat, {**small, "messages": [{"role": "system", "content": "a"}, {"role": "user", "content": [
            {"type": "text", "text": "äöü 大 \U0001f600"}]}, {"role": "assistant", "content": "b"}, {"role": "user", "content": "c"}]}),
        post("/v1/completions", {"model": "qvl", "prompt": ["a", "b"], "max_tokens": 2, "logprobs": 1}),
        server.bytes_of("GET", "/v1/models"), server.bytes_of("GET", "/health", headers={"Authorization": None}),
        server.bytes_of("OPTIONS", chat, headers={"Authorization": None, "Origin": "http://a", "Access-Control-Request-Method": "POST"}),
        post(chat, b"%x\r\n%s\r\n0\r\n\r\n" % (len(small_text), small_text), {"Content-Length": None, "Transfer-Encoding": "chunked"}),
    ]


HOSTILE = [b"\x00", b"\xff\xfe", b"\xed\xa0\x80", b"\r\n", b"\n\n", b"\r\n\r\n", b'"', b"\\", b"\\u0000", b"\\ud800", b"{" * 3000, b"[" * 3000, b"1e999",
           b"-1", b"99999999999999999999999", b"NaN", b"null", b"true", b"{}", b"[]", b'"<|im_start|>"', b"<|image_pad|>", b"%00", b"../" * 40,
           b"Content-Length: 5\r\n", b"Transfer-Encoding: chunked\r\n", b"Expect: 100-continue\r\n", b"A" * 20000, b"X: y\r\n" * 300,
           b"data:image/png;base64,", b"file:///etc/passwd", b"http://169.254.169.254/", b"\xf0\x9f\x98\x80" * 50]


def mutated(rng, requests):
    data = bytearray(rng.choice(requests))
    for _ in range(rng.choice((1, 1, 1, 2, 3, 6))):
        kind = rng.randrange(9)
        at = rng.randrange(len(data) + 1)
        # As often in the head and in the first fields as in the base64 of a picture.
        if rng.random() < 0.6:
            at = min(at, rng.randrange(600))
        if kind == 0 and data:
            data[at % len(data)] ^= 1 << rng.randrange(8)
        elif kind == 1:
            del data[at:at + rng.choice((1, 2, 8, 64, 1000))]
        elif kind == 2:
            data[at:at] = bytes(rng.randrange(256) for _ in range(rng.choice((1, 3, 16))))
        elif kind == 3:
            data[at:at] = rng.choice(HOSTILE)
        elif kind == 4:
            data[at:at] = data[at:at + rng.choice((1, 10, 200))]
        elif kind == 5:
            del data[at:]
        elif kind == 6:
            other = rng.choice(requests)
            data = data[:at] + bytearray(other[rng.randrange(len(other)):])
        elif kind == 7:
            numbers = list(re.finditer(rb"\d+", bytes(data[:4000])))
            if numbers:
                n = rng.choice(numbers)
                data[n.start():n.end()] = rng.choice((b"0", b"-1", b"1e400", b"18446744073709551616", b"2147483648", b"0x10", b"1.5", b""))
        else:
            data[at:at + 1] = data[at:at + 1].swapcase()
    # Half of the bodies keep a length that fits, so that the damage reaches the JSON.
    head, mark, body = bytes(data).partition(b"\r\n\r\n")
    if mark and rng.random() < 0.5:
        head = re.sub(rb"(?i)content-length:[^\r]*", b"Content-Length: %d" % len(body), head, count=1)
    return head + mark + body


def complete(data):
    """Whether a server may be expected to answer this without waiting for more; when in doubt, no."""
    head, mark, body = data.partition(b"\r\n\r\n")
    if not mark:
        return False
    if re.search(rb"(?i)transfer-encoding|expect:", head):
        return False
    length = re.search(rb"(?im)^content-length: *(\d+) *\r?$", head)
    return int(length.group(1)) <= len(body) if length else not re.search(rb"(?i)content-length", head)


def exchange(server, data):
    """Status of the first answer; 0: closed without one; None: none came, and none was due."""
    due = complete(data)
    with socket.create_connection((server.host, server.port), timeout=60 * harness.patience) as connection:
        try:
            connection.sendall(data)
            connection.settimeout(60 * harness.patience if due else 0.05)
            received = b""
            while b"\r\n\r\n" not in received:
                piece = connection.recv(65536)
                if not piece:
                    break
                received += piece
            status = re.match(rb"HTTP/1\.[01] (\d{3})", received)
            if received and not status:
                return f"not HTTP: {received[:80]!r}"
            return int(status.group(1)) if status else 0
        except socket.timeout:
            return f"no answer within {60 * harness.patience:.0f} s" if due else None
        except (ConnectionResetError, BrokenPipeError):
            return 0  # refused while still sending


def by_bytes(server, wanted, seed, seen, note):
    requests = corpus(server)
    for request in requests:
        status = exchange(server, request)
        check(status is None or status in (200, 204), "a request of the corpus is refused", status, request[:300])
    failures = []

    def worker(number):
        rng = random.Random(seed * 100 + number)
        for i in range(number, wanted, 8):
            data = mutated(rng, requests)
            status = exchange(server, data)
            seen[status if isinstance(status, (int, type(None))) else "wrong"] += 1
            if isinstance(status, str) or (status and status >= 500 and status not in BY_DESIGN):
                failures.append(f"{status}: {data[:500]!r}")
            if len(failures) > 5 or not server.alive():
                return
            if number == 0 and i % 800 == 0:
                note()

    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        list(pool.map(worker, range(8)))
    server.must_be_alive()
    check(not failures, f"{len(failures)} answers are wrong:\n    " + "\n    ".join(failures[:5]))
    return wanted


def run(server, options):
    wanted = options.requests or 10_000
    reference = server.chat([ask("Describe this image.", SHAPES)], temperature=0)["choices"][0]["message"]["content"]
    seen = collections.Counter()
    memory = []
    start = time.monotonic()
    described = by_description(server, wanted // 12, options.seed, seen)
    described_s = time.monotonic() - start
    memory.append(server.rss_mb())
    by_bytes(server, wanted - described, options.seed, seen, lambda: memory.append(server.rss_mb()))
    idle_s = server.wait_idle(15, "malformed requests")
    memory.append(server.rss_mb())
    again = server.chat([ask("Describe this image.", SHAPES)], temperature=0)["choices"][0]["message"]["content"]
    equal(again, reference, "the answer afterwards")
    # The first third fills caches and pools.
    warm = memory[len(memory) // 3]
    check_measure(memory[-1] <= warm + max(10, 0.05 * warm), "memory grows", memory)
    deadline = time.monotonic() + 30
    while server.open_files() > 40 and time.monotonic() < deadline:
        time.sleep(0.1)
    check(server.open_files() <= 40, "descriptors are left open", server.open_files())
    statuses = ", ".join(f"{k if k is not None else 'none due'}: {v}" for k, v in sorted(seen.items(), key=lambda e: str(e[0])))
    return [f"{described} by schemathesis ({described_s:.0f} s), {wanted - described} mutated; statuses: {statuses}",
            f"RSS {memory[0]:.0f} -> {memory[-1]:.0f} MB; idle after {idle_s * 1e3:.0f} ms"]
