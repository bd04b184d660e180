"""Times the reference library's vision encoder on a checkpoint's own weights: the baseline of qvl's vision figures.

    python3 -m venv venv && venv/bin/pip install torch transformers==5.5.4 safetensors
    venv/bin/python bench/peers/torch_vision.py CHECKPOINT --grid 48x64 --threads 2 --runs 3

Prints one JSON object: milliseconds per run, median, patches per second.
"""
import argparse
import json
import statistics
import time
from pathlib import Path

import torch
from safetensors import safe_open
from transformers import AutoConfig
from transformers.models.qwen3_vl.modeling_qwen3_vl import Qwen3VLVisionModel


def load(folder: Path, dtype: torch.dtype) -> Qwen3VLVisionModel:
    config = AutoConfig.from_pretrained(folder).vision_config
    config._attn_implementation = "sdpa"
    with torch.device("meta"):
        model = Qwen3VLVisionModel(config)
    state = {}
    for shard in sorted(folder.glob("*.safetensors")):
        with safe_open(shard, "pt") as f:
            for name in f.keys():
                if name.startswith("model.visual."):
                    state[name.removeprefix("model.visual.")] = f.get_tensor(name).to(dtype)
    missing, unexpected = model.load_state_dict(state, strict=False, assign=True)
    assert not missing and not unexpected, (missing, unexpected)
    # The rotary table is no part of a checkpoint and stays float32, as from_pretrained leaves it.
    rotary = model.rotary_pos_emb
    dim = config.hidden_size // config.num_heads // 2
    rotary.inv_freq = 1.0 / (10000.0 ** (torch.arange(0, dim, 2, dtype=torch.float) / dim))
    return model.eval()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--grid", default="48x64", help="patch rows x columns; 48x64 is 1024x768 pixels")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--dtype", choices=["bf16", "fp32"], default="bf16")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    dtype = torch.bfloat16 if args.dtype == "bf16" else torch.float32
    model = load(args.checkpoint, dtype)
    h, w = (int(v) for v in args.grid.split("x"))
    pixels = torch.rand(h * w, 1536, generator=torch.Generator().manual_seed(1)) * 2 - 1
    grid = torch.tensor([[1, h, w]])
    times = []
    with torch.inference_mode():
        for i in range(args.runs + 1):
            start = time.perf_counter()
            model(pixels.to(dtype), grid_thw=grid)
            if i > 0:  # the first run warms up
                times.append((time.perf_counter() - start) * 1000)
    median = statistics.median(times)
    print(json.dumps({"dtype": args.dtype, "threads": args.threads, "patches": h * w,
                      "runs_ms": [round(t, 1) for t in times], "median_ms": round(median, 1),
                      "patches_per_s": round(h * w / median * 1000, 1)}))


if __name__ == "__main__":
    main()
