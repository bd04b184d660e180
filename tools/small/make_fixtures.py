"""Writes greedy.json: transformers' own greedy tokens for 50 prompts, in f32 and bf16.

    python make_fixtures.py MODEL EVAL_FOLDER EXAMPLES_FOLDER OUT.json

f32 means the exported bf16 weights upcast. Each prompt: chat messages (pictures by path relative to the fixture
folder's repository root), prompt token ids, grids, and per type the tokens and the smallest gap between the best
and the second logit.
"""
import json
import os
import sys

import numpy as np
import torch
from transformers import AutoModelForImageTextToText, AutoProcessor

LIMIT = 80


def prompts(eval_folder, examples, root):
    rel = lambda p: os.path.relpath(p, root)
    items = [json.loads(x) for x in open(f"{eval_folder}/questions.jsonl")]
    rng = np.random.default_rng(50)
    pic = lambda p: dict(type="image", image=p)
    text = lambda t: dict(type="text", text=t)
    out = []

    def user(names, q, folder=eval_folder):
        return dict(role="user", content=[pic(rel(f"{folder}/{n}")) for n in names] + [text(q)])
    for task, n in (("describe", 6), ("colour", 5), ("shape", 4), ("count", 6), ("box", 6), ("text", 6), ("differ", 5)):
        mine = [x for x in items if x["task"] == task]
        for j in sorted(rng.permutation(len(mine))[:n]):
            out.append((task, [user(mine[j]["images"], mine[j]["question"])]))
    out.append(("example", [user(["shapes.png"], "How many circles are there?", examples)]))
    out.append(("example", [user(["text.png"], "What does it say?", examples)]))
    out.append(("example", [user(["first.png", "second.png"], "What differs?", examples)]))
    out.append(("example", [user(["photo.jpg"], "Describe this image.", examples)]))
    out.append(("text only", [dict(role="user", content="Hello")]))
    out.append(("text only", [dict(role="user", content="What can you do?")]))
    out.append(("text only", [dict(role="system", content="Be brief."), dict(role="user", content="How many circles are there?")]))
    one = next(x for x in items if x["task"] == "count")["images"]
    out.append(("two turns", [user(one, "How many shapes are there?"), dict(role="assistant", content=[text("3")]),
                              dict(role="user", content=[text("Describe the picture.")])]))
    two = next(x for x in items if x["task"] == "text")["images"]
    out.append(("two turns", [user(two, "What does it say?"), dict(role="assistant", content=[text("ABC")]),
                              dict(role="user", content=[text("What colour is the text?")])]))
    out.append(("two turns", [dict(role="user", content="Hello"), dict(role="assistant", content="Hello! Show me a picture with shapes or text and ask about it."),
                              user(one, "Is there a red circle?")]))
    out.append(("text before the picture", [dict(role="user", content=[text("Look: "), pic(rel(f"{eval_folder}/{one[0]}")), text(" What do you see?")])]))
    out.append(("unusual words", [user(one, "¿Cuántos círculos hay? 图片里有什么?")]))
    return out


@torch.no_grad()
def greedy(model, inputs, stop):
    inputs = {k: v.to(model.dtype) if v.is_floating_point() else v for k, v in inputs.items()}
    o = model.generate(**inputs, max_new_tokens=LIMIT, do_sample=False, return_dict_in_generate=True, output_logits=True)
    tokens = o.sequences[0, inputs["input_ids"].shape[1]:].tolist()
    top = torch.stack([x[0].float().topk(2).values for x in o.logits])
    return dict(tokens=tokens, min_margin=float((top[:, 0] - top[:, 1]).min()))


def main(folder, eval_folder, examples, out):
    torch.set_num_threads(1)
    root = os.path.commonpath([os.path.abspath(p) for p in (folder, eval_folder, examples)])
    proc = AutoProcessor.from_pretrained(folder)
    f32 = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32).eval()
    bf16 = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.bfloat16).eval()
    stop = f32.generation_config.eos_token_id
    cases = []
    for kind, messages in prompts(os.path.abspath(eval_folder), os.path.abspath(examples), root):
        full = [dict(m, content=[dict(p, image=os.path.join(root, p["image"])) if p["type"] == "image" else p for p in m["content"]]
                     if not isinstance(m["content"], str) else [dict(type="text", text=m["content"])]) for m in messages]
        d = proc.apply_chat_template(full, tokenize=True, add_generation_prompt=True, return_dict=True, return_tensors="pt")
        r = dict(kind=kind, messages=messages, input_ids=d["input_ids"][0].tolist(),
                 image_grid_thw=d["image_grid_thw"].tolist() if "image_grid_thw" in d else [])
        for name, m in (("f32", f32), ("bf16", bf16)):
            r[name] = greedy(m, d, stop)
        r["text"] = proc.tokenizer.decode(r["f32"]["tokens"], skip_special_tokens=True)
        cases.append(r)
    same = sum(c["f32"]["tokens"] == c["bf16"]["tokens"] for c in cases)
    with open(out, "w", encoding="utf-8") as f:
        f.write('{"model": "models/small", "max_new_tokens": %d, "eos_token_id": %s, "cases": [\n' % (LIMIT, json.dumps(stop)))
        f.write(",\n".join(json.dumps(c, ensure_ascii=False) for c in cases) + "\n]}\n")
    print(f"{len(cases)} prompts; f32 and bf16 tokens agree on {same}; smallest f32 gap {min(c['f32']['min_margin'] for c in cases):.4f}")


if __name__ == "__main__":
    main(*sys.argv[1:5])
