"""What the proofs of tests/server share: a running `qvl serve`, its metrics, pictures, and a way to fail.

A proof is a module proof_NAME with ABOUT, server_options(options) -> list of options for `qvl serve`, and run(server, options)
-> facts to print; or, where it starts its servers itself, with ABOUT and run_without_server(options, extra server options, log).
It fails by raising; `check` raises with a message that says what was expected.
"""

import base64
import collections
import http.client
import json
import os
import re
import signal
import subprocess
import threading
import time
import urllib.parse
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SMALL = ROOT / "models/small"
SHAPES = ROOT / "examples/shapes.png"
PHOTO = ROOT / "examples/photo.jpg"
KEY = "sk-qvl-proof"

# Options of `qvl serve` that the proofs use, in one place.
WITH_KEY = ["--api-key", KEY]

# A server built with a sanitizer is several times slower and larger: every timeout is so many times as long, and what counts
# seconds or megabytes is reported, not judged (run.py --sanitized).
patience = 1.0
judge_measures = True

# First lines of what the sanitizers print about a program.
REPORT = re.compile(r"(WARNING|ERROR): (Thread|Address|Leak)Sanitizer|runtime error: |SUMMARY: \w+Sanitizer|Sanitizer:DEADLYSIGNAL")


class Failure(AssertionError):
    """A proof failed."""


def check(condition, message, *shown):
    if not condition:
        raise Failure(message + "".join(f"\n    {value!r}"[:2000] for value in shown))


def check_measure(condition, message, *shown):
    """`check` of seconds or megabytes."""
    if judge_measures:
        check(condition, message, *shown)
    elif not condition:
        print(f"   not judged: {message}", flush=True)


def equal(got, expected, what):
    check(got == expected, f"{what}: expected {expected!r}, got {got!r}"[:4000])


def data_url(path, media_type=None):
    kinds = {".png": "image/png", ".jpg": "image/jpeg", ".webp": "image/webp", ".gif": "image/gif", ".bmp": "image/bmp"}
    path = Path(path)
    return f"data:{media_type or kinds[path.suffix]};base64,{base64.b64encode(path.read_bytes()).decode()}"


def picture(path):
    return {"type": "image_url", "image_url": {"url": data_url(path)}}


def ask(text, *pictures):
    """A user message: pictures, then text."""
    if not pictures:
        return {"role": "user", "content": text}
    return {"role": "user", "content": [picture(p) for p in pictures] + [{"type": "text", "text": text}]}


def eval_pictures():
    return sorted((ROOT / "tests/fixtures/small/eval").glob("*.png"))


class Server:
    """`qvl serve` as a child process on a free port."""

    def __init__(self, binary, options, model=SMALL, log=None):
        self.binary = str(binary)
        self.arguments = [self.binary, "serve", str(model), "--port", "0", *options]
        environment = dict(os.environ, QVL_IMAGE_MEMORY=os.environ.get("QVL_IMAGE_MEMORY", "off"))
        started = time.monotonic()
        self.process = subprocess.Popen(self.arguments, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                                        errors="replace", env=environment, start_new_session=True)
        self.tail = collections.deque(maxlen=60)
        self.reports = []  # lines of a sanitizer
        self.url = None
        self._log = open(log, "w") if log else None
        self._ready = threading.Event()
        self._reader = threading.Thread(target=self._drain, daemon=True)
        self._reader.start()
        if not self._ready.wait(60 * patience) or self.url is None:
            self.kill()
            raise Failure("the server did not say where it listens:\n" + self.output())
        self.start_s = time.monotonic() - started
        parts = urllib.parse.urlsplit(self.url)
        self.host, self.port = parts.hostname, parts.port

    def _drain(self):
        for line in self.process.stdout:
            self.tail.append(line.rstrip("\n"))
            if REPORT.search(line) or (self.reports and len(self.reports) < 200):
                self.reports.append(line.rstrip("\n"))
            if self._log:
                self._log.write(line)
                self._log.flush()
            found = re.search(r"http://[^\s/]+:\d+", line)
            if found and self.url is None:
                self.url = found.group(0)
                self._ready.set()
        self._ready.set()

    def output(self):
        return "\n".join(self.tail)

    @property
    def base_url(self):
        return self.url + "/v1"

    def alive(self):
        return self.process.poll() is None

    def must_be_alive(self):
        self.must_be_clean()
        check(self.alive(), f"the server ended with {self.process.poll()}:\n{self.output()}")

    def must_be_clean(self):
        check(not self.reports, "a sanitizer reports:\n    " + "\n    ".join(list(self.reports)))

    def rss_mb(self):
        for line in Path(f"/proc/{self.process.pid}/status").read_text().splitlines():
            if line.startswith("VmRSS:"):
                return int(line.split()[1]) / 1024
        raise Failure("no VmRSS")

    def open_files(self):
        return len(os.listdir(f"/proc/{self.process.pid}/fd"))

    def threads(self):
        return len(os.listdir(f"/proc/{self.process.pid}/task"))

    # ---- plain requests

    def request(self, method, path, body=None, headers=None, timeout=120):
        """(status, headers, bytes) of one request on a connection of its own."""
        connection = http.client.HTTPConnection(self.host, self.port, timeout=timeout * patience)
        try:
            if isinstance(body, (dict, list)):
                body = json.dumps(body).encode()
            connection.request(method, path, body,
                               {"Content-Type": "application/json", "Authorization": f"Bearer {KEY}", **(headers or {})})
            response = connection.getresponse()
            return response.status, response.headers, response.read()
        finally:
            connection.close()

    def chat(self, messages, timeout=120, **fields):
        status, _, body = self.request("POST", "/v1/chat/completions",
                                       {"model": "qvl", "messages": messages, **fields}, timeout=timeout)
        check(status == 200, f"chat: status {status}", body)
        return json.loads(body)

    def metrics(self):
        status, _, body = self.request("GET", "/metrics")
        check(status == 200, f"/metrics: status {status}", body)
        return Metrics(body.decode())

    def wait_idle(self, timeout_s, what="requests"):
        """Waits until no request is active or waiting; the seconds that took."""
        start = time.monotonic()
        while True:
            busy = self.metrics().busy()
            if not any(busy.values()):
                return time.monotonic() - start
            if time.monotonic() - start > timeout_s * patience:
                raise Failure(f"{what} are still active after {timeout_s * patience:.0f} s: {busy}")
            time.sleep(0.002)

    def bytes_of(self, method, path, body=None, headers=None):
        """One HTTP/1.1 request as bytes. `headers` go over the usual ones; None leaves one out."""
        if body is not None and not isinstance(body, bytes):
            body = json.dumps(body).encode()
        lines = {"Host": f"{self.host}:{self.port}", "Authorization": f"Bearer {KEY}"}
        if body is not None:
            lines |= {"Content-Type": "application/json", "Content-Length": str(len(body))}
        lines |= headers or {}
        head = "".join(f"{name}: {value}\r\n" for name, value in lines.items() if value is not None)
        return f"{method} {path} HTTP/1.1\r\n{head}\r\n".encode() + (body or b"")

    def chat_bytes(self, messages, **fields):
        """A streamed chat request as bytes."""
        return self.bytes_of("POST", "/v1/chat/completions", {"model": "qvl", "messages": messages, "stream": True, **fields})

    # ---- the end

    def stop(self, timeout_s=30):
        """Asks it to end; the exit code must say that it did so properly."""
        if self.alive():
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(timeout_s * patience)
            except subprocess.TimeoutExpired:
                self.kill()
                raise Failure(f"the server did not stop within {timeout_s * patience:.0f} s:\n{self.output()}")
        self._reader.join(10)  # leaks are reported at the very end
        self.must_be_clean()
        check(self.process.returncode in (0, 130, 143), f"the server ended with {self.process.returncode}:\n{self.output()}")

    def kill(self):
        if self.alive():
            self.process.kill()
            self.process.wait()


class Metrics:
    """Samples of a /metrics page: {name: {labels: value}}."""

    def __init__(self, text):
        self.types = {}
        self.samples = collections.defaultdict(dict)
        for line in text.splitlines():
            if line.startswith("# TYPE "):
                _, _, name, kind = line.split(" ", 3)
                self.types[name] = kind
            elif line and not line.startswith("#"):
                name, labels, value = re.fullmatch(r"([a-zA-Z_:][\w:]*)(\{.*\})? (\S+)", line).groups()
                self.samples[name][labels or ""] = float(value)

    def busy(self):
        """What is not finished: requests in the queue, those whose prompt is read and those whose answer is written."""
        names = [f"qvl_requests_{state}" for state in ("waiting", "reading", "writing")]
        for name in names:
            check(name in self.samples, f"/metrics has no {name}", sorted(self.types))
        return {name: self.total(name) for name in names}

    def total(self, name):
        return sum(self.samples.get(name, {}).values())


def run_cli(binary, *arguments):
    """stdout of `qvl ARGUMENTS`."""
    done = subprocess.run([str(binary), *map(str, arguments)], capture_output=True, text=True, timeout=240,
                          env=dict(os.environ, QVL_IMAGE_MEMORY="off"))
    check(done.returncode == 0, f"qvl {' '.join(map(str, arguments))}: exit code {done.returncode}", done.stderr)
    return done.stdout


def sse_events(text):
    """Objects of a stream of server-sent events; the last must be [DONE]."""
    data = [line[6:] for line in text.splitlines() if line.startswith("data: ")]
    check(data and data[-1] == "[DONE]", "the stream does not end with [DONE]", text[-500:])
    return [json.loads(d) for d in data[:-1]]


def percentile(values, share):
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else float("nan")


def slope_per_minute(samples):
    """Least squares slope of [(seconds, value)], per minute."""
    n = len(samples)
    mean_t = sum(t for t, _ in samples) / n
    mean_v = sum(v for _, v in samples) / n
    spread = sum((t - mean_t) ** 2 for t, _ in samples)
    return 60 * sum((t - mean_t) * (v - mean_v) for t, v in samples) / spread if spread else 0.0
