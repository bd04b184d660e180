"""Measures qvl through its command line, one process a request as its users have it. Prints the lines of workload.py.

    python3 run_qvl.py PACKAGE PICTURES --threads 2 --seed 1       # the program: $QVL, else build/release/qvl

Decoding with guesses is measured by bench/text's replay_bench: $QVL_REPLAY, else the one beside the program; the first
$QVL_REPLAY_QUESTIONS questions. Where it is missing, that is reported.
"""
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import workload

ROOT = Path(__file__).resolve().parents[2]
QVL = os.environ.get("QVL") or str(ROOT / "build/release/qvl")
REPLAY = Path(os.environ.get("QVL_REPLAY") or Path(QVL).parent / "bench/text/replay_bench")
PAUSE_S = 2.0  # between an answer and the next question
REPLAY_QUESTIONS = int(os.environ.get("QVL_REPLAY_QUESTIONS") or 75)


def checked(command: list[str], **options) -> subprocess.CompletedProcess:
    done = subprocess.run(command, capture_output=True, text=True, **options)
    if done.returncode != 0:
        sys.exit(f"{' '.join(command[:2])} failed: {done.stderr.strip()[-500:]}")
    return done


def second_question_ms(command: list[str], turns: list[str], pause_s: float) -> float:
    """Time to the first token of the second of two turns of `qvl chat --verbose`, said `pause_s` after the first answer."""
    with tempfile.TemporaryFile("w+") as errors:
        chat = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=errors, text=True)

        def said() -> str:
            errors.seek(0)
            return errors.read()

        def say(line: str) -> None:
            chat.stdin.write(line + "\n")
            chat.stdin.flush()

        say(turns[0])
        # The statistics of an answer end so.
        while chat.poll() is None and "qvl: decode: " not in said():
            time.sleep(0.02)
        if chat.poll() is None:
            time.sleep(pause_s)
            say(turns[1])
        chat.stdin.close()
        failed = chat.wait()
        firsts = re.findall(r"first after (\d+) ms", said())
        if failed or len(firsts) != 2:
            sys.exit(f"qvl chat --verbose: expected two answers, got {len(firsts)}: {said()[-500:]}")
        return float(firsts[1])


def measure_guesses(package: Path, threads: int) -> None:
    if not REPLAY.exists():
        workload.report_unavailable("replay_bench is not there (cmake --build FOLDER --target replay_bench)",
                                    *workload.GUESSED.values())
        return
    done = checked([str(REPLAY), str(package), str(ROOT / "tests/fixtures/small/eval"), ",".join(workload.GUESSED),
                    str(REPLAY_QUESTIONS), "1", str(threads), "--json"])
    tasks = json.loads(done.stdout)["tasks"]
    for task, metric in workload.GUESSED.items():
        kind = tasks.get(task, {})
        if "tokens_per_s" not in kind.get("auto", {}):
            workload.report_unavailable(f"no such answers among the first {REPLAY_QUESTIONS} questions", metric)
            continue
        workload.report(metric, kind["auto"]["tokens_per_s"], without_guesses=round(kind["off"]["tokens_per_s"], 3),
                        answers=kind["answers"], tokens=kind["tokens"], steps=kind["auto"]["steps"],
                        checked_guesses=kind["auto"]["drafted_tokens"], right_guesses=kind["auto"]["accepted_tokens"],
                        mean_prompt_tokens=round(kind["prompt_tokens"], 1))


def main() -> None:
    args = workload.arguments()
    # Answers of random weights repeat themselves: guessing tokens would gain what it gains nowhere else.
    common = ["--greedy", "--ignore-eos", "--speculate", "off", "--threads", str(args.threads)]

    def run(text: str, tokens: int, *options: str) -> tuple[dict, float]:
        start = time.perf_counter()
        done = checked([QVL, "run", str(args.model), text, "--json", "--max-tokens", str(tokens), *common, *options])
        return json.loads(done.stdout), (time.perf_counter() - start) * 1000

    # 'qvl --version' does not exist in every build; the commit says what was measured.
    short, _ = run(workload.text_prompt(workload.SHORT_PROMPT_TOKENS, args.seed), workload.DECODE_TOKENS)
    engine = short["engine"]
    workload.report_program("qvl", os.environ.get("QVL_VERSION", "this tree"), engine=engine)
    workload.report("decode_short_tokens_per_s", short["timings"]["decode_tokens_per_s"],
                    prompt_tokens=short["usage"]["prompt_tokens"])
    measure_guesses(args.model, args.threads)
    long, wall_ms = run(workload.text_prompt(workload.PREFILL_TOKENS, args.seed), 1)
    workload.report("prefill_512_tokens_per_s", long["timings"]["prefill_tokens_per_s"],
                    prompt_tokens=long["usage"]["prompt_tokens"])
    # Everything that is not the answer: starting, opening, and ending the process.
    workload.report("ready_ms", wall_ms - long["timings"]["ttft_ms"], load_ms=round(long["timings"]["load_ms"], 1))

    # The memory of pictures is new here, so that the first question finds it empty.
    with tempfile.TemporaryDirectory() as memory:
        picture = str(args.pictures / "1.png")
        options = ("-i", picture, "--image-memory", memory)
        cold, _ = run(workload.image_question(args.seed), workload.DECODE_TOKENS, *options)
        tokens = cold["usage"]["prompt_tokens"]
        timings = cold["timings"]
        if cold["images"][0]["cached"]:
            sys.exit("the first question found the picture in an empty memory")
        workload.report("vision_patches_per_s", timings["vision_patches_per_s"], ms=timings["vision_ms"])
        workload.report("prefill_789_tokens_per_s", timings["prefill_tokens_per_s"], prompt_tokens=tokens)
        workload.report("decode_800_tokens_per_s", timings["decode_tokens_per_s"])
        workload.report("ttft_image_ms", timings["ttft_ms"], prompt_tokens=tokens)
        workload.report("peak_rss_mb", cold["peak_rss_mb"])
        again, _ = run(workload.image_question(args.seed + 100), 1, *options)
        workload.report("ttft_new_process_ms", again["timings"]["ttft_ms"], cached_tokens=again["usage"]["cached_tokens"],
                        keeps="the picture's memory on disk")
        chat = [QVL, "chat", str(args.model), "--verbose", "--max-tokens", "4", "--image-memory", memory, *common]
        turns = [f"/image {picture}\n{workload.image_question(args.seed)}", workload.second_question(args.seed)]
        # At once as nobody asks but a script, then as a person does, who reads the answer and types first.
        at_once = second_question_ms(chat, turns, 0)
        workload.report("ttft_second_question_ms", second_question_ms(chat, turns, PAUSE_S), pause_s=PAUSE_S,
                        at_once_ms=at_once)


if __name__ == "__main__":
    main()
