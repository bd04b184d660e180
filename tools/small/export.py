"""Writes a training checkpoint as a published-style Hugging Face folder with bf16 weights.

    python export.py RUN_FOLDER/checkpoint.pt MODEL_FOLDER          (the tokenizer files must lie there already)
"""
import json
import sys

import torch
from safetensors.torch import save_file

import config
from twin import Twin


def write_json(path, value):
    with open(path, "w", encoding="utf-8") as f:
        json.dump(value, f, indent=2)
        f.write("\n")


def main(checkpoint, out):
    cfg = config.make(out)
    model = Twin(cfg)
    state = torch.load(checkpoint, weights_only=False, map_location="cpu")
    model.load_state_dict(state["model"])
    tensors = {k: v.to(torch.bfloat16).contiguous() for k, v in model.hf_state().items()}
    save_file(tensors, f"{out}/model.safetensors", metadata={"format": "pt"})
    write_json(f"{out}/config.json", cfg)
    eot, end = cfg["text_config"]["bos_token_id"], cfg["text_config"]["eos_token_id"]
    write_json(f"{out}/generation_config.json", dict(bos_token_id=eot, pad_token_id=eot, eos_token_id=[end, eot], do_sample=False))
    image = dict(size=dict(shortest_edge=config.MIN_PIXELS, longest_edge=config.MAX_PIXELS), patch_size=16, temporal_patch_size=2,
                 merge_size=2, image_mean=[0.5] * 3, image_std=[0.5] * 3, processor_class="Qwen3VLProcessor")
    write_json(f"{out}/preprocessor_config.json", dict(image, image_processor_type="Qwen2VLImageProcessorFast"))
    write_json(f"{out}/video_preprocessor_config.json", dict(image, video_processor_type="Qwen3VLVideoProcessor",
               size=dict(shortest_edge=4096, longest_edge=8 * config.MAX_PIXELS), fps=2, min_frames=4, max_frames=64))
    n = sum(v.numel() for v in tensors.values())
    print(f"{n} parameters, {2 * n / 1e6:.1f} MB; step {state['step']}, {state['seen']} pictures, {state['answers']} answers")


if __name__ == "__main__":
    main(*sys.argv[1:3])
