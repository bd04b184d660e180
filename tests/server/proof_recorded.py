"""Requests as the OpenAI clients of VLMEvalKit and lmms-eval send them, replayed (recorded/*.json).

A file has client, method, path, headers, body, and what must come back: "read", where such a client finds the answer, with
"also" (numbers it reads), "answer" and "pixels_at_most" (of every picture as it was shown); or "refused", status, code and param of
a request that asks for what another model has.
"""

import json

from pathlib import Path

from harness import ROOT, check, data_url, equal, sse_events

ABOUT = "request shapes of VLMEvalKit and lmms-eval get answers"


def server_options(options):
    return []


def filled(value):
    """{{FILE}} and {{FILE as TYPE}} become data URLs."""
    if isinstance(value, str) and value.startswith("{{") and value.endswith("}}"):
        file, _, media_type = value[2:-2].partition(" as ")
        return data_url(ROOT / file, media_type or None)
    if isinstance(value, dict):
        return {k: filled(v) for k, v in value.items()}
    if isinstance(value, list):
        return [filled(v) for v in value]
    return value


def run(server, options):
    facts = []
    files = sorted(Path(__file__).with_name("recorded").glob("*.json"))
    check(len(files) >= 8, f"recorded/ has only {len(files)} files")
    for file in files:
        recorded = json.loads(file.read_text())
        status, headers, body = server.request(recorded["method"], recorded["path"],
                                               filled(recorded["body"]) if "body" in recorded else None, recorded.get("headers"))
        if "refused" in recorded:
            error = json.loads(body).get("error", {})
            equal({"status": status, "code": error.get("code"), "param": error.get("param")}, recorded["refused"], f"{file.name}: {body[:500]!r}")
            facts.append(f"{file.stem}: refused: {error['message'][:90]!r}")
            continue
        equal(status, 200, f"{file.name}: status ({body[:500]!r})")
        if recorded.get("stream"):
            check(headers["Content-Type"].startswith("text/event-stream"), f"{file.name}: not a stream", headers["Content-Type"])
            # As OpenAISDKWrapper collects them.
            parts = [(e["choices"][0]["delta"].get("content") or "") for e in sse_events(body.decode()) if e.get("choices")]
            answer = "".join(parts).strip()
        else:
            reply = json.loads(body)
            answer = reply
            for key in recorded["read"]:
                answer = answer[key]
            answer = answer.strip()
            for key in recorded.get("also", []):
                value = reply
                for k in key:
                    value = value[k]
                check(isinstance(value, int), f"{file.name}: {key} is no number", value)
            for image in reply["qvl"]["images"] if "pixels_at_most" in recorded else []:
                pixels = image["resized_width"] * image["resized_height"]
                check(pixels <= recorded["pixels_at_most"] < image["width"] * image["height"], f"{file.name}: a picture is larger than asked for", image)
        check(answer, f"{file.name}: an empty answer", body)
        if "answer" in recorded:
            equal(answer, recorded["answer"], f"{file.name}: answer")
        facts.append(f"{file.stem}: {answer[:70]!r}")
    return facts
