#!/usr/bin/env python3
"""Proofs about a running server, each with a `qvl serve` of its own.

    tests/server/run.py --binary build/release/qvl                    all of them
    tests/server/run.py --binary build/release/qvl --only soak --seconds 3600
    tests/server/run.py --list

Uses the environment that make_environment.sh makes. Exit code 0 when every proof held, 1 when one did not, 77 when
packages are missing (with QVL_REQUIRE_SERVER=1: 1).
"""

import argparse
import importlib
import importlib.util
import os
import shutil
import sys
import tempfile
import time
import traceback
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
import harness  # noqa: E402

PROOFS = ["openai_python", "openai_javascript", "recorded", "limits", "schema", "malformed", "vanish", "turns", "soak", "throughput"]
# Packages beyond the standard library (requirements.txt, package.json).
NEEDS = {"openai_python": ["openai", "pydantic"], "schema": ["jsonschema"], "soak": ["jsonschema"], "malformed": ["schemathesis"]}
ENVIRONMENT = harness.ROOT / "build/third_party/server-proofs"
SKIPPED = 77


def missing(names):
    """What the proofs need and this interpreter does not have."""
    found = [m for n in names for m in NEEDS.get(n, []) if importlib.util.find_spec(m) is None]
    if "openai_javascript" in names:
        if shutil.which("node") is None:
            found.append("node")
        if not (ENVIRONMENT / "node_modules/openai").is_dir() and "QVL_NODE_MODULES" not in os.environ:
            found.append("the npm package openai")
    return sorted(set(found))


def use_environment(names):
    """Goes on in the environment of make_environment.sh where this interpreter lacks something."""
    python = ENVIRONMENT / "venv/bin/python"
    if missing(names) and python.exists() and Path(sys.prefix) != ENVIRONMENT / "venv":
        os.execv(python, [str(python), *sys.argv])
    lacking = missing(names)
    if lacking:
        message = f"{', '.join(names)}: {', '.join(lacking)} not found (run tests/server/make_environment.sh)"
        if os.environ.get("QVL_REQUIRE_SERVER") == "1":
            sys.exit("FAILED: " + message)
        print("SKIPPED: " + message)
        sys.exit(SKIPPED)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--binary", default=str(harness.ROOT / "build/release/qvl"))
    parser.add_argument("--only", action="append", choices=PROOFS, help="repeatable; default: all")
    parser.add_argument("--list", action="store_true")
    parser.add_argument("--seconds", type=float, default=120, help="how long soak and throughput load the server")
    parser.add_argument("--requests", type=int, help="malformed: how many (default 10,000); schema: how many (default 200)")
    parser.add_argument("--orderings", type=int, default=120, help="turns: how many orderings of five pictures (all: 120)")
    parser.add_argument("--model", help="throughput: a model that is slow to decode (default: one is made)")
    parser.add_argument("--sanitized", action="store_true", help="the binary has a sanitizer: timeouts are ten times as long; what counts "
                        "seconds or megabytes is reported, not judged")
    parser.add_argument("--report-only", action="store_true", help="throughput: a low ratio is reported, not a failure")
    parser.add_argument("--threads", type=int, default=0, help="of the server; 0: its own choice")
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    names = options.only or PROOFS
    if options.sanitized:
        harness.patience, harness.judge_measures = 10.0, False
    if options.list:
        for name in names:
            print(name)
        return 0
    if not os.access(options.binary, os.X_OK):
        parser.error(f"--binary: {options.binary} is not a program")
    use_environment(names)
    failed = []
    for name in names:
        proof = importlib.import_module("proof_" + name)
        print(f"== {name}: {proof.ABOUT}", flush=True)
        started = time.monotonic()
        log = Path(tempfile.mkdtemp(prefix="qvl-proof-")) / f"{name}.log"
        server = None
        try:
            extra = ["--threads", str(options.threads)] if options.threads else []
            if hasattr(proof, "run_without_server"):
                facts = proof.run_without_server(options, extra, log)
            else:
                server = harness.Server(options.binary, proof.server_options(options) + extra, log=log)
                facts = proof.run(server, options)
                server.must_be_alive()
                server.stop()
            for fact in facts or []:
                print(f"   {fact}")
            print(f"   held, {time.monotonic() - started:.1f} s", flush=True)
            shutil.rmtree(log.parent, ignore_errors=True)
        except Exception as error:
            failed.append(name)
            if isinstance(error, harness.Failure):
                print(f"   FAILED: {error}")
            else:
                print("   FAILED: " + traceback.format_exc())
            if server is not None:
                print("   the server said:\n" + "\n".join("      " + line for line in list(server.tail)[-15:]))
            print(f"   its log: {log}", flush=True)
        finally:
            if server is not None:
                server.kill()
    print(f"{len(names) - len(failed)} of {len(names)} proofs held" + (f"; failed: {', '.join(failed)}" if failed else ""))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
