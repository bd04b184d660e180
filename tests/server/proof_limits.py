"""What docs/server.md promises about limits, keys, pictures from elsewhere and the end, seen from outside: raw HTTP against servers
with small limits. Every error of its table is provoked, but for those in UNPROVOKED, and no other ever comes."""

import contextlib
import json
import re
import shutil
import signal
import socket
import struct
import tempfile
import threading
import time
import zlib
from pathlib import Path

from harness import KEY, PHOTO, ROOT, SHAPES, SMALL, WITH_KEY, Server, ask, check, data_url, equal

ABOUT = "limits, keys, URLs, files, time and the end are as docs/server.md says; every error of its table"
CHAT = "/v1/chat/completions"
# Why it is not provoked here.
UNPROVOKED = {
    "internal_error": "nothing known makes one",
    "cancelled": "only a client that left is cancelled",
    "failed_to_download_image": "needs a public host; fetch_test asks one of its own",
}


def documented():
    """The table of docs/server.md: {code: status}."""
    section = (ROOT / "docs/server.md").read_text().split("\n## Errors\n")[1].split("\n## ")[0]
    rows = re.findall(r"^\| (\d{3}) \|([^|]*)\|", section, re.M)
    return {code: int(status) for status, codes in rows for code in re.findall(r"`([^`]+)`", codes)}


class Reply:
    def __init__(self, status, headers, body):
        self.status, self.headers, self.body = status, headers, body
        self.error = None
        if status >= 400:
            self.error = json.loads(body)["error"]

    def __repr__(self):
        return f"{self.status} {self.headers} {self.body[:300]!r}"


class Prover:
    """Raw requests to a server, and what errors came."""

    def __init__(self, seen):
        self.seen, self.server, self.table = seen, None, documented()

    def open(self):
        return socket.create_connection((self.server.host, self.server.port), timeout=30)

    def read(self, connection, received=b""):
        """The next reply of a connection, of which `received` was read already, to the end of its body."""
        while b"\r\n\r\n" not in received:
            piece = connection.recv(65536)
            check(piece, "the connection ended before a reply", received)
            received += piece
        head, _, body = received.partition(b"\r\n\r\n")
        lines = head.decode().split("\r\n")
        headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines[1:])}
        wanted = int(headers.get("content-length", 0))
        chunked = "transfer-encoding" in headers
        while not body.endswith(b"0\r\n\r\n") if chunked else len(body) < wanted:
            piece = connection.recv(65536)
            if not piece:
                break
            body += piece
        if chunked:
            check(body.endswith(b"0\r\n\r\n"), "a stream is cut off", body[-200:])
            body = b"".join(re.findall(rb"[0-9a-f]+\r\n(.*?)\r\n(?=[0-9a-f]+\r\n)", body, re.S))
        reply = Reply(int(lines[0].split()[1]), headers, body)
        if reply.error is not None:
            self.judge(reply.status, reply.error)
        return reply

    def judge(self, status, error):
        equal(sorted(error), ["code", "message", "param", "type"], "fields of an error")
        check(self.table.get(error["code"]) == status, f"docs/server.md has no {status} {error['code']}", error)
        kind = "server_error" if status >= 500 else "rate_limit_error" if status == 429 else "invalid_request_error"
        equal(error["type"], kind, f"type of {error['code']}")
        self.seen.add(error["code"])

    def send(self, data):
        with self.open() as connection:
            # What is refused early is not read to its end; the reply is there all the same.
            with contextlib.suppress(ConnectionError):
                connection.sendall(data)
            return self.read(connection)

    def ask(self, method, path, body=None, headers=None):
        return self.send(self.server.bytes_of(method, path, body, headers))

    def refused(self, reply, code, param=None, retry=False):
        check(reply.error is not None, f"expected {code}, got an answer", reply)
        equal(reply.error["code"], code, f"code of {reply!r}")
        equal(reply.error["param"], param, f"param of {code}")
        equal("retry-after" in reply.headers, retry, f"Retry-After with {code}")
        if retry:
            check(int(reply.headers["retry-after"]) >= 1, "Retry-After", reply)
        return reply.error["message"]

    def chat(self, content, headers=None, **fields):
        """A chat request with this content of the one user message."""
        return self.ask("POST", CHAT, {"messages": [{"role": "user", "content": content}], "max_tokens": 4, **fields}, headers)

    def image(self, url, **fields):
        return self.chat([{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": "Hi"}], **fields)

    def answered(self, reply):
        equal(reply.status, 200, f"status of {reply!r}")
        return json.loads(reply.body)

    @contextlib.contextmanager
    def serving(self, options, ends=False, model=SMALL):
        """A server with these options; `ends`: what is done with it ends it."""
        self.server = Server(self.binary, options + self.extra, model=model, log=self.log)
        try:
            yield self.server
            if not ends:
                self.server.must_be_alive()
                self.server.stop()
        finally:
            self.server.kill()


URL_PARAM = "messages[0].content[0].image_url.url"


def png(width, height):
    """A grey picture."""
    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
    rows = zlib.compress((b"\0" + b"\x80" * width) * height, 9)
    return (b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)) + chunk(b"IDAT", rows) + chunk(b"IEND", b""))


# ---- fields, HTTP, sizes


def fields(p):
    hi = [{"role": "user", "content": "Hi"}]
    for more, code, param in [
            ({"nonsense": 1}, "unknown_parameter", "nonsense"), ({"audio": {}}, "unsupported_parameter", "audio"),
            ({"store": True}, "unsupported_value", "store"), ({"messages": "Hi"}, "invalid_type", "messages"),
            ({"model": 7}, "invalid_type", "model"), ({"tool_choice": "perhaps"}, "invalid_value", "tool_choice"),
            ({"n": 0}, "integer_below_min_value", "n"), ({"top_logprobs": 21, "logprobs": True}, "integer_above_max_value", "top_logprobs"),
            ({"temperature": -1}, "decimal_below_min_value", "temperature"), ({"top_p": 1.5}, "decimal_above_max_value", "top_p"),
            ({"stop": "x" * 1025}, "string_above_max_length", "stop"), ({"stop": ["x"] * 17}, "array_above_max_length", "stop"),
            ({"messages": []}, "empty_array", "messages")]:
        p.refused(p.ask("POST", CHAT, {"messages": hi, **more}), code, param)
    p.refused(p.ask("POST", CHAT, {"model": "qvl"}), "missing_required_parameter", "messages")
    p.refused(p.ask("POST", CHAT, b'{"messages": ['), "invalid_json")
    p.refused(p.ask("POST", CHAT, b'{"n": 1, "n": 1}'), "duplicate_key", "n")
    # A schema with what cannot be enforced: refused where it is strict, else the rest of it is enforced.
    numbers = {"type": "object", "properties": {"a": {"type": "array", "items": {"enum": [1, 2]}, "maxItems": 2, "uniqueItems": True}},
               "required": ["a"], "additionalProperties": False}
    for strict in (True, False):
        reply = p.chat("Hi", max_tokens=220, temperature=0, response_format={"type": "json_schema", "json_schema": {"name": "it", "schema": numbers, "strict": strict}})
        if strict:
            check("uniqueItems" in p.refused(reply, "unsupported_value", "response_format"), "the keyword is not named", reply)
        else:
            answer = p.answered(reply)
            said = json.loads(answer["choices"][0]["message"]["content"])
            check("uniqueItems" in answer["qvl"]["unenforced"], "what was not enforced is not said", answer["qvl"])
            check(list(said) == ["a"] and set(said["a"]) <= {1, 2} and len(said["a"]) <= 2, "the rest of the schema is not enforced", said)
    # Any name is answered by the one model; asking for a model by name is something else.
    equal(p.answered(p.chat("Hi", model="gpt-99"))["model"], "small", "model of a reply")
    p.refused(p.ask("GET", "/v1/models/gpt-99"), "model_not_found", "model")
    equal(p.answered(p.ask("GET", "/v1/models/small"))["id"], "small", "GET /v1/models/small")


def one_name(p):
    p.refused(p.chat("Hi", model="gpt-99"), "model_not_found", "model")
    equal(p.answered(p.chat("Hi", model="mine"))["model"], "mine", "model of a reply")
    equal(p.answered(p.chat("Hi"))["model"], "mine", "model of a reply")


def http(p):
    p.refused(p.ask("GET", "/v1/nowhere"), "unknown_url")
    reply = p.ask("GET", CHAT)
    p.refused(reply, "method_not_supported")
    equal(reply.headers["allow"], "POST, OPTIONS", "Allow")
    p.refused(p.ask("POST", CHAT, b"{}", {"Content-Type": "text/plain"}), "unsupported_content_type")
    p.refused(p.ask("POST", CHAT, b"", {"Content-Length": None}), "length_required")
    p.refused(p.ask("POST", CHAT, {}, {"Expect": "tea"}), "expectation_failed")
    p.refused(p.ask("GET", "/" + "a" * 20_000), "uri_too_long")
    p.refused(p.ask("GET", "/health", headers={"X-Long": "a" * 17_000}), "headers_too_large")
    p.refused(p.ask("POST", CHAT, b"", {"Transfer-Encoding": "gzip", "Content-Length": None}), "unsupported_transfer_encoding")
    p.refused(p.send(b"GET /health HTTP/2.0\r\nHost: localhost\r\n\r\n"), "unsupported_http_version")
    p.refused(p.send(b"GET /health HTTP/1.1\r\n\r\n"), "bad_request")


def hosts(p):
    """On the loopback address: its own names, and those of --allowed-host."""
    for name in ("localhost", "127.0.0.1:80", "[::1]", "Qvl.Example:443"):
        equal(p.ask("GET", "/health", headers={"Host": name}).status, 200, f"Host: {name}")
    for name in ("evil.example", "127.0.0.1.evil.example"):
        p.refused(p.ask("GET", "/health", headers={"Host": name}), "host_not_allowed")
    preflight = {"Origin": "https://app.example", "Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization"}
    reply = p.ask("OPTIONS", CHAT, headers=preflight)
    equal((reply.status, reply.headers.get("access-control-allow-origin")), (204, "https://app.example"), "a page of --cors-origin")
    reply = p.ask("OPTIONS", CHAT, headers={**preflight, "Origin": "https://other.example"})
    check("access-control-allow-origin" not in reply.headers, "another page may use the server", reply)


def sizes(p, folder):
    """--max-body 20K, --max-image-size 8K, --max-image-pixels 40000, --max-images 2, --context 256."""
    large = b'{"messages": [' + b" " * 21_000 + b"]}"
    p.refused(p.ask("POST", CHAT, large), "request_too_large")
    # Before a byte of it was sent.
    with p.open() as connection:
        connection.sendall(p.server.bytes_of("POST", CHAT, b"", {"Content-Length": "20481"}))
        p.refused(p.read(connection), "request_too_large")
    with p.open() as connection:
        connection.sendall(p.server.bytes_of("POST", CHAT, b"", {"Content-Length": None, "Transfer-Encoding": "chunked"}))
        with contextlib.suppress(ConnectionError):
            for _ in range(30):
                connection.sendall(b"400\r\n" + b" " * 1024 + b"\r\n")
        p.refused(p.read(connection), "request_too_large")
    p.refused(p.ask("GET", "/health", b"{}"), "request_too_large")
    shown = p.answered(p.image(data_url(SHAPES)))["qvl"]["images"][0]
    equal((shown["width"], shown["height"]), (192, 160), "a picture within the limits")
    check("40000 pixels" in p.refused(p.image(data_url(PHOTO)), "image_too_large", URL_PARAM), "the limit is not named")
    (folder / "noise.png").write_bytes(png(8, 8) + b"\0" * 9_000)
    p.refused(p.image("noise.png"), "image_too_large", URL_PARAM)
    p.refused(p.chat([{"type": "image_url", "image_url": {"url": "a.png"}}] * 3), "too_many_media", "messages[0].content[2].image_url.url")
    # Frames by path: each is small enough, together they are more than a request may be.
    (folder / "frame.png").write_bytes(png(8, 8) + b"\0" * 7_000)
    p.refused(p.chat([{"type": "video", "video": ["frame.png"] * 3}]), "media_too_large", "messages[0].content[0].video")
    p.refused(p.chat("word " * 300), "context_length_exceeded", "messages")
    reply = p.answered(p.chat("Hi", max_tokens=4000, ignore_eos=True))
    choice = reply["choices"][0]
    equal((choice["finish_reason"], choice["qvl"]["finish"]["reason"], reply["usage"]["total_tokens"]), ("length", "context", 256),
          "an answer at the end of the context")


def pictures(p, folder):
    p.refused(p.image("data:image/png;base64,????"), "invalid_base64_image", URL_PARAM)
    p.refused(p.image("data:text/html;base64,AAAA"), "invalid_image_url", URL_PARAM)
    cut = folder / "cut.png"
    cut.write_bytes(SHAPES.read_bytes()[:1500])
    p.refused(p.image(data_url(cut)), "image_parse_error", URL_PARAM)
    p.refused(p.image("data:image/tiff;base64,SUkqAAgAAAAAAAAAAAAAAA=="), "invalid_image_format", URL_PARAM)


def files(p, folder):
    """--image-root: what is below it, by any name; nothing else, and no word about what is there."""
    shutil.copy(SHAPES, folder / "a.png")
    (folder / "sub dir").mkdir()
    shutil.copy(SHAPES, folder / "sub dir/b.png")
    outside = folder.parent / "outside.png"
    shutil.copy(SHAPES, outside)
    (folder / "inside.png").symlink_to("a.png")
    (folder / "escape.png").symlink_to(outside)
    (folder / "up").symlink_to("..")
    for name in ("a.png", "sub dir/b.png", "sub dir/../a.png", str(folder / "a.png"), f"file://{folder}/a.png", f"file://{folder}/sub%20dir/b.png", "inside.png"):
        equal(p.answered(p.image(name))["qvl"]["images"][0]["width"], 192, f"picture {name}")
    words = {p.refused(p.image(name), "invalid_image_url", URL_PARAM)
             for name in ("../outside.png", str(outside), f"file://{outside}", "escape.png", "up/outside.png", "missing.png", "sub dir", "/etc/passwd",
                          f"file://{folder}/%2e%2e/outside.png")}
    equal(len(words), 1, f"what is said of files that are not to be had: {words}")


# ---- keys


def keys(p):
    no_key, wrong = {"Authorization": None}, {"Authorization": "Bearer sk-wrong-key"}
    for method, path, body in (("GET", "/v1/models", None), ("POST", CHAT, {"messages": []}), ("POST", "/v1/completions", {}), ("GET", "/metrics", None)):
        for headers in (no_key, wrong, {"Authorization": f"Basic {KEY}"}):
            reply = p.ask(method, path, body, headers)
            p.refused(reply, "invalid_api_key")
            equal(reply.headers.get("www-authenticate"), "Bearer", "WWW-Authenticate")
    for path in ("/health", "/", "/openapi.json"):
        equal(p.ask("GET", path, headers=no_key).status, 200, f"{path} without a key")
    equal(p.ask("GET", "/v1/models").status, 200, "/v1/models with the key")
    equal(p.ask("GET", "/metrics").status, 200, "/metrics with the key")
    p.answered(p.chat("Hi"))


# ---- pictures by URL


def urls_off(p):
    p.refused(p.image("https://example.com/a.png"), "image_url_not_allowed", URL_PARAM)
    p.refused(p.image("/etc/passwd"), "image_url_not_allowed", URL_PARAM)
    p.refused(p.image("file:///etc/passwd"), "image_url_not_allowed", URL_PARAM)


class Listener:
    """A server on the loopback address that nobody may reach."""

    def __init__(self):
        self.socket = socket.create_server(("127.0.0.1", 0))
        self.port = self.socket.getsockname()[1]
        self.reached = 0
        threading.Thread(target=self.accept, daemon=True).start()

    def accept(self):
        with contextlib.suppress(OSError):
            while True:
                self.socket.accept()[0].close()
                self.reached += 1


def urls_on(p, listener):
    """Even a host that the operator names is not asked when its address is a private one."""
    port = listener.port
    inside = ["127.0.0.1", "localhost", "[::1]", "10.0.0.1", "192.168.1.1", "169.254.169.254", "2130706433", "0x7f.1", "[::ffff:127.0.0.1]", "0.0.0.0"]
    for host in inside:
        p.refused(p.image(f"http://{host}/a.png"), "image_url_not_allowed", URL_PARAM)
    for host in ("127.0.0.1", "localhost"):
        p.refused(p.image(f"http://{host}:{port}/a.png"), "image_url_not_allowed", URL_PARAM)
    for url in ("http://user:secret@example.com/a.png", "http://exa mple.com/a.png"):
        p.refused(p.image(url), "invalid_image_url", URL_PARAM)
    p.refused(p.image("ftp://example.com/a.png"), "invalid_image_url", URL_PARAM)
    equal(listener.reached, 0, "connections to a server on the loopback address")


# ---- load, time


def endless(folder):
    """The small model with a context that no machine fills in seconds."""
    shutil.copytree(SMALL, folder)
    config = json.loads((folder / "config.json").read_text())
    config["text_config"]["max_position_embeddings"] = 262_144
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def begin_stream(p, connection, **fields):
    """Asks for a stream at `connection`; what came of it once its first words are there."""
    connection.sendall(p.server.chat_bytes([ask("Hello")], **fields))
    begun = b""
    while b'"content"' not in begun:
        begun += connection.recv(4096)
    return begun


def busy(p):
    """--slots 1 --queue 1 --request-timeout 2: one answers, one waits, the third is sent away; both run out of time."""
    long = dict(max_tokens=100_000, ignore_eos=True, temperature=1, seed=1)
    with p.open() as first, p.open() as second:
        begun = begin_stream(p, first, **long)
        # Long enough that it is not read within what its time is longer than the first one's.
        second.sendall(p.server.bytes_of("POST", CHAT, {"messages": [ask("word " * 3000)], "max_tokens": 8}))
        deadline = time.monotonic() + 1.8
        while p.server.metrics().total("qvl_requests_waiting") < 1:
            check(time.monotonic() < deadline, "the second request does not wait")
            time.sleep(0.01)
        p.refused(p.chat("Hi"), "rate_limit_exceeded", retry=True)
        events = p.read(first, begun).body.decode()
        p.refused(p.read(second), "request_timeout")
    data = [line[6:] for line in events.splitlines() if line.startswith("data: ")]
    equal(data[-1], "[DONE]", "the end of a stream whose time is over")
    endings = [c for d in data[:-1] for c in json.loads(d)["choices"] if c["finish_reason"]]
    equal([(c["finish_reason"], c["qvl"]["finish"]["reason"]) for c in endings], [("length", "timeout")], "how it ended")
    p.server.wait_idle(5)
    # Of two choices the second never gets the slot: what the first said is answered.
    reply = p.chat("Hello", n=2, **long)
    for _ in range(50):  # the slot may still be keeping what it knows, and the queue takes one of the two
        if reply.status != 429:
            break
        time.sleep(0.1)
        reply = p.chat("Hello", n=2, **long)
    reply = p.answered(reply)
    equal([c["qvl"]["finish"]["reason"] for c in reply["choices"]], ["timeout"] * 2, "how two choices ended")
    said = [bool(c["message"]["content"]) for c in reply["choices"]]
    equal(said, [True, False], "which of them said something")
    check(reply["usage"]["prompt_tokens"] > 0, "no usage", reply["usage"])
    p.server.wait_idle(5)


def slow_head(p, connection):
    """A request of which half came at `connection` ten seconds ago."""
    p.refused(p.read(connection), "request_timeout")


def crowded(p):
    """--connections 6; --max-body 400M, and bodies of 512 MiB at once at most."""
    with contextlib.ExitStack() as stack:
        for _ in range(6):
            connection = stack.enter_context(p.open())
            connection.sendall(p.server.bytes_of("GET", "/health"))
            equal(p.read(connection).status, 200, "one of the connections allowed")
        with p.open() as connection:
            p.refused(p.read(connection), "too_many_connections", retry=True)
    # Those six are still being closed.
    deadline = time.monotonic() + 5
    while p.ask("GET", "/health").status != 200:
        check(time.monotonic() < deadline, "closed connections keep their place")
        time.sleep(0.05)
    large = p.server.bytes_of("POST", CHAT, b"", {"Content-Length": str(300 << 20)})
    with p.open() as first, p.open() as second:
        first.sendall(large)
        time.sleep(0.2)
        second.sendall(large)
        p.refused(p.read(second), "overloaded", retry=True)


# ---- the end


def graceful(p):
    """SIGTERM: what is being said is said to its end, new requests get 503, exit code 0."""
    with p.open() as stream:
        rest = begin_stream(p, stream, max_tokens=1500, ignore_eos=True, temperature=1, seed=1)
        p.server.process.send_signal(signal.SIGTERM)
        deadline = time.monotonic() + 5
        while True:
            reply = p.chat("Hi")
            if reply.error is not None:
                break
            check(time.monotonic() < deadline, "requests are still taken")
        p.refused(reply, "server_shutting_down", retry=True)
        while piece := stream.recv(65536):
            rest += piece
    check(rest.endswith(b"0\r\n\r\n") and b"data: [DONE]" in rest, "the stream did not come to its end", rest[-300:])
    check(b'"finish_reason":"length"' in rest and b'"max_tokens"' in rest, "nor did the answer", rest[-900:])
    equal(p.server.process.wait(20), 0, "exit code")


def no_grace(p):
    """--grace 0: what is being said is broken off with the error in the stream."""
    with p.open() as stream:
        received = begin_stream(p, stream, max_tokens=4000, ignore_eos=True, temperature=1, seed=1)
        p.server.process.send_signal(signal.SIGTERM)
        with contextlib.suppress(ConnectionError):
            while piece := stream.recv(65536):
                received += piece
    check(b"[DONE]" not in received, "an answer that was broken off looks whole", received[-300:])
    event = re.findall(rb'data: (\{"error".*\})', received)
    equal(len(event), 1, f"events with an error at the end of {received[-300:]!r}")
    p.judge(503, json.loads(event[0])["error"])
    equal(p.server.process.wait(20), 0, "exit code")


def run_without_server(options, extra, log):
    seen = set()
    p = Prover(seen)
    # The small model needs no more, and threads that wait for each other on a busy machine stand still for seconds.
    p.binary, p.extra, p.log = options.binary, extra or ["--threads", "1"], log
    folder = Path(tempfile.mkdtemp(prefix="qvl-limits-")).resolve()
    root = folder / "pictures"
    root.mkdir()
    try:
        small = ["--max-body", "20K", "--max-image-size", "8K", "--max-image-pixels", "40000", "--max-images", "2", "--context", "256",
                 "--image-root", str(root), "--allowed-host", "qvl.example", "--cors-origin", "https://app.example"]
        with p.serving(small), p.open() as slow:
            slow.sendall(b"GET /health HTTP/1.1\r\nHost: loc")
            fields(p)
            http(p)
            hosts(p)
            files(p, root)
            sizes(p, root)
            pictures(p, root)
            slow_head(p, slow)
        with p.serving(WITH_KEY, ends=True):
            keys(p)
            urls_off(p)
            graceful(p)
        listener = Listener()
        with p.serving(["--image-urls", "--grace", "0"]):
            urls_on(p, listener)
        named = [option for host in ("127.0.0.1", "localhost") for option in ("--image-host", f"{host}:{listener.port}", "--image-host", host)]
        with p.serving(named + ["--image-host", "example.com", "--grace", "0"], ends=True):
            urls_on(p, listener)
            no_grace(p)
        with p.serving(["--slots", "1", "--queue", "1", "--request-timeout", "2", "--context", "200000"], model=endless(folder / "small")):
            busy(p)
        with p.serving(["--connections", "6", "--max-body", "400M", "--model-id", "mine", "--only-model-id"]):
            one_name(p)
            crowded(p)
    finally:
        shutil.rmtree(folder)
    unseen = set(p.table) - seen
    equal(unseen, set(UNPROVOKED), "errors of docs/server.md that were not provoked")
    return [f"{len(seen)} of {len(p.table)} errors of docs/server.md provoked; not: " + "; ".join(f"{code} ({why})" for code, why in UNPROVOKED.items())]
