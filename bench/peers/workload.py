"""What every peer is asked, and how a measurement is reported. The same text, picture and number of tokens for all.

Standard library only: the runners import it in the environments of the peers, `compare` in no environment.

A measurement is one JSON object a line on stdout: {"metric": NAME, "value": NUMBER, ...facts}, or {"metric": NAME,
"unavailable": WHY}. METRICS names them; units are part of the names.
"""
import argparse
import json
import os
import random
import struct
import time
import zlib
from pathlib import Path

WIDTH, HEIGHT = 1024, 768
PATCHES = (WIDTH // 16) * (HEIGHT // 16)
IMAGE_TOKENS = PATCHES // 4
PREFILL_TOKENS = 512
IMAGE_PROMPT_TOKENS = 789  # the picture's tokens, its two marks, 8 of the template, the question
TEMPLATE_TOKENS = 8
DECODE_TOKENS = 24

# What is read off pictures, with the kinds of the small model's evaluation questions (tests/fixtures/small/eval).
GUESSED = {"text": "guessed_text_tokens_per_s", "describe": "guessed_describe_tokens_per_s", "box": "guessed_box_tokens_per_s"}

METRICS = ("vision_patches_per_s", "prefill_512_tokens_per_s", "prefill_789_tokens_per_s", "decode_short_tokens_per_s",
           *GUESSED.values(), "decode_800_tokens_per_s", "ttft_image_ms", "ttft_second_question_ms", "ttft_new_process_ms", "peak_rss_mb",
           "ready_ms")

# Each is one token of the Qwen vocabulary with the space before it.
_WORDS = ("time", "year", "people", "way", "day", "man", "thing", "woman", "life", "child", "world", "school", "state", "family",
          "student", "group", "country", "problem", "hand", "part", "place", "case", "week", "company", "system", "program",
          "question", "work", "government", "number", "night", "point", "home", "water", "room", "mother", "area", "money")


def words(count: int, seed: int) -> str:
    """`count` tokens of text; another seed shares no prefix with it, so that no prefix cache helps."""
    draw = random.Random(seed)
    return "".join(" " + draw.choice(_WORDS) for _ in range(count))


def text_prompt(tokens: int, seed: int) -> str:
    """User text that makes a prompt of `tokens` tokens within the chat template."""
    return words(tokens - TEMPLATE_TOKENS, seed)


def image_question(seed: int) -> str:
    return words(IMAGE_PROMPT_TOKENS - IMAGE_TOKENS - 2 - TEMPLATE_TOKENS, seed)


def second_question(seed: int) -> str:
    return words(12, seed + 1000)


SHORT_PROMPT_TOKENS = 16


def user_turn(text: str, media: str = "") -> str:
    return f"<|im_start|>user\n{media}{text}<|im_end|>\n<|im_start|>assistant\n"


def write_picture(path: Path, seed: int) -> None:
    """A 1024x768 PNG of noise. Kept if it is there: the same seed gives the same bytes."""
    if path.exists():
        return
    draw = random.Random(seed)
    rows = b"".join(b"\0" + draw.randbytes(3 * WIDTH) for _ in range(HEIGHT))

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    partial = path.with_suffix(".partial")
    partial.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", WIDTH, HEIGHT, 8, 2, 0, 0, 0)) +
                        chunk(b"IDAT", zlib.compress(rows, 1)) + chunk(b"IEND", b""))
    partial.rename(path)


def report(metric: str, value: float, **facts) -> None:
    assert metric in METRICS, metric
    print(json.dumps({"metric": metric, "value": round(value, 3), **facts}), flush=True)


def report_unavailable(why: str, *metrics: str) -> None:
    for metric in metrics:
        assert metric in METRICS, metric
        print(json.dumps({"metric": metric, "unavailable": why}), flush=True)


def report_program(name: str, version: str, **facts) -> None:
    print(json.dumps({"program": name, "version": version, **facts}), flush=True)


def ms_since_process_start() -> float:
    """From the kernel's record of this process's start, so that loading the interpreter and libraries counts."""
    ticks = int(Path("/proc/self/stat").read_text().rsplit(")", 1)[1].split()[19])
    now = time.clock_gettime(time.CLOCK_BOOTTIME)
    return (now - ticks / os.sysconf("SC_CLK_TCK")) * 1000


def peak_rss_mb() -> float:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) / 1024
    raise RuntimeError("/proc/self/status has no VmHWM")


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("model", type=Path, help="the folder that the set-up script named")
    parser.add_argument("pictures", type=Path, help="folder with 1.png and 2.png, from `compare`")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seed", type=int, default=1, help="another one in every round")
    return parser.parse_args()
