"""Trains the small model from nothing on pictures that draw.py makes, with one CPU core and a fixed end time.

    python train.py --tokenizer FOLDER --out RUN_FOLDER --minutes 105            (or --until 16:05)

The schedule follows the wall clock (so pauses and slow machines only shorten it): a constant learning rate,
then a straight line to zero. The curriculum starts with one shape and one letter; it moves on when the answers
to fresh pictures are right often enough, at the latest at fixed fractions of the time. Tasks that go badly get
more questions. Every picture is new, so the running accuracy of the training batches is an honest estimate.
"""
import argparse
import datetime
import json
import multiprocessing as mp
import os
import re
import signal
import time

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

import config
import data
import draw
from twin import Twin, block_order, grid_positions

N_CTL = 6                                       # shapes, chars, sizes, pairs, large, vision; then the batch size, then task weights
AUX = [len(draw.SHAPES) + 1, len(draw.COLOURS) + 1, len(draw.SHAPES) + 1, len(draw.CHARS) + 1, len(draw.CHARS) + 1, 4]
NEW_RUN = dict(loss=0.0, aux=0.0, n=0, wait=0.0, seen=0, vision=0)
RANKS = dict(rank=7, same_kind=7, same_colour=7, place=6, place2=6)
BASE = dict(describe=1.0, colour=1.0, shape=1.0, count=1.4, box=1.5, text=1.2, exists=0.5, none=0.4, differ=2.0, compare=1.0, chat=1.0)


# ------------------------------------------------------------------ drawing in a second process
def drawer(queue, shared, tokenizer, seed, px_budget):
    os.nice(5)
    os.sched_setaffinity(0, range(os.cpu_count()))              # the trainer may be pinned to one core
    torch.set_num_threads(1)
    enc = data.Encoder(tokenizer)
    rng = np.random.default_rng([0, seed])
    parent = os.getppid()
    while True:
        v = list(shared)
        ctl, batch = data.Control(*v[:N_CTL], weights=dict(zip(data.TASKS, v[N_CTL + 1:]))), int(v[N_CTL])
        if rng.random() < ctl.vision:
            b = data.make_vision_batch(rng, ctl, 32)
        elif rng.random() < 0.012:
            b = data.make_text_batch(rng, enc, 8)
        else:
            b = data.make_batch(rng, ctl, enc, batch, px_budget=px_budget)
        while True:
            try:
                queue.put(b, timeout=20)
                break
            except Exception:
                if os.getppid() != parent:
                    return


# ------------------------------------------------------------------ Muon for the matrices of attention and MLP
def orthogonalise(g, steps=5):
    """Newton-Schulz iteration on a stack of matrices [n, r, c] with r <= c."""
    a, b, c = 3.4445, -4.7750, 2.0315
    x = g / (g.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(steps):
        s = x @ x.transpose(1, 2)
        x = a * x + (b * s + c * (s @ s)) @ x
    return x


class Muon:
    def __init__(self, params, lr, momentum=0.95, decay=0.05):
        self.p, self.lr, self.momentum, self.decay = params, lr, momentum, decay
        self.buf = [torch.zeros_like(p) for p in params]

    @torch.no_grad()
    def step(self, scale):
        groups = {}
        for i, p in enumerate(self.p):
            if p.grad is None:                                  # a batch without pictures
                continue
            m = self.buf[i]
            m.lerp_(p.grad, 1 - self.momentum)
            u = p.grad.lerp(m, self.momentum)
            for j, part in enumerate(u.chunk(3) if p.shape[0] == 3 * p.shape[1] else [u]):     # qkv: three matrices
                flip = part.shape[0] > part.shape[1]
                part = part.T if flip else part
                groups.setdefault(tuple(part.shape), []).append((i, j, flip, part))
        for items in groups.values():
            o = orthogonalise(torch.stack([x[3] for x in items]))
            for (i, j, flip, _), u in zip(items, o):
                p = self.p[i]
                u = u.T if flip else u
                r = u.shape[0]
                target = p[j * r:(j + 1) * r]
                lr = self.lr * scale
                target.mul_(1 - lr * self.decay).add_(u, alpha=-lr * max(1.0, u.shape[0] / u.shape[1]) ** 0.5)

    def state_dict(self):
        return self.buf

    def load_state_dict(self, buf):
        for a, b in zip(self.buf, buf):
            a.copy_(b)


def split_params(model):
    muon, merger, other, flat = [], [], [], []
    for n, p in model.named_parameters():
        if p.ndim == 2 and ("blocks." in n or "layers." in n):
            muon.append(p)
        elif p.ndim == 2 and "merger" in n:
            merger.append(p)
        elif p.ndim == 2:
            other.append(p)
        else:
            flat.append(p)
    return muon, merger, other, flat


# ------------------------------------------------------------------ losses and scores
def aux_loss(head, x, labels, boxes):
    """Patch labels from the last vision block; a help for the encoder that is not part of the model."""
    n = x.shape[0]
    lab = torch.stack([block_order(l.permute(1, 2, 0)) for l in labels.flatten(0, 1)])            # [N, P, 5]
    box = torch.stack([block_order(b.permute(1, 2, 0)) for b in boxes.flatten(0, 1)])
    parts = head(x).split(AUX, -1)
    loss, right = 0.0, {}
    for i, name in enumerate(("shape", "colour", "centre", "char", "char2")):
        loss = loss + F.cross_entropy(parts[i].flatten(0, 1), lab[..., i].flatten(), ignore_index=-100)
        on = lab[..., i] > 0                                    # few patches hold a character: weigh them up
        if on.any():
            loss = loss + 0.5 * F.cross_entropy(parts[i][on], lab[..., i][on])
            right[name] = (parts[i][on].detach().argmax(-1) == lab[..., i][on]).float().mean().item()
    on = lab[..., 0] > 0
    if on.any():
        err = (parts[5][on] - box[on]).abs().mean()
        loss, right["box"] = loss + 6 * err, err.item()
    return loss, right


def rank_loss(head, x, labels, right, prefix=""):
    """Ranks, numbers of like objects and places of characters (labels 5..9 of draw.patch_labels)."""
    lab = torch.stack([block_order(l[5:].permute(1, 2, 0)) for l in labels.flatten(0, 1)])
    parts = head(x).view(x.shape[0], -1, sum(RANKS.values())).split(list(RANKS.values()), -1)
    loss = 0.0
    for i, name in enumerate(RANKS):
        loss = loss + F.cross_entropy(parts[i].flatten(0, 1), lab[..., i].flatten(), ignore_index=-100)
        on = lab[..., i] > 0
        if on.any():
            loss = loss + 0.5 * F.cross_entropy(parts[i][on], lab[..., i][on])
            right[prefix + name] = (parts[i][on].detach().argmax(-1) == lab[..., i][on]).float().mean().item()
    return loss


def digit_loss(head, merged, labels, boxes):
    """Hundreds and tens of the box coordinates (0..1000) of the shape under each merged token."""
    n, m, _ = merged.shape
    on = torch.stack([block_order(l[0]) for l in labels.flatten(0, 1)]).view(n, m, 4) > 0
    box = torch.stack([block_order(b.permute(1, 2, 0)) for b in boxes.flatten(0, 1)]).view(n, m, 4, 4)
    sel = on.any(-1)
    if not sel.any():
        return torch.zeros(()), 0.0
    which = on.float().argmax(-1)[sel]
    q = (box[sel][torch.arange(len(which)), which] * 100).round().long()
    out = head(merged[sel]).view(-1, 4, 21)
    hundreds = q // 10
    loss = F.cross_entropy(out[..., :11].flatten(0, 1), hundreds.flatten()) + 0.4 * F.cross_entropy(out[..., 11:].flatten(0, 1), (q % 10).flatten())
    return loss, (out[..., :11].detach().argmax(-1) == hundreds).float().mean().item()


def iou(a, b):
    w = min(a[2], b[2]) - max(a[0], b[0])
    h = min(a[3], b[3]) - max(a[1], b[1])
    if w <= 0 or h <= 0:
        return 0.0
    area = lambda r: max(0, r[2] - r[0]) * max(0, r[3] - r[1])
    return w * h / (area(a) + area(b) - w * h)


def box_of(text):
    m = re.search(r"\[\s*(-?\d+),\s*(-?\d+),\s*(-?\d+),\s*(-?\d+)\s*\]", text)
    return [int(v) for v in m.groups()] if m else None


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("--tokenizer", required=True)
    ap.add_argument("--out", required=True)
    ap.add_argument("--minutes", type=float)
    ap.add_argument("--until", help="HH:MM, local time")
    ap.add_argument("--batch", type=int, default=16)
    ap.add_argument("--seed", type=int, default=1)
    ap.add_argument("--adamw", action="store_true", help="AdamW for everything instead of Muon for the matrices")
    ap.add_argument("--muon-lr", type=float, default=0.015)
    ap.add_argument("--lr", type=float, default=2e-3)
    ap.add_argument("--decay-from", type=float, default=0.5)
    ap.add_argument("--encoder-first", type=float, default=10, help="minutes that train the encoder alone, on crowded pictures")
    ap.add_argument("--add-positions", type=float, default=0, help="when resuming: add so much of the smooth position table")
    ap.add_argument("--resume", action="store_true")
    args = ap.parse_args()
    os.makedirs(args.out, exist_ok=True)
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    torch.manual_seed(args.seed)
    cfg = config.make(args.tokenizer)
    enc = data.Encoder(args.tokenizer)
    digit_ids = torch.zeros(cfg["text_config"]["vocab_size"], dtype=torch.bool)
    digit_ids[[enc(str(d))[0] for d in range(10)]] = True
    model = Twin(cfg).init(args.seed)
    head = nn.Sequential(nn.LayerNorm(cfg["vision_config"]["hidden_size"]), nn.Linear(cfg["vision_config"]["hidden_size"], sum(AUX)))
    out, side = cfg["vision_config"]["out_hidden_size"], model.model.visual.side
    merged_head = nn.Sequential(nn.LayerNorm(out), nn.Linear(out, 4 * sum(AUX)))
    digit_head = nn.Sequential(nn.LayerNorm(out), nn.Linear(out, 84))
    rank_head = nn.Sequential(nn.LayerNorm(cfg["vision_config"]["hidden_size"]), nn.Linear(cfg["vision_config"]["hidden_size"], sum(RANKS.values())))
    merged_rank_head = nn.Sequential(nn.LayerNorm(out), nn.Linear(out, 4 * sum(RANKS.values())))
    heads = nn.ModuleList([head, merged_head, digit_head, rank_head, merged_rank_head])
    muon_p, merger_p, other_p, flat_p = split_params(model)
    groups = [dict(params=merger_p, lr=args.lr * 0.5), dict(params=other_p + list(heads.parameters()), lr=args.lr),
              dict(params=flat_p, lr=args.lr, weight_decay=0.0)]
    if args.adamw:
        groups.append(dict(params=muon_p, lr=args.lr * 0.5))
        muon_p = []
    adam = torch.optim.AdamW(groups, betas=(0.9, 0.98), weight_decay=0.02, foreach=True)
    for g in adam.param_groups:
        g["base"] = g["lr"]
    muon = Muon(muon_p, args.muon_lr)
    n_params = sum(p.numel() for p in model.parameters())

    step, seen, answers = 0, 0, 0
    ema = {t: 0.0 for t in data.TASKS}
    level, patch = dict(shapes=1, chars=1, at_shapes=0, at_chars=0, vision_until=0.0), {}
    start = time.time()
    ckpt = f"{args.out}/checkpoint.pt"
    if args.resume and os.path.exists(ckpt):
        s = torch.load(ckpt, weights_only=False)
        model.load_state_dict(s["model"])
        heads.load_state_dict(s["heads"])
        patch = s["patch"]
        adam.load_state_dict(s["adam"])
        muon.load_state_dict(s["muon"])
        step, seen, answers, ema, level, start = (s[k] for k in ("step", "seen", "answers", "ema", "level", "start"))
        if args.add_positions:
            table = model.model.visual.pos_embed.weight
            with torch.no_grad():
                table.add_(args.add_positions * grid_positions(side, table.shape[1]))
        for t in data.TASKS:
            ema.setdefault(t, 0.0)
    if args.until:
        hh, mm = map(int, args.until.split(":"))
        end = datetime.datetime.now().replace(hour=hh, minute=mm, second=0, microsecond=0).timestamp()
    else:
        end = start + 60 * args.minutes

    # also when resuming: a stored mark would mean another time now
    level["vision_until"] = (time.time() + 60 * args.encoder_first - start) / (end - start) if args.encoder_first else 0.0
    shared = mp.Array("d", N_CTL + 1 + len(data.TASKS), lock=False)

    def steer(p):
        """Curriculum: move on when the answers are good, at the latest by the clock."""
        if step - level["at_shapes"] > 120 and level["shapes"] < draw.MAX_SHAPES and \
                (min(ema["colour"], ema["shape"]) > 0.93 and ema["count"] > 0.88 or p > (0.22, 0.55, 0.62, 0.68, 0.74)[level["shapes"] - 1]):
            level["shapes"], level["at_shapes"] = level["shapes"] + 1, step
        if step - level["at_chars"] > 120 and level["chars"] < draw.MAX_CHARS and \
                (ema["text"] > 0.85 or p > (0.3, 0.56, 0.65, 0.73)[level["chars"] - 1]):
            level["chars"], level["at_chars"] = level["chars"] + 1, step
        sizes = 4 if p < 0.05 else 11 if p < 0.2 else 16
        pairs = 0.0 if level["shapes"] < 3 else 0.08
        resized = 0.0 if p < 0.3 else 0.1
        seen_chars = patch.get("char", 0.0)
        vision = 1.0 if p < level["vision_until"] and seen_chars < 0.95 else 0.5 if seen_chars < 0.8 else 0.4 if seen_chars < 0.94 else 0.2
        shared[:N_CTL] = [level["shapes"], level["chars"], sizes, pairs, resized, vision]
        shared[N_CTL] = args.batch
        shared[N_CTL + 1:] = [BASE[t] * (1.08 - ema[t]) for t in data.TASKS]

    def save():
        tmp = ckpt + ".tmp"
        torch.save(dict(model=model.state_dict(), heads=heads.state_dict(), patch=patch, adam=adam.state_dict(), muon=muon.state_dict(), step=step,
                        seen=seen, answers=answers, ema=ema, level=level, start=start, args=vars(args)), tmp)
        os.replace(tmp, ckpt)

    steer(0.0)
    queue = mp.Queue(6)
    mp.Process(target=drawer, args=(queue, shared, args.tokenizer, args.seed * 1000 + step, 24 * 160 * 160), daemon=True).start()
    log = open(f"{args.out}/log.jsonl", "a")
    print(f"{n_params / 1e6:.2f} M parameters, {'AdamW' if args.adamw else 'Muon + AdamW'}, end {datetime.datetime.fromtimestamp(end):%H:%M}", flush=True)
    t_log = t_save = t_status = time.time()
    run = dict(NEW_RUN)
    history = []
    model.train()
    stop = []
    signal.signal(signal.SIGTERM, lambda *_: stop.append(1))       # save, then leave: start again with --resume

    def update(scale):
        for g in adam.param_groups:
            g["lr"] = g["base"] * scale
        adam.step()
        if muon_p:
            muon.step(scale)
        for m in (model, heads):
            m.zero_grad(set_to_none=True)

    def housekeeping(p, scale):
        nonlocal t_log, t_save, t_status, run
        if step % 20 == 0:
            steer(p)
        now = time.time()
        if now - t_log > 30:
            d, n = now - t_log, max(1, run["n"])
            rec = dict(time=f"{datetime.datetime.now():%H:%M:%S}", p=round(p, 4), step=step, pictures=seen, answers=answers, loss=round(run["loss"] / n, 4),
                       aux=round(run["aux"] / n, 4), rate=round(run["seen"] / d, 1), vision_rate=round(run["vision"] / d, 1), wait=round(run["wait"] / d, 3),
                       shapes=level["shapes"], chars=level["chars"], lr=round(scale, 3), **{k: round(v, 3) for k, v in ema.items()},
                       patch={k: round(v, 3) for k, v in patch.items()})
            log.write(json.dumps(rec) + "\n")
            log.flush()
            history.append(rec)
            run = dict(NEW_RUN)
            t_log = now
        if now - t_save > 180:
            save()
            t_save = time.time()
        if now - t_status > 60 and history:
            write_status(args.out, n_params, history)
            t_status = now

    while True:
        now = time.time()
        p = min(1.0, (now - start) / (end - start))
        if now >= end or stop:
            break
        scale = min(1.0, (step + 1) / 150) * min(1.0, max(0.0, (1 - p) / (1 - args.decay_from)))
        b = queue.get()
        run["wait"] += time.time() - now
        t = {k: torch.from_numpy(v) for k, v in b.items()}
        pics = t["pics"] if t["pics"].numel() else None
        if not t["ids"].numel():                                # the encoder alone
            merged, _, last = model.model.visual(pics.flatten(0, 1))
            aux, right = aux_loss(head, last, t["labels"], t["boxes"])
            m = merged_head(merged)
            more, right2 = aux_loss(nn.Identity(), m.view(m.shape[0], -1, sum(AUX)), t["labels"], t["boxes"])
            digits, acc = digit_loss(digit_head, merged, t["labels"], t["boxes"])
            right["digit"] = acc
            ranks = rank_loss(rank_head, last, t["labels"], right) + rank_loss(merged_rank_head, merged, t["labels"], right, "m_")
            (0.5 * (aux + more + digits + ranks)).backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            update(scale)
            for k, v in list(right.items()) + [("m_" + k, v) for k, v in right2.items()]:
                patch[k] = patch.get(k, 0.0) * 0.97 + v * 0.03
            step += 1
            run["vision"] += last.shape[0]
            housekeeping(p, scale)
            continue
        hidden, last, merged = model(t["ids"], t["pos"], Twin.branch_mask(t["seg"]), pics)
        rows, cols = (t["tgt"] >= 0).nonzero(as_tuple=True)
        target, task = t["tgt"][rows, cols], t["task"][rows, cols]
        key = rows * 4096 + task
        uniq, inv, cnt = key.unique(return_inverse=True, return_counts=True)
        weight = cnt[inv].float() ** -0.5
        # a box has many tokens that are always the same: the digits that carry it must not drown in them
        weight = weight * torch.where((task % 16 == data.TASKS.index("box")) & digit_ids[target], 3.0, 1.0)
        logits = model.logits(hidden[rows, cols])
        ce = F.cross_entropy(logits, target, reduction="none")
        loss = (ce * weight).sum() / weight.sum()
        total, aux = loss, 0.0
        if last is not None and pics is not None:
            aux, right = aux_loss(head, last, t["labels"], t["boxes"])
            if torch.isfinite(aux):                             # a resized batch carries no patch labels
                digits, acc = digit_loss(digit_head, merged, t["labels"], t["boxes"])
                right["digit"] = acc or patch.get("digit", 0.0)
                total = total + (0.3 if p < 0.3 else 0.15) * aux + 0.15 * digits
                total = total + 0.15 * rank_loss(rank_head, last, t["labels"], right) + 0.1 * rank_loss(merged_rank_head, merged, t["labels"], right, "m_")
                aux = aux.item()
                for k, v in right.items():
                    patch[k] = patch.get(k, v) * 0.97 + v * 0.03
            else:
                aux = 0.0
        total.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        update(scale)
        # running scores
        pred = logits.detach().argmax(-1)
        wrong = torch.zeros(len(uniq)).index_add_(0, inv, (pred != target).float())
        kinds = uniq % 16
        for k in kinds.unique().tolist():
            name, sel = data.TASKS[k], kinds == k
            v = (wrong[sel] == 0).float().mean().item()
            if name == "box":
                v = []
                for u in sel.nonzero()[:6, 0].tolist():
                    at = inv == u
                    a, c = box_of(enc.t.decode(pred[at].tolist())), box_of(enc.t.decode(target[at].tolist()))
                    v.append(iou(a, c) if a and c else 0.0)
                v = float(np.mean(v))
            m = min(0.98, 1 - 1 / (2 + step * 0.2))
            ema[name] = ema[name] * m + v * (1 - m)
        step += 1
        seen += t["ids"].shape[0]
        answers += len(uniq)
        run["loss"] += loss.item()
        run["aux"] += aux
        run["n"] += 1
        run["seen"] += t["ids"].shape[0]
        housekeeping(p, scale)
    save()
    if history:
        write_status(args.out, n_params, history)
    print(f"done: {step} steps, {seen} pictures, {answers} answers", flush=True)


def write_status(out, n_params, history):
    """Accuracy by time, from answers to pictures that had not been seen before."""
    cols = ["time", "step", "pictures", "rate", "loss", "shapes", "chars", "lr", "colour", "shape", "count", "text", "box", "describe",
            "exists", "none", "differ", "compare"]
    rows = ["# Small model: training", "", f"{n_params / 1e6:.2f} M parameters. Running exact match on fresh pictures at the current level (box: mean IoU, "
            "both teacher-forced); rate = pictures per second, each with about five answers; shapes/chars = curriculum level.", "",
            "| " + " | ".join(cols) + " |", "|" + "---|" * len(cols)]
    keep = history[-8:] if len(history) > 8 else []
    body = history[:-8:max(1, len(history) // 40)] + keep if keep else history
    rows += ["| " + " | ".join(str(r[c]) for c in cols) + " |" for r in body]
    with open(f"{out}/STATUS.md", "w") as f:
        f.write("\n".join(rows) + "\n")


if __name__ == "__main__":
    main()
