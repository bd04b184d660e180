"""Proves the batched twin equal to transformers' Qwen3VLForConditionalGeneration.

    python check_twin.py TOKENIZER_FOLDER

Random weights of a wide spread, several sizes, one and two pictures, text only, several branches behind one
prefix: logits must agree within 1e-4 at every answer position.
"""
import sys

import numpy as np
import torch
from transformers import Qwen3VLConfig, Qwen3VLForConditionalGeneration

import config
import data
from twin import Twin, patchify


def spread(model, seed):
    g = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, p in model.named_parameters():
            n = torch.randn(p.shape, generator=g)
            if "norm" in name and name.endswith("weight"):
                p.copy_(1 + 0.2 * n)
            elif p.ndim == 1:
                p.copy_(0.1 * n)
            elif "embed" in name and "patch" not in name:
                p.copy_(0.3 * n)
            else:
                p.copy_(n / p.shape[1] ** 0.5)


def hf_inputs(cfg, enc, pics, ids):
    """pixel_values and grids of transformers' own layout, each frame doubled in time."""
    n, h, w, _ = pics.shape
    d = dict(input_ids=ids[None], attention_mask=torch.ones_like(ids)[None], mm_token_type_ids=(ids == enc.image).int()[None])
    if n:
        x = patchify(pics).reshape(-1, 3, 1, 256).repeat(1, 1, 2, 1).reshape(-1, 1536)
        d |= dict(pixel_values=x, image_grid_thw=torch.tensor([[1, h // 16, w // 16]] * n))
    return d


def main(folder):
    torch.manual_seed(0)
    cfg = config.make(folder)
    enc = data.Encoder(folder)
    twin = Twin(cfg).eval()
    spread(twin, 5)
    hf = Qwen3VLForConditionalGeneration._from_config(Qwen3VLConfig(**cfg), attn_implementation="eager").float().eval()
    missing, unexpected = hf.load_state_dict(twin.hf_state(), strict=False)
    assert not unexpected and set(missing) <= {"lm_head.weight"}, (missing, unexpected)
    hf.tie_weights()
    rng = np.random.default_rng(3)
    worst, count = 0.0, 0
    ctl = data.Control(shapes=6, chars=5, sizes=len(data.SIZES))
    for case in range(9):
        ctl.pairs = float(case % 3 == 1)
        b = data.make_text_batch(rng, enc, 2) if case == 8 else data.make_batch(rng, ctl, enc, 2)
        t = {k: torch.from_numpy(v) for k, v in b.items()}
        with torch.no_grad():
            hidden, *_ = twin(t["ids"], t["pos"], Twin.branch_mask(t["seg"]), t["pics"] if t["pics"].numel() else None)
            logits = twin.logits(hidden)
        for i in range(2):
            seg = t["seg"][i]
            for s in range(1, int(seg.max()) + 1):
                keep = (seg == 0) | (seg == s)
                ids = t["ids"][i][keep]
                pics = t["pics"][i] if t["pics"].numel() else torch.zeros(0, 32, 32, 3, dtype=torch.uint8)
                with torch.no_grad():
                    ref = hf(**hf_inputs(cfg, enc, pics, ids)).logits[0]
                diff = (ref - logits[i][keep]).abs().max().item()
                worst, count = max(worst, diff), count + 1
        print(f"case {case}: pictures {tuple(t['pics'].shape)}, largest difference so far {worst:.2e}, |logits| {ref.abs().max():.1f}")
    assert worst < 1e-4, worst
    print(f"equal: {count} conversations, largest difference {worst:.2e}")


if __name__ == "__main__":
    main(sys.argv[1])
