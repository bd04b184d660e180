"""Questions and answers about scenes, and batches for training.

Scene seeds: training uses streams (0, worker seed, ...), validation uses (1, ...): a validation picture is
never drawn for training.
"""
import json
from dataclasses import dataclass, field

import numpy as np

import draw

PLURAL = {s: s + "s" for s in draw.SHAPES} | {"cross": "crosses"}
TASKS = ["describe", "colour", "shape", "count", "box", "text", "exists", "none", "differ", "compare", "chat"]
# Sizes (height, width) of the pictures, small ones first; training takes more of them as it goes on.
SIZES = [(96, 96), (128, 128), (96, 128), (128, 96), (128, 160), (160, 128), (96, 160), (160, 96), (160, 160), (128, 192), (192, 128),
         (160, 192), (192, 160), (64, 160), (64, 192), (192, 192)]


def article(phrase):
    return ("an " if phrase[0] in "aeiou" else "a ") + phrase


def pick(rng, options):
    return options[rng.integers(len(options))]


def describe(sc):
    names = [article(o.name) for o in sc.shapes]
    out = []
    if len(names) == 1:
        out.append(names[0][0].upper() + names[0][1:] + ".")
    elif names:
        out.append("From left to right: " + ", ".join(names) + ".")
    for t in sc.texts:
        out.append(f'The text "{t.string}".')
    return " ".join(out) or "Nothing."


def box_json(box, sc, label):
    """Coordinates 0..1000 of the picture's width and height, rounded to tens."""
    x0, y0, x1, y1 = box
    q = [int(round(v * 100)) * 10 for v in (x0 / sc.w, y0 / sc.h, x1 / sc.w, y1 / sc.h)]
    return json.dumps({"bbox_2d": q, "label": label})


Q_DESCRIBE = ["Describe this image.", "Describe the picture.", "Describe this picture.", "Describe the image.", "What do you see?",
              "What is in this picture?", "What is in the image?"]
Q_TEXT = ["What does it say?", "Read the text.", "What does the text say?", "What is written here?", "What text is in the picture?",
          "What is the text?", "Read this."]
Q_DIFFER = ["What is the difference between the two pictures?", "What differs?", "What is different?", "What has changed?",
            "What is the difference?", "What is different in the second picture?"]
CHAT = [
    ("Hello", "Hello! Show me a picture with shapes or text and ask about it."),
    ("Hello!", "Hello! Show me a picture with shapes or text and ask about it."),
    ("Hi", "Hello! Show me a picture with shapes or text and ask about it."),
    ("Who are you?", "I am a small model that looks at pictures of shapes and text."),
    ("What are you?", "I am a small model that looks at pictures of shapes and text."),
    ("What can you do?", "I can describe pictures, count shapes, name colours, find boxes, read text and compare two pictures."),
    ("Help", "I can describe pictures, count shapes, name colours, find boxes, read text and compare two pictures."),
    ("Thank you.", "You are welcome."), ("Thanks!", "You are welcome."), ("Bye", "Goodbye."), ("Goodbye.", "Goodbye."),
]
NO_PICTURE = "Please show me a picture."


def questions(rng, sc):
    """All sensible (task, question, answer) about one picture, each in one random phrasing."""
    out = []
    names = [o.name for o in sc.shapes]
    kinds = [o.kind for o in sc.shapes]
    colours = [o.colour for o in sc.shapes]
    out.append(("describe", pick(rng, Q_DESCRIBE), describe(sc)))
    # counts
    def count_q(noun):
        return pick(rng, [f"How many {noun} are there?", f"How many {noun} do you see?", f"Count the {noun}.",
                          f"How many {noun} are in the picture?", f"How many {noun} are in this image?"])
    ks = sorted(set(kinds))
    if ks:
        k = pick(rng, ks) if rng.random() < 0.6 else max(ks, key=kinds.count)
        out.append(("count", count_q(PLURAL[k]), str(kinds.count(k))))
        out.append(("count", count_q("shapes"), str(len(kinds))))
        c = pick(rng, sorted(set(colours))) if rng.random() < 0.6 else max(sorted(set(colours)), key=colours.count)
        out.append(("count", count_q(f"{c} shapes"), str(colours.count(c))))
        if len(kinds) > 1 and rng.random() < 0.3:
            n = pick(rng, names)
            c, k = n.split()
            out.append(("count", count_q(f"{c} {PLURAL[k]}"), str(names.count(n))))
    if rng.random() < 0.2:
        k = pick(rng, draw.SHAPES)
        out.append(("count", count_q(PLURAL[k]), str(kinds.count(k))))
    # colours and shapes
    uk = [o for o in sc.shapes if kinds.count(o.kind) == 1]
    uc = [o for o in sc.shapes if colours.count(o.colour) == 1]
    for o in uk[:3] if len(uk) < 4 else [uk[i] for i in rng.choice(len(uk), 3, replace=False)]:
        out.append(("colour", pick(rng, [f"What colour is the {o.kind}?", f"What color is the {o.kind}?", f"Which colour is the {o.kind}?",
                                         f"What is the colour of the {o.kind}?"]), o.colour))
    for o in uc[:3] if len(uc) < 4 else [uc[i] for i in rng.choice(len(uc), 3, replace=False)]:
        out.append(("shape", pick(rng, [f"What shape is {o.colour}?", f"Which shape is {o.colour}?", f"What is the {o.colour} shape?"]), o.kind))
    if len(kinds) == 1:
        out.append(("colour", pick(rng, ["What colour is it?", "What color is the shape?", "What colour is the shape?"]), colours[0]))
        out.append(("shape", pick(rng, ["What shape is it?", "What shape is this?", "Which shape is this?"]), kinds[0]))
    # boxes
    un = [o for o in sc.shapes if names.count(o.name) == 1]
    if un:
        for i in rng.permutation(len(un))[:2]:
            o = un[i]
            what = o.kind if kinds.count(o.kind) == 1 and rng.random() < 0.4 else o.name
            out.append(("box", pick(rng, [f"Where is the {what}?", f"Find the {what}.", f"Locate the {what}.", f"Give the box of the {what}."]),
                        box_json(o.box(), sc, o.name)))
    if sc.texts:
        t = sc.texts[0]
        q = Q_TEXT + (["What number is this?", "Read the number."] * 2 if t.string.isdigit() and not kinds else [])
        out.append(("text", pick(rng, q), t.string))
        if rng.random() < 0.4:
            out.append(("colour", pick(rng, ["What colour is the text?", "What color is the text?"]), t.colour))
        if rng.random() < 0.4:
            out.append(("box", pick(rng, ["Where is the text?", "Find the text."]), box_json(t.box(), sc, "text")))
    # yes or no, and questions about things that are not there
    if names and rng.random() < 0.5:
        n = pick(rng, names)
    else:
        n = f"{pick(rng, draw.COLOUR_NAMES)} {pick(rng, kinds or draw.SHAPES)}"
    out.append(("exists", pick(rng, [f"Is there {article(n)}?", f"Do you see {article(n)}?"]), "Yes." if n in names else "No."))
    k = pick(rng, draw.SHAPES)
    n = f"{pick(rng, draw.COLOUR_NAMES)} {k}"
    if k not in kinds:
        out.append(("none", pick(rng, [f"What colour is the {k}?", f"What color is the {k}?"]), f"There is no {k}."))
    if n not in names:
        out.append(("none", pick(rng, [f"Where is the {n}?", f"Find the {n}."]), f"There is no {n}."))
    if not sc.texts:
        out.append(("none", pick(rng, Q_TEXT), "There is no text."))
    return out


def pair_questions(rng, a, b, sentence):
    out = [("differ", pick(rng, Q_DIFFER), sentence)]
    na, nb = len(a.shapes), len(b.shapes)
    if na != nb:
        out.append(("compare", pick(rng, ["Which picture has more shapes?", "Which picture shows more shapes?"]), "The first." if na > nb else "The second."))
    for word, s in (("first", a), ("second", b)):
        kinds = [o.kind for o in s.shapes]
        un = [o for o in s.shapes if kinds.count(o.kind) == 1]
        if un:
            o = pick(rng, un)
            out.append(("compare", f"What colour is the {o.kind} in the {word} picture?", o.colour))
        out.append(("compare", f"How many shapes are in the {word} picture?", str(len(kinds))))
        if s.texts:
            out.append(("compare", f"What does the text say in the {word} picture?", s.texts[0].string))
    return out


def sample_questions_for_tokenizer(rng):
    sc = draw.random_scene(rng, 128, 128, int(rng.integers(0, 7)), 0)
    out = questions(rng, sc)
    a, b, s = draw.changed(rng, sc)
    out += pair_questions(rng, a, b, s) + [("chat", *CHAT[rng.integers(len(CHAT))]), ("chat", "Read the text.", NO_PICTURE)]
    out.append(("text", "What does it say?", 'The text "'))
    out.append(("text", "What differs?", 'The text is "" in the second picture.'))
    return out


# ------------------------------------------------------------------ batches
@dataclass
class Control:
    """What the trainer asks of the drawing process (kept in a shared array, see train.py)."""
    shapes: float = 1       # most shapes in a picture
    chars: float = 1        # most characters of a text
    sizes: float = 6        # how many of SIZES are in use
    pairs: float = 0.0      # share of two-picture batches
    large: float = 0.0      # share of batches that draw at any size and resize
    vision: float = 0.0     # share of batches for the encoder alone
    weights: dict = field(default_factory=lambda: {t: 1.0 for t in TASKS})


class Encoder:
    """Chat pieces to token ids."""

    def __init__(self, folder):
        from tokenizers import Tokenizer
        self.t = Tokenizer.from_file(f"{folder}/tokenizer.json")
        self.cache = {}
        i = self.t.token_to_id
        self.im_start, self.im_end, self.vs, self.ve, self.image, self.eot = (
            i(s) for s in ("<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|endoftext|>"))
        self.user = [self.im_start] + self("user\n")
        self.assistant = [self.im_end] + self("\n") + [self.im_start] + self("assistant\n")
        self.newline = self("\n")

    def __call__(self, s):
        v = self.cache.get(s)
        if v is None:
            v = self.t.encode(s, add_special_tokens=False).ids
            if len(self.cache) < 50000:
                self.cache[s] = v
        return v


SYSTEM = ["You are a helpful assistant.", "Be brief.", "You look at pictures."]


def assemble(enc, rng, h, w, n_images, branches, system=None):
    """Token ids, loss mask, branch numbers and M-RoPE positions of one sample.

    The pictures and the opening of the user turn are a shared prefix; every branch is a conversation of its own
    that continues from the prefix (branches do not see each other; positions restart after the prefix)."""
    ids, pos = [], []

    def text(tokens, cur):
        ids.extend(tokens)
        pos.extend((cur + i,) * 3 for i in range(len(tokens)))
        return cur + len(tokens)
    cur = 0
    if system:
        cur = text([enc.im_start] + enc("system\n") + enc(system) + [enc.im_end] + enc.newline, cur)
    cur = text(enc.user, cur)
    lh, lw = h // 32, w // 32
    for _ in range(n_images):
        cur = text([enc.vs], cur)
        ids.extend([enc.image] * (lh * lw))
        pos.extend((cur, cur + j // lw, cur + j % lw) for j in range(lh * lw))
        cur += max(lh, lw)
        cur = text([enc.ve], cur)
    seg, tgt, task = [0] * len(ids), [-1] * len(ids), [-1] * len(ids)
    for b, turns in enumerate(branches, 1):
        c = cur
        for t, (name, q, a) in enumerate(turns):
            head = (enc.newline + enc.user if t else []) + enc(q) + enc.assistant
            ans = enc(a) + [enc.im_end]
            c = text(head + ans, c)
            seg += [b] * (len(head) + len(ans))
            # the target sits at the position that predicts it
            tgt += [-1] * (len(head) - 1) + ans + [-1]
            k = b * 64 + t * 16 + TASKS.index(name)
            task += [-1] * (len(head) - 1) + [k] * len(ans) + [-1]
    return ids, pos, seg, tgt, task


def choose_branches(rng, qs, weights, budget, enc):
    """A few branches, hard tasks first; one in eight has two or three turns."""
    w = np.array([weights.get(t, 1.0) / sum(1 for x in qs if x[0] == t) for t, _, _ in qs])
    order = np.argsort(-np.log(rng.random(len(qs))) / np.maximum(w, 1e-9))
    branches, used, i = [], 0, 0
    while i < len(order) and used < budget and len(branches) < 14:
        n = 1 if rng.random() < 0.88 else int(rng.integers(2, 4))
        turns = [qs[j] for j in order[i:i + n]]
        i += n
        branches.append(turns)
        used += sum(len(enc(q)) + len(enc(a)) + 7 for _, q, a in turns)
    return branches


def make_batch(rng, ctl, enc, batch, budget=110, px_budget=None):
    """One batch: pictures u8 [B, n_images, H, W, 3], padded token arrays, patch labels."""
    h, w = SIZES[rng.integers(min(len(SIZES), max(1, int(ctl.sizes))))]
    pair = rng.random() < ctl.pairs
    if pair and h * w > 192 * 192:
        h, w = SIZES[rng.integers(9)]
    n_images = 2 if pair else 1
    if px_budget:
        batch = max(8, min(batch, px_budget // (h * w * n_images)))
    drawn = (h, w)
    resized = rng.random() < ctl.large
    pics, labels, boxes, samples = [], [], [], []
    for _ in range(batch):
        ls, lt = int(rng.integers(1, int(ctl.shapes) + 1)), int(ctl.chars)
        r = rng.random()
        if pair:
            ls = int(rng.integers(1, min(3, int(ctl.shapes)) + 1))
            lt = min(lt, 3) if r < 0.35 else 0
        elif h <= 64:
            ls = min(ls, 3)
            lt, ls = (lt, 0) if r < 0.6 else (0, ls)
        else:
            wt = ctl.weights.get("text", 1.0)
            p_text = 0.3 * wt / (0.3 * wt + 0.55)
            if r < p_text:
                ls = 0
            elif r < p_text + 0.15:
                ls = min(ls, 4)
            else:
                lt = 0
            if ls and not lt and rng.random() < 0.02:
                ls = 0
        if resized:                                             # any size that the processor brings to h x w
            f = 1.0 if rng.random() < 0.5 else rng.uniform(1.2, 2.0)
            dh, dw = int(f * rng.integers(h - 15, h + 16)), int(f * rng.integers(w - 15, w + 16))
        else:
            dh, dw = h, w
        sc = draw.random_scene(rng, dh, dw, ls, lt)
        scenes = [sc]
        if pair:
            a, b, sentence = draw.changed(rng, sc)
            scenes = [a, b]
            qs = pair_questions(rng, a, b, sentence)
        else:
            qs = questions(rng, sc)
        ims = [draw.render(s) for s in scenes]
        if resized:
            ims = [resize_u8(im, h, w) for im in ims]
            lab, box = np.full((10, h // 16, w // 16), -100, np.int64), np.zeros((4, h // 16, w // 16), np.float32)
            lb = [(lab, box)] * len(scenes)
        else:
            lb = [draw.patch_labels(s) for s in scenes]
        branches = choose_branches(rng, qs, ctl.weights, budget, enc)
        if not pair and rng.random() < 0.05:
            branches.append([("chat", *CHAT[rng.integers(len(CHAT))])])
        pics.append(ims)
        labels.append([x[0] for x in lb])
        boxes.append([x[1] for x in lb])
        system = pick(rng, SYSTEM) if rng.random() < 0.04 else None
        samples.append(assemble(enc, rng, h, w, n_images, branches, system))
    return collate(enc, pics, labels, boxes, samples)


def make_vision_batch(rng, ctl, batch):
    """Crowded pictures with patch labels only, for the encoder."""
    h, w = SIZES[rng.integers(min(len(SIZES), max(1, int(ctl.sizes))))]
    batch = max(6, int(batch * 128 * 128 / (h * w)))
    scenes = []
    for _ in range(batch):
        r = rng.random()
        if r < 0.65:
            scenes.append(draw.crowded_scene(rng, h, w, page=r < 0.5))
        elif r < 0.85 and h > 64:
            scenes.append(draw.random_scene(rng, h, w, int(rng.integers(1, draw.MAX_SHAPES + 1)), 0))
        else:
            scenes.append(draw.random_scene(rng, h, w, 0 if rng.random() < 0.7 else 2, draw.MAX_CHARS))
    lb = [draw.patch_labels(s) for s in scenes]
    return dict(ids=np.zeros((batch, 0), np.int64), pics=np.array([[draw.render(s)] for s in scenes]),
                labels=np.array([[x[0]] for x in lb]), boxes=np.array([[x[1]] for x in lb]))


def make_text_batch(rng, enc, batch):
    """Conversations without a picture."""
    samples = []
    for _ in range(batch):
        branches = []
        for _ in range(6):
            if rng.random() < 0.6:
                branches.append([("chat", *CHAT[rng.integers(len(CHAT))])])
            else:
                sc = draw.random_scene(rng, 96, 96, 2, 0)
                q = pick(rng, questions(rng, sc))[1] if rng.random() < 0.8 else pick(rng, Q_DIFFER)
                branches.append([("chat", q, NO_PICTURE)])
        samples.append(assemble(enc, rng, 32, 32, 0, branches, pick(rng, SYSTEM) if rng.random() < 0.1 else None))
    return collate(enc, [[] for _ in samples], [[] for _ in samples], [[] for _ in samples], samples)


def collate(enc, pics, labels, boxes, samples):
    n = max(len(s[0]) for s in samples)
    B = len(samples)
    ids = np.full((B, n), enc.eot, np.int64)
    pos = np.zeros((B, n, 3), np.int64)
    seg = np.full((B, n), -1, np.int64)
    tgt, task = np.full((B, n), -1, np.int64), np.full((B, n), -1, np.int64)
    for i, (a, p, s, t, k) in enumerate(samples):
        m = len(a)
        ids[i, :m], pos[i, :m], seg[i, :m], tgt[i, :m], task[i, :m] = a, p, s, t, k
    return dict(ids=ids, pos=pos, seg=seg, tgt=tgt, task=task, pics=np.array(pics, np.uint8),
                labels=np.array(labels, np.int64), boxes=np.array(boxes, np.float32))


def resize_u8(im, h, w):
    """The processor's resize: antialiased bicubic on 8-bit samples."""
    import torch
    t = torch.from_numpy(im).permute(2, 0, 1)[None]
    return torch.nn.functional.interpolate(t, (h, w), mode="bicubic", antialias=True, align_corners=False)[0].permute(1, 2, 0).contiguous().numpy()
