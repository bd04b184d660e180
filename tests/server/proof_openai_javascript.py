"""The official openai package for JavaScript: openai_client.mjs, run by node."""

import os
import subprocess
from pathlib import Path

from harness import KEY, ROOT, WITH_KEY, check

ABOUT = "the official openai JavaScript client"


def server_options(options):
    return WITH_KEY + ["--queue", "4"]


def run(server, options):
    here = Path(__file__).resolve().parent
    modules = Path(os.environ.get("QVL_NODE_MODULES", ROOT / "build/third_party/server-proofs/node_modules"))
    check((modules / "openai/package.json").exists(), f"the package openai is not in {modules} (run make_environment.sh)")
    done = subprocess.run(["node", str(here / "openai_client.mjs")], capture_output=True, text=True, timeout=240,
                          env=dict(os.environ, QVL_BASE_URL=server.base_url, QVL_KEY=KEY, QVL_ROOT=str(ROOT), QVL_BINARY=str(options.binary),
                                   QVL_NODE_MODULES=str(modules)))
    check(done.returncode == 0, done.stdout + done.stderr)
    server.wait_idle(10)
    return done.stdout.strip().splitlines()
