"""Clients that go away in the middle of a stream, politely (FIN) and not (RST), and before it begins."""

import socket
import statistics
import struct
import threading
import time

import harness
from harness import SHAPES, ask, check, check_measure, equal

ABOUT = "200 clients vanish mid-stream; nothing stays active"
CLIENTS = 200


def server_options(options):
    return ["--queue", str(CLIENTS)]


def step_seconds(server):
    """How long a decode step takes when nobody else is there."""
    start = time.monotonic()
    reply = server.chat([ask("Hello")], max_tokens=200, ignore_eos=True, temperature=1)
    return (time.monotonic() - start) / reply["usage"]["completion_tokens"]


def vanish(server, number, seen):
    long = dict(max_tokens=4000, ignore_eos=True, temperature=1, seed=number)
    request = server.chat_bytes([ask("Describe this image.", SHAPES) if number % 3 == 0 else ask("Hello")], **long)
    with socket.create_connection((server.host, server.port), timeout=120 * harness.patience) as connection:
        if number % 10 == 9:  # before the answer, and before the request is complete
            connection.sendall(request if number % 20 == 9 else request[: len(request) // 2])
            time.sleep(0.01)
        else:
            connection.sendall(request)
            received = b""
            while received.count(b"data: ") < 1 + number % 7:
                piece = connection.recv(4096)
                check(piece, f"client {number}: the stream ended early", received[-300:])
                received += piece
            check(b" 200 " in received[:20], f"client {number}: no stream", received[:200])
            seen.append(number)
        if number % 2:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


def run(server, options):
    reference = server.chat([ask("Describe this image.", SHAPES)], temperature=0)["choices"][0]["message"]["content"]
    step_s = step_seconds(server)
    rss, files = server.rss_mb(), server.open_files()
    seen, problems, waits = [], [], []

    def guarded(number):
        try:
            vanish(server, number, seen)
        except Exception as error:
            problems.append(f"client {number}: {error}")

    # All at once, then in groups, so that the time to become idle is seen with a few and with many streams.
    for group in (range(0, CLIENTS // 2), *(range(i, i + 10) for i in range(CLIENTS // 2, CLIENTS, 10))):
        threads = [threading.Thread(target=guarded, args=(n,)) for n in group]
        for t in threads:
            t.start()
        for t in threads:
            t.join()
        waits.append(server.wait_idle(30, f"streams of {len(threads)} clients that left"))
    check(not problems, f"{len(problems)} clients had trouble:\n    " + "\n    ".join(problems[:5]))
    # A step of a full batch takes longer than one alone; ten of these are a few of those.
    allowed_s = 0.25 + 10 * step_s
    median = statistics.median(waits)
    check_measure(median < allowed_s, f"idle {median:.3f} s after the last client left; a step takes {step_s * 1e3:.1f} ms", waits)
    again = server.chat([ask("Describe this image.", SHAPES)], temperature=0)["choices"][0]["message"]["content"]
    equal(again, reference, "the answer afterwards")
    time.sleep(0.2)
    equal(max(0, server.open_files() - files), 0, "file descriptors left open")
    return [f"{CLIENTS} clients, {len(seen)} after the first tokens; idle again after {median * 1e3:.0f} ms (median of {len(waits)}, worst "
            f"{max(waits) * 1e3:.0f} ms); a step alone {step_s * 1e3:.1f} ms; RSS {rss:.0f} -> {server.rss_mb():.0f} MB"]
