"""Mixed load for a while: memory, descriptors and threads stay where they are, every answer is one that was asked for."""

import collections
import concurrent.futures
import json
import random
import socket
import threading
import time

import jsonschema
import harness

from harness import Failure, ask, check, equal, eval_pictures, percentile, slope_per_minute, sse_events
from proof_schema import SCHEMAS

ABOUT = "mixed load (text, pictures, streams, cancels, errors, schemas), flat memory"
CLIENTS = 6
# Schemas that allow answers without an end.
UNBOUNDED = {"fraction"}
ERRORS = [({"messages": "no list"}, 400), ({"model": "qvl"}, 400), ({"messages": [{"role": "user", "content": "Hi"}], "temperature": -3}, 400),
          ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}]}]}, 400),
          ({"messages": [{"role": "user", "content": "Hi"}], "nonsense": True}, 400)]


def server_options(options):
    # What guesses remember, up to 131,072 tokens a slot, grows until it is full, which takes longer than this does.
    return ["--queue", "64", "--speculate", "off"]


class Load:
    def __init__(self, server, options):
        self.server, self.options = server, options
        self.pictures = eval_pictures()[::6]
        self.lock = threading.Lock()
        self.seconds = collections.defaultdict(list)
        self.tokens = 0
        self.problems = []
        self.greedy = {}

    def same(self, key, text):
        """Greedy answers never change, whoever else is served."""
        with self.lock:
            first = self.greedy.setdefault(key, text)
        equal(text, first, f"the greedy answer to {key}")

    def count(self, reply):
        with self.lock:
            self.tokens += reply["usage"]["completion_tokens"]

    def warm_up(self):
        """Every picture and every schema once, so that what is remembered of them is there before memory is measured."""
        with concurrent.futures.ThreadPoolExecutor(CLIENTS) as pool:
            jobs = [pool.submit(self.describe, p) for p in self.pictures] + [pool.submit(self.fill_in, n, self.pictures[0]) for n in SCHEMAS]
            for job in jobs:
                job.result()

    def describe(self, shown):
        reply = self.server.chat([ask("Describe this image.", shown)], temperature=0, max_tokens=60)
        self.count(reply)
        self.same(shown.name, reply["choices"][0]["message"]["content"])

    def fill_in(self, name, shown, seed=0):
        reply = self.server.chat([ask("Fill in.", shown)], temperature=1, seed=seed, max_tokens=600, response_format={
            "type": "json_schema", "json_schema": {"name": name, "schema": SCHEMAS[name]}})
        self.count(reply)
        choice = reply["choices"][0]
        if choice["finish_reason"] == "length":
            # A number may have as many digits as it likes, and at this temperature a few like 600: such an answer is cut, and says so.
            check(name in UNBOUNDED, f"{name} with seed {seed}: cut, though what it allows ends", choice["message"]["content"])
            return
        try:
            jsonschema.validate(json.loads(choice["message"]["content"]), SCHEMAS[name])
        except (json.JSONDecodeError, jsonschema.ValidationError) as error:
            raise Failure(f"{name} with seed {seed} about {shown.name}: {error}: {choice['message']['content']!r}") from error

    # ---- what clients do

    def text(self, rng):
        reply = self.server.chat([ask("Hello")], temperature=0, max_tokens=60)
        self.count(reply)
        self.same("Hello", reply["choices"][0]["message"]["content"])

    def image(self, rng):
        self.describe(rng.choice(self.pictures))

    def images(self, rng):
        self.count(self.server.chat([ask("What differs?", *rng.sample(self.pictures, 2))], temperature=1, max_tokens=40, n=2))

    def stream(self, rng):
        shown = rng.choice(self.pictures)
        status, _, body = self.server.request("POST", "/v1/chat/completions", {
            "messages": [ask("Describe this image.", shown)], "temperature": 0, "max_tokens": 60, "stream": True,
            "stream_options": {"include_usage": True}})
        equal(status, 200, "status of a stream")
        events = sse_events(body.decode())
        self.count(events[-1])
        self.same(shown.name, "".join(e["choices"][0]["delta"].get("content") or "" for e in events if e["choices"]))

    def cancel(self, rng):
        with socket.create_connection((self.server.host, self.server.port), timeout=60 * harness.patience) as connection:
            connection.sendall(self.server.chat_bytes([ask("Hello")], max_tokens=4000, ignore_eos=True, temperature=1))
            check(b" 200 " in connection.recv(4096)[:20], "no stream to cancel")

    def error(self, rng):
        body, expected = rng.choice(ERRORS)
        status, _, text = self.server.request("POST", "/v1/chat/completions", body)
        equal(status, expected, f"status of a bad request ({text[:200]!r})")

    def schema(self, rng):
        self.fill_in(rng.choice(list(SCHEMAS)), rng.choice(self.pictures), rng.randrange(2**31))

    def completion(self, rng):
        status, _, body = self.server.request("POST", "/v1/completions", {"prompt": "The text", "max_tokens": 30, "seed": rng.randrange(99)})
        equal(status, 200, "status of a completion")
        self.count(json.loads(body))

    def page(self, rng):
        for path in ("/health", "/v1/models", "/metrics"):
            equal(self.server.request("GET", path)[0], 200, path)

    WEIGHTS = {"text": 3, "image": 4, "images": 1, "stream": 4, "cancel": 2, "error": 2, "schema": 1, "completion": 1, "page": 1}

    def client(self, number, until):
        rng = random.Random(self.options.seed * 1000 + number)
        names, weights = list(self.WEIGHTS), list(self.WEIGHTS.values())
        while time.monotonic() < until and len(self.problems) < 10:
            name = rng.choices(names, weights)[0]
            start = time.monotonic()
            try:
                getattr(self, name)(rng)
            except Exception as error:
                self.problems.append(f"{name}: {type(error).__name__}: {error}")
            with self.lock:
                self.seconds[name].append(time.monotonic() - start)


def run(server, options):
    load = Load(server, options)
    load.warm_up()
    load.tokens = 0
    start = time.monotonic()
    until = start + options.seconds
    threads = [threading.Thread(target=load.client, args=(n, until)) for n in range(CLIENTS)]
    for t in threads:
        t.start()
    samples = []
    while any(t.is_alive() for t in threads):
        time.sleep(min(1.0, options.seconds / 60))
        server.must_be_alive()
        samples.append((time.monotonic() - start, server.rss_mb(), server.open_files(), server.threads()))
    check(not load.problems, "answers went wrong:\n    " + "\n    ".join(load.problems[:5]))
    server.wait_idle(30, "requests of the soak")

    # Buffers of streams, connections and batches reach their size in the first quarter.
    warm = [s for s in samples if s[0] > 0.25 * options.seconds]
    check(len(warm) >= 10, "too few samples: give it more --seconds", len(samples))
    grown_mb = slope_per_minute([(t, rss) for t, rss, *_ in warm]) * (warm[-1][0] - warm[0][0]) / 60
    allowed_mb = max(8.0, 0.03 * warm[0][1])
    facts = [f"{options.seconds:.0f} s, {CLIENTS} clients, {sum(map(len, load.seconds.values()))} requests, {load.tokens} tokens "
             f"({load.tokens / options.seconds:.0f}/s)",
             f"RSS {samples[0][1]:.0f} MB at the start, {warm[0][1]:.0f} warm, {samples[-1][1]:.0f} at the end; "
             f"{grown_mb:+.1f} MB while warm ({slope_per_minute([(t, r) for t, r, *_ in warm]):+.2f} MB a minute)",
             f"descriptors {min(s[2] for s in warm)} to {max(s[2] for s in warm)}, threads {min(s[3] for s in warm)} to {max(s[3] for s in warm)}",
             f"{'request':12}{'number':>8}{'median':>9}{'p99':>9}{'worst':>9}"]
    facts += [f"{name:12}{len(v):8}{percentile(v, 0.5):8.3f}s{percentile(v, 0.99):8.3f}s{max(v):8.3f}s" for name, v in sorted(load.seconds.items())]
    harness.check_measure(grown_mb <= allowed_mb, f"memory grew by {grown_mb:.1f} MB while warm (allowed: {allowed_mb:.1f})", *facts)
    check(max(s[3] for s in warm) <= max(s[3] for s in samples[: len(samples) // 2]) + 2, "threads grow", *facts)
    return facts
