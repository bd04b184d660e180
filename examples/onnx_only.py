#!/usr/bin/env python3
"""Answers a question about pictures with the graphs of an exported package alone: no qvl, no PyTorch, no transformers.

    pip install onnxruntime numpy pillow tokenizers
    python examples/onnx_only.py PACKAGE picture.png "How many circles are there?"

Shows what the graphs take and give; docs/onnx.md describes them. Prints the answer, or with --json its token ids too,
which are those of `qvl run PACKAGE --greedy --text onnx --vision onnx`.
"""
import argparse
import json
import math
import os

import numpy as np
import onnxruntime as ort
from PIL import Image, ImageOps
from tokenizers import Tokenizer


def smart_resize(height, width, factor, low, high):
    """Sides that are multiples of `factor`, with an area between low and high pixels; Python's round is half to even."""
    h, w = round(height / factor) * factor, round(width / factor) * factor
    if h * w > high:
        beta = math.sqrt(height * width / high)
        h, w = (max(factor, math.floor(v / beta / factor) * factor) for v in (height, width))
    elif h * w < low:
        beta = math.sqrt(low / (height * width))
        h, w = (math.ceil(v * beta / factor) * factor for v in (height, width))
    return h, w


def patches(path, processor):
    """pixel_values [P, 1536] and (t, h, w) of one picture."""
    image = ImageOps.exif_transpose(Image.open(path)).convert("RGB")
    size = processor.get("size", {})
    low = size.get("shortest_edge", processor.get("min_pixels", 65536))
    high = size.get("longest_edge", processor.get("max_pixels", 16777216))
    h, w = smart_resize(image.height, image.width, 32, low, high)
    if (w, h) != image.size:
        image = image.resize((w, h), Image.BICUBIC)
    x = (np.asarray(image, np.float32) - np.float32(127.5)) / np.float32(127.5)
    gh, gw = h // 16, w // 16
    x = x.reshape(gh // 2, 2, 16, gw // 2, 2, 16, 3).transpose(0, 3, 1, 4, 6, 2, 5)   # blocks of 2 x 2 patches, then C, y, x
    x = x.reshape(gh * gw, 3, 1, 256).repeat(2, axis=2)                               # a still picture is one frame twice
    return x.reshape(gh * gw, 1536), (1, gh, gw)


def prompt_ids(tokenizer, question, grids, ids):
    """One user turn: the pictures, then the question."""
    encode = lambda s: tokenizer.encode(s, add_special_tokens=False).ids
    out = [ids["im_start"]] + encode("user\n")
    for t, h, w in grids:
        out += [ids["vision_start"]] + [ids["image"]] * (t * h * w // 4) + [ids["vision_end"]]
    return out + encode(question) + [ids["im_end"]] + encode("\n") + [ids["im_start"]] + encode("assistant\n")


def positions(ids, grids, image_id):
    """M-RoPE positions [3, S]: text counts on in all three rows; a picture's tokens take their place in its grid."""
    rows, next_position, i, grids = [], 0, 0, list(grids)
    while i < len(ids):
        if ids[i] != image_id:
            rows.append((next_position,) * 3)
            next_position += 1
            i += 1
            continue
        t, h, w = grids.pop(0)
        h, w = h // 2, w // 2
        rows += [(next_position, next_position + y, next_position + x) for y in range(h) for x in range(w)]
        next_position += max(h, w)
        i += h * w
    return np.array(rows, np.int64).T, next_position


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("package")
    parser.add_argument("pictures", nargs="*", help="picture files, then the question")
    parser.add_argument("--max-tokens", type=int, default=128)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    *pictures, question = args.pictures

    load = lambda name: json.load(open(os.path.join(args.package, name)))
    config, processor = load("config.json"), load("preprocessor_config.json")
    text, levels = config["text_config"], len(config["vision_config"]["deepstack_visual_indexes"])
    tokenizer = Tokenizer.from_file(os.path.join(args.package, "tokenizer.json"))
    ids = {k: tokenizer.token_to_id(v) for k, v in {"im_start": "<|im_start|>", "im_end": "<|im_end|>", "image": "<|image_pad|>",
                                                     "vision_start": "<|vision_start|>", "vision_end": "<|vision_end|>"}.items()}
    eos = load("generation_config.json").get("eos_token_id", ids["im_end"])
    eos = set(eos if isinstance(eos, list) else [eos])

    options = ort.SessionOptions()
    options.intra_op_num_threads = args.threads
    session = lambda name: ort.InferenceSession(os.path.join(args.package, name), options, providers=["CPUExecutionProvider"])
    embedding, decoder = session("embedding.onnx"), session("decoder.onnx")

    # 1. Vision: all pictures in one call, whatever their sizes.
    width = text["hidden_size"]
    features = [np.zeros((0, width), np.float32)] * (1 + levels)
    grids = []
    if pictures:
        pixels, grids = zip(*(patches(p, processor) for p in pictures))
        features = session("vision.onnx").run(None, {"pixel_values": np.concatenate(pixels), "grid_thw": np.array(grids, np.int64)})

    # 2. Embedding: token ids in, the rows of the placeholders replaced by the features.
    feature_feed = {"image_features": features[0]} | {f"deepstack_features.{j}": f for j, f in enumerate(features[1:])}
    none = {name: np.zeros((0, width), np.float32) for name in feature_feed}

    def embed(token_ids, feed):
        return embedding.run(["inputs_embeds", "deepstack_embeds"], {"input_ids": np.array([token_ids], np.int64), **feed})

    # 3. Decoder: once over the prompt, then token by token with the cache.
    prompt = prompt_ids(tokenizer, question, grids, ids)
    position, next_position = positions(prompt, grids, ids["image"])
    names = [o.name for o in decoder.get_outputs()]
    cache = {i.name: np.zeros((1, text["num_key_value_heads"], 0, text["head_dim"]), np.float32)
             for i in decoder.get_inputs() if i.name.startswith("past_key_values.")}
    embeds, deepstack = embed(prompt, feature_feed)
    position, length, answer = position[:, None, :], len(prompt), []
    while True:
        out = dict(zip(names, decoder.run(None, {
            "inputs_embeds": embeds, "deepstack_embeds": deepstack, "position_ids": position,
            "attention_mask": np.ones((1, length), np.int64), "num_logits_to_keep": np.array([1], np.int64), **cache})))
        token = int(out["logits"][0, -1].argmax())
        answer.append(token)
        if token in eos or len(answer) >= args.max_tokens:
            break
        cache = {name.replace("present", "past_key_values"): out[name] for name in names if name.startswith("present")}
        embeds, deepstack = embed([token], none)
        position = np.full((3, 1, 1), next_position, np.int64)
        next_position += 1
        length += 1
    text_out = tokenizer.decode([t for t in answer if t not in eos])
    print(json.dumps({"text": text_out, "token_ids": answer}) if args.json else text_out)


if __name__ == "__main__":
    main()
