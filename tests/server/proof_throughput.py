"""Two clients that stream together get more tokens a second than one: their steps share one reading of the weights.
Measured in turns (one, two, one, two, ...), because a shared machine is never twice as fast as before."""

import json
import shutil
import statistics
import tempfile
import threading
import time

import medium_model
from harness import KEY, Failure, Server, ask, check

import http.client

ABOUT = "two streaming clients get at least 1.6 times the tokens a second of one"
WANTED = 1.6
ROUNDS = 4


def stream(server, seconds, number, counts, start):
    """Counts the tokens that arrive until `seconds` after `start`."""
    connection = http.client.HTTPConnection(server.host, server.port, timeout=120)
    try:
        body = {"messages": [ask("Hello")], "stream": True, "max_tokens": 3500, "ignore_eos": True, "temperature": 1.5, "seed": number,
                "logprobs": True}
        connection.request("POST", "/v1/chat/completions", json.dumps(body),
                           {"Content-Type": "application/json", "Authorization": f"Bearer {KEY}"})
        response = connection.getresponse()
        if response.status != 200:
            raise Failure(f"status {response.status}: {response.read()!r}")
        for line in response:
            if time.monotonic() > start + seconds:
                return
            if line.startswith(b"data: {") and time.monotonic() >= start:
                choice = json.loads(line[6:])["choices"]
                logprobs = choice[0].get("logprobs") if choice else None
                counts[number] += len((logprobs or {}).get("content") or [])
    finally:
        connection.close()


def rate(server, clients, seconds):
    """Tokens a second of all clients together, the time to first token left out."""
    counts = [0] * clients
    start = time.monotonic() + 1.0
    threads = [threading.Thread(target=stream, args=(server, seconds, n, counts, start)) for n in range(clients)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    server.wait_idle(30)
    check(all(counts), "a client got nothing", counts)
    return sum(counts) / seconds


def run_without_server(options, extra, log):
    folder = None
    model = options.model
    try:
        if not model:
            folder = tempfile.mkdtemp(prefix="qvl-medium-")
            step_bytes = medium_model.write(folder)
            model = folder
        # The same seeds say the same in every round, which a slot that remembers it would guess: one client of the later
        # rounds would be measured with guesses that all come true.
        server = Server(options.binary, ["--queue", "8", "--speculate", "off", *extra], model=model, log=log)
        try:
            seconds = max(3.0, min(20.0, options.seconds / (2 * ROUNDS)))
            rate(server, 2, 2.0)  # pages of the weights
            one, two = [], []
            for _ in range(ROUNDS):
                one.append(rate(server, 1, seconds))
                two.append(rate(server, 2, seconds))
            server.must_be_alive()
            server.stop()
        finally:
            server.kill()
    finally:
        if folder:
            shutil.rmtree(folder, ignore_errors=True)
    ratios = [b / a for a, b in zip(one, two)]
    ratio = statistics.median(ratios)
    facts = [f"one client {statistics.median(one):.1f} tokens/s, two together {statistics.median(two):.1f}; ratios "
             + ", ".join(f"{r:.2f}" for r in ratios) + f", median {ratio:.2f} (wanted: {WANTED})"]
    if folder:
        facts.append(f"{step_bytes / 1e6:.0f} MB of weights a step: {statistics.median(one) * step_bytes / 1e9:.1f} GB/s with one client")
    if ratio < WANTED and not options.report_only:
        check(False, f"the ratio is {ratio:.2f}", *facts)
    return facts
