"""Validation pictures and scores.

    python evaluate.py draw FOLDER                      writes the committed set: PNGs and questions.jsonl
    python evaluate.py fresh MODEL [--pictures N]       scores a model on N fresh pictures, per task and size
    python evaluate.py folder MODEL FOLDER [--hf]       scores a folder (--hf: transformers' own generate)

Scores: exact match of the whole answer; for boxes the mean IoU of the first bbox_2d. Validation scenes come from
random streams that training does not use.
"""
import argparse
import json
import math
import os
from collections import defaultdict

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file

import config
import data
import draw
from twin import Twin
from train import box_of, iou

EVAL_TASKS = ["describe", "colour", "shape", "count", "box", "text", "differ"]
# (height, width): sizes of training, sizes that need a small resize, sizes above the limit that are shrunk
SIZES = [(96, 96), (96, 128), (128, 128), (160, 128), (96, 160), (160, 160), (192, 128), (192, 192), (64, 192),
         (100, 150), (140, 120), (200, 170), (224, 224), (250, 310), (320, 320)]


def smart_resize(h, w, lo=config.MIN_PIXELS, hi=config.MAX_PIXELS):
    H, W = round(h / 32) * 32, round(w / 32) * 32
    if H * W > hi:
        b = math.sqrt(h * w / hi)
        H, W = max(32, math.floor(h / b / 32) * 32), max(32, math.floor(w / b / 32) * 32)
    elif H * W < lo:
        b = math.sqrt(lo / (h * w))
        H, W = math.ceil(h * b / 32) * 32, math.ceil(w * b / 32) * 32
    return H, W


def scene_for(rng, h, w, pair):
    small = h <= 64
    if pair:
        return draw.random_scene(rng, h, w, int(rng.integers(1, 4)), 3 if rng.random() < 0.35 else 0)
    r = rng.random()
    if r < 0.35:
        return draw.random_scene(rng, h, w, 0, draw.MAX_CHARS)
    n = int(rng.integers(1, 4 if small or r < 0.5 else draw.MAX_SHAPES + 1))
    return draw.random_scene(rng, h, w, n, draw.MAX_CHARS if r < 0.5 and not small else 0)


def validation(seed, pictures, sizes=SIZES, quiet_noise=False):
    """Yields (size, [uint8 pictures], [(task, question, answer)])."""
    for i in range(pictures):
        rng = np.random.default_rng([1, seed, i])
        h, w = sizes[i % len(sizes)]
        pair = rng.random() < 0.25 and 96 <= h <= 192 and w <= 192
        sc = scene_for(rng, h, w, pair)
        if quiet_noise and rng.random() < 0.9:
            sc.noise = 0
        if pair:
            a, b, sentence = draw.changed(rng, sc)
            qs = [q for q in data.pair_questions(rng, a, b, sentence) if q[0] == "differ"]
            yield (h, w), [draw.render(a), draw.render(b)], qs
        else:
            qs = [q for q in data.questions(rng, sc) if q[0] in EVAL_TASKS]
            keep = []
            for t in EVAL_TASKS:                                # one or two questions of a kind for each picture
                mine = [q for q in qs if q[0] == t]
                if mine:
                    keep += [mine[j] for j in rng.permutation(len(mine))[:2 if t == "count" else 1]]
            yield (h, w), [draw.render(sc)], keep


def write_folder(folder, seed=7, pictures=133):
    os.makedirs(folder, exist_ok=True)
    rng = np.random.default_rng([1, 999])
    lines, n = [], 0
    for i, (size, pics, qs) in enumerate(validation(seed, pictures, quiet_noise=True)):
        names = []
        for p in pics:
            names.append(f"{n:03d}.png")
            Image.fromarray(p).save(f"{folder}/{names[-1]}", optimize=True)
            n += 1
        keep = qs if len(qs) < 4 else [qs[j] for j in sorted(rng.permutation(len(qs))[:3])]
        lines += [dict(images=names, question=q, answer=a, task=t) for t, q, a in keep]
        if n >= 148:
            break
    with open(f"{folder}/questions.jsonl", "w") as f:
        f.writelines(json.dumps(x) + "\n" for x in lines)
    print(f"{n} pictures, {len(lines)} questions, {sum(os.path.getsize(f'{folder}/{x}') for x in os.listdir(folder)) / 1e6:.2f} MB")


# ------------------------------------------------------------------ the twin as a batched greedy generator
def load_twin(folder):
    cfg = json.load(open(f"{folder}/config.json"))
    m = Twin(cfg)
    state = {k: v.float() for k, v in load_file(f"{folder}/model.safetensors").items()}
    k = "model.visual.patch_embed.proj.weight"
    state[k] = state[k].sum(2).reshape(state[k].shape[0], -1)
    m.load_state_dict(state)
    return m.eval()


@torch.no_grad()
def generate(model, enc, jobs, limit=64):
    """jobs: [(pictures [n, H, W, 3] of one size, question)] with equal picture shapes -> answers."""
    rows = []
    for pics, q in jobs:
        ids, pos, seg, _, _ = data.assemble(enc, None, pics.shape[1], pics.shape[2], len(pics), [[("chat", q, "")]])
        rows.append((ids[:-1], pos[:-1]))                       # without the closing token of the empty answer
    n = max(len(r[0]) for r in rows) + limit
    B = len(rows)
    ids, pos = torch.full((B, n), enc.eot), torch.zeros(B, n, 3, dtype=torch.long)
    length = torch.tensor([len(r[0]) for r in rows])
    for i, (a, p) in enumerate(rows):
        ids[i, :len(a)] = torch.tensor(a)
        pos[i, :len(a)] = torch.tensor(p)
        pos[i, len(a):] = torch.tensor(p[-1]) + 1 + torch.arange(n - len(a))[:, None]
    pics = torch.from_numpy(np.stack([j[0] for j in jobs]))
    live = torch.ones(B, dtype=torch.bool)
    start = length.clone()
    # the pictures are encoded once; the text part is recomputed at every step, which is cheap at this size
    m = model.model
    merged, deep, _ = m.visual(pics.flatten(0, 1))
    merged, deep = merged.reshape(-1, merged.shape[-1]), [d.reshape(-1, d.shape[-1]) for d in deep]
    for _ in range(limit):
        k = int(length.max())
        x = m.language_model.embed_tokens(ids[:, :k])
        vis = (ids[:, :k] == enc.image).nonzero(as_tuple=True)
        x = x.index_put(vis, merged)
        mask = torch.ones(k, k, dtype=torch.bool).tril()[None].expand(B, k, k)
        h = m.language_model(x, pos[:, :k], mask, vis, deep)
        nxt = model.logits(h[torch.arange(B), length - 1]).argmax(-1)
        ids[live, length[live]] = nxt[live]
        length = length + live.long()
        live = live & (nxt != enc.im_end) & (nxt != enc.eot)
        if not live.any():
            break
    return [enc.t.decode([t for t in ids[i, start[i]:length[i]].tolist() if t not in (enc.im_end, enc.eot)]) for i in range(B)]


def score(task, answer, truth):
    if task == "box":
        a, b = box_of(answer), box_of(truth)
        return iou(a, b) if a and b else 0.0
    return float(answer.strip() == truth.strip())


def prepare(p):
    H, W = smart_resize(*p.shape[:2])
    return p if p.shape[:2] == (H, W) else data.resize_u8(p, H, W)


def run_fresh(folder, pictures, seed=100, tasks=None):
    model, enc = load_twin(folder), data.Encoder(folder)
    groups = defaultdict(list)
    for size, pics, qs in validation(seed, pictures):
        pics = np.stack([prepare(p) for p in pics])
        for t, q, a in qs:
            if tasks is None or t in tasks:
                groups[pics.shape].append((size, pics, t, q, a))
    by_task, by_size, wrong = defaultdict(list), defaultdict(lambda: defaultdict(list)), []
    for shape, items in groups.items():
        for k in range(0, len(items), 48):
            part = items[k:k + 48]
            out = generate(model, enc, [(p, q) for _, p, _, q, _ in part])
            for (size, _, t, q, a), got in zip(part, out):
                s = score(t, got, a)
                by_task[t].append(s)
                by_size[t][size].append(s)
                if t == "count" and "shapes" not in q:
                    by_task["count of a shape"].append(s)
                if t == "text":
                    by_task[f"text of {len(a)}"].append(s)
                if s < 0.5:
                    wrong.append((t, size, q, a, got))
    return by_task, by_size, wrong


def print_tables(by_task, by_size):
    print("| task | questions | score |\n|---|---|---|")
    for t in EVAL_TASKS + sorted(k for k in by_task if k not in EVAL_TASKS):
        if by_task.get(t):
            print(f"| {t} | {len(by_task[t])} | {100 * np.mean(by_task[t]):.1f} |")
    sizes = [s for s in SIZES if any(s in by_size[t] for t in by_size)]
    print("\n| height x width | " + " | ".join(EVAL_TASKS) + " |\n|---" * 1 + "|---" * len(EVAL_TASKS) + "|")
    for s in sizes:
        cells = [f"{100 * np.mean(by_size[t][s]):.0f}" if by_size[t].get(s) else "" for t in EVAL_TASKS]
        print(f"| {s[0]} x {s[1]} | " + " | ".join(cells) + " |")


def run_folder(folder, path, hf):
    items = [json.loads(x) for x in open(f"{path}/questions.jsonl")]
    scores = defaultdict(list)
    if hf:
        from transformers import AutoModelForImageTextToText, AutoProcessor
        proc = AutoProcessor.from_pretrained(folder)
        model = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32).eval()
    else:
        model, enc = load_twin(folder), data.Encoder(folder)
    for it in items:
        if hf:
            msg = [dict(role="user", content=[dict(type="image", image=os.path.join(path, x)) for x in it["images"]] + [dict(type="text", text=it["question"])])]
            d = proc.apply_chat_template(msg, tokenize=True, add_generation_prompt=True, return_dict=True, return_tensors="pt")
            with torch.no_grad():
                o = model.generate(**d, max_new_tokens=80)
            got = proc.tokenizer.decode(o[0, d["input_ids"].shape[1]:], skip_special_tokens=True)
        else:
            pics = np.stack([prepare(np.asarray(Image.open(os.path.join(path, x)).convert("RGB"))) for x in it["images"]])
            got = generate(model, enc, [(pics, it["question"])])[0]
        scores[it["task"]].append(score(it["task"], got, it["answer"]))
    print_tables(scores, {})


if __name__ == "__main__":
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("what", choices=["draw", "fresh", "folder"])
    ap.add_argument("paths", nargs="+")
    ap.add_argument("--pictures", type=int, default=760)
    ap.add_argument("--hf", action="store_true")
    ap.add_argument("--show", type=int, default=0, help="print so many wrong answers")
    ap.add_argument("--threads", type=int, default=1)
    a = ap.parse_args()
    torch.set_num_threads(a.threads)
    if a.what == "draw":
        write_folder(a.paths[0])
    elif a.what == "fresh":
        bt, bs, wrong = run_fresh(a.paths[0], a.pictures)
        print_tables(bt, bs)
        for x in wrong[:a.show]:
            print(*x, sep="  |  ")
    else:
        run_folder(a.paths[0], a.paths[1], a.hf)
