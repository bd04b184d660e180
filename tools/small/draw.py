"""Draws the pictures of the small model: coloured shapes and printed text on light backgrounds.

A picture is described by a Scene (plain data), so that questions and answers can be derived from it,
and rendered to a uint8 array [H, W, 3]. Everything is anti-aliased. Shape and glyph masks are cached:
rendering one picture takes well under a millisecond.
"""
import glob
import math
import os
from dataclasses import dataclass, field, replace

import numpy as np
from PIL import Image, ImageDraw, ImageFont

SHAPES = ["circle", "square", "triangle", "diamond", "star", "cross"]
COLOURS = {
    "red": (220, 38, 38), "orange": (250, 140, 20), "yellow": (245, 220, 40), "green": (38, 160, 60),
    "blue": (40, 80, 220), "purple": (140, 50, 180), "pink": (250, 130, 190), "black": (24, 24, 24),
}
COLOUR_NAMES = list(COLOURS)
MAX_SHAPES, MAX_CHARS = 4, 5                                # in one picture: what the model is asked to know
TEXT_COLOURS = ["black", "red", "blue", "green", "purple"]
CHARS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789"
# Codes that mix letters and digits leave out O, I, 0 and 1, which some fonts do not tell apart.
CODE_CHARS = "ABCDEFGHJKLMNPQRSTUVWXYZ23456789"
WORDS = """A I AM AN AS AT BE BY DO GO HE IF IN IS IT ME MY NO OF ON OR OX SO TO UP US WE ACE ADD AGE AIR ALL AND ANT ARM
ART ASK BAG BAR BAT BED BEE BIG BOX BOY BUS BUY CAB CAN CAP CAR CAT COW CRY CUP CUT DAY DOG DOT DRY EAR EAT EGG END EYE
FAN FAR FIG FLY FOX FUN GAS HAT HEN HOT ICE INK JAM JAR JOB JOY KEY KID LEG LIP LOG MAP MAX MIX MUD NET NEW NUT OAK OIL
OLD ONE OPEN OUT OWL PAN PEN PIE PIG POT RED RUN SEA SKY SUN TAX TEA TEN TIN TOE TOP TOY TWO VAN WAX WEB WIN YES ZOO
AREA BABY BACK BALL BANK BELL BIRD BLUE BOAT BOOK CAKE CALL CITY COAT COOK DEER DESK DOOR DUCK EAST EXIT FARM FAST FISH
FIVE FLAG FOOD FOUR FROG GAME GATE GIFT GOLD HALF HAND HELP HILL HOME HOPE IRON JUMP KING KITE LAKE LAMP LEAF LION MILK
MOON NEST NINE NOON NOTE PARK PINK PLAY QUIZ RAIN RICE RING ROAD ROCK ROOM ROSE SALT SAND SHIP SHOP SHOE SNOW SOAP SONG
STAR STOP TAXI TIME TREE VASE WALL WEST WIND WOLF YEAR ZERO ZONE APPLE BEACH BREAD CHAIR CLOCK CLOUD DANCE EARTH EIGHT
FIELD FRUIT GLASS GRAPE GREEN HAPPY HORSE HOTEL HOUSE JUICE KNIFE LEMON LIGHT MANGO METRO MONEY MOUSE MUSIC NORTH OCEAN
PAPER PEACH PIANO PIZZA PLANT QUEEN RADIO RIVER ROBOT SALAD SEVEN SHEEP SMILE SOUTH SPOON STONE SUGAR TABLE TIGER TOWER
TRAIN TRUCK UNCLE WATCH WATER WHALE WHITE WORLD ZEBRA""".split()

FONT_DIRS = ["/usr/share/fonts/truetype", "/usr/share/fonts", os.path.expanduser("~/.fonts")]
FONT_FILES = [
    "DejaVuSans.ttf", "DejaVuSans-Bold.ttf", "DejaVuSerif.ttf", "DejaVuSerif-Bold.ttf", "DejaVuSansMono.ttf",
    "DejaVuSansMono-Bold.ttf", "LiberationSans-Regular.ttf", "LiberationSans-Bold.ttf", "LiberationSerif-Regular.ttf",
    "LiberationSerif-Bold.ttf", "LiberationMono-Bold.ttf", "FreeSans.ttf", "FreeSansBold.ttf", "FreeSerifBold.ttf",
]


@dataclass
class Shape:
    kind: str
    colour: str
    rgb: tuple
    x: int          # left edge of the s x s box that holds the mask
    y: int
    s: int

    @property
    def name(self):
        return f"{self.colour} {self.kind}"

    def box(self):
        x0, y0, x1, y1 = shape_mask(self.kind, self.s)[1]
        return self.x + x0, self.y + y0, self.x + x1, self.y + y1


@dataclass
class Text:
    string: str
    font: int
    size: int
    colour: str
    rgb: tuple
    x: int          # left and top edge of the ink
    y: int

    def box(self):
        w, h, _ = layout(self.string, self.font, self.size)
        return self.x, self.y, self.x + w, self.y + h


@dataclass
class Scene:
    h: int
    w: int
    bg: tuple
    shapes: list = field(default_factory=list)      # ordered left to right
    texts: list = field(default_factory=list)
    noise: int = 0                                  # 0 = none, else amplitude in grey levels
    noise_at: tuple = (0, 0)


# ------------------------------------------------------------------ cached masks
_shape_masks, _font_paths, _fonts, _glyphs, _layouts = {}, {}, {}, {}, {}


def shape_mask(kind, s):
    """(alpha [s, s] float32 0..1, tight box x0, y0, x1, y1 of alpha > 0.5)."""
    key = kind, s
    if key not in _shape_masks:
        k = 8
        n = s * k
        im = Image.new("L", (n, n), 0)
        d = ImageDraw.Draw(im)
        e = n - 1
        if kind == "circle":
            d.ellipse((0, 0, e, e), fill=255)
        elif kind == "square":
            m = n * 0.06
            d.rectangle((m, m, e - m, e - m), fill=255)
        elif kind == "triangle":
            d.polygon([(e / 2, 0), (e, e * 0.94), (0, e * 0.94)], fill=255)
        elif kind == "diamond":
            d.polygon([(e / 2, 0), (e * 0.88, e / 2), (e / 2, e), (e * 0.12, e / 2)], fill=255)
        elif kind == "star":
            p = []
            for i in range(10):
                r = e / 2 * (1.0 if i % 2 == 0 else 0.42)
                a = -math.pi / 2 + i * math.pi / 5
                p.append((e / 2 + r * math.cos(a), e / 2 + r * math.sin(a)))
            d.polygon(p, fill=255)
        elif kind == "cross":
            a, b = n / 3, n * 2 / 3
            d.rectangle((a, 0, b, e), fill=255)
            d.rectangle((0, a, e, b), fill=255)
        else:
            raise ValueError(kind)
        a = np.asarray(im, np.float32).reshape(s, k, s, k).mean((1, 3)) / 255
        on = a > 0.5
        ys, xs = np.where(on.any(1))[0], np.where(on.any(0))[0]
        _shape_masks[key] = a, (int(xs[0]), int(ys[0]), int(xs[-1]) + 1, int(ys[-1]) + 1)
    return _shape_masks[key]


def font(index, size):
    key = index, size
    if key not in _fonts:
        if not _font_paths:
            for d in FONT_DIRS:
                for path in glob.glob(os.path.join(d, "**", "*.ttf"), recursive=True):
                    _font_paths.setdefault(os.path.basename(path), path)
        name = FONT_FILES[index]
        if name not in _font_paths:
            raise FileNotFoundError(f"font {name}: install the DejaVu, Liberation and FreeFont families")
        _fonts[key] = ImageFont.truetype(_font_paths[name], size)
    return _fonts[key]


def glyph(index, size, ch):
    """(alpha [h, w] of the ink, x bearing, y offset from the ascender line, advance)."""
    key = index, size, ch
    if key not in _glyphs:
        f = font(index, size)
        x0, y0, x1, y1 = f.getbbox(ch)
        im = Image.new("L", (x1 - x0, y1 - y0), 0)
        ImageDraw.Draw(im).text((-x0, -y0), ch, fill=255, font=f)
        _glyphs[key] = np.asarray(im, np.float32) / 255, x0, y0, f.getlength(ch)
    return _glyphs[key]


def layout(string, index, size):
    """(ink width, ink height, [(glyph alpha, x, y, character)]) with the ink's top left at 0, 0."""
    key = string, index, size
    if key not in _layouts:
        if len(_layouts) > 20000:
            _layouts.clear()
        pen, parts = 0.0, []
        for ch in string:
            a, x0, y0, adv = glyph(index, size, ch)
            parts.append((a, int(round(pen)) + x0, y0, ch))
            pen += adv
        left, top = min(p[1] for p in parts), min(p[2] for p in parts)
        parts = [(a, x - left, y - top, ch) for a, x, y, ch in parts]
        w = max(x + a.shape[1] for a, x, y, ch in parts)
        h = max(y + a.shape[0] for a, x, y, ch in parts)
        _layouts[key] = w, h, parts
    return _layouts[key]


_noise = np.random.default_rng(77).integers(-64, 65, (512, 512, 3)).astype(np.int16)


def _paste(canvas, alpha, x, y, rgb):
    h, w = alpha.shape
    view = canvas[y:y + h, x:x + w]
    view += alpha[:, :, None] * (np.asarray(rgb, np.float32) - view)


def render(scene):
    c = np.empty((scene.h, scene.w, 3), np.float32)
    c[:] = scene.bg
    for o in scene.shapes:
        _paste(c, shape_mask(o.kind, o.s)[0], o.x, o.y, o.rgb)
    for t in scene.texts:
        for a, gx, gy, _ in layout(t.string, t.font, t.size)[2]:
            _paste(c, a, t.x + gx, t.y + gy, t.rgb)
    if scene.noise:
        ny, nx = scene.noise_at
        c += _noise[ny:ny + scene.h, nx:nx + scene.w] * (scene.noise / 64.0)
    return np.clip(c + 0.5, 0, 255).astype(np.uint8)


# ------------------------------------------------------------------ labels per 16 x 16 patch (training only)
AUX_NONE = 0


def patch_labels(scene):
    """Dense labels that help the encoder in training, all int64/float32 over the patch grid [h/16, w/16]:
    shape and colour of the object that covers the patch (0 = none), the shape whose centre lies in the patch,
    up to two characters whose centre lies in it (left to right); then what helps to list and count: the object's
    rank from the left, how many objects share its kind and its colour, and the places of the two characters in their
    text (-100 = above what is asked for). The second result is the covering object's box in 0..1."""
    gh, gw = scene.h // 16, scene.w // 16
    lab = np.zeros((10, gh, gw), np.int64)
    kinds, colours = [o.kind for o in scene.shapes], [o.colour for o in scene.shapes]
    box = np.zeros((4, gh, gw), np.float32)
    best = np.full((gh, gw), 40.0)
    for rank, o in enumerate(scene.shapes, 1):
        a = shape_mask(o.kind, o.s)[0]
        py0, px0 = o.y // 16, o.x // 16
        py1, px1 = (o.y + o.s - 1) // 16 + 1, (o.x + o.s - 1) // 16 + 1
        pad = np.zeros(((py1 - py0) * 16, (px1 - px0) * 16), np.float32)
        oy, ox = o.y - py0 * 16, o.x - px0 * 16
        pad[oy:oy + o.s, ox:ox + o.s] = a
        cov = pad.reshape(py1 - py0, 16, px1 - px0, 16).sum((1, 3))
        win = cov > best[py0:py1, px0:px1]
        best[py0:py1, px0:px1][win] = cov[win]
        lab[0, py0:py1, px0:px1][win] = SHAPES.index(o.kind) + 1
        lab[1, py0:py1, px0:px1][win] = COLOUR_NAMES.index(o.colour) + 1
        for i, v in ((5, rank), (6, kinds.count(o.kind)), (7, colours.count(o.colour))):
            lab[i, py0:py1, px0:px1][win] = v if v <= 6 else -100
        x0, y0, x1, y1 = o.box()
        for i, v in enumerate((x0 / scene.w, y0 / scene.h, x1 / scene.w, y1 / scene.h)):
            box[i, py0:py1, px0:px1][win] = v
        lab[2, (y0 + y1) // 2 // 16, (x0 + x1) // 2 // 16] = SHAPES.index(o.kind) + 1
    for t in scene.texts:
        for place, (a, gx, gy, ch) in enumerate(layout(t.string, t.font, t.size)[2], 1):
            cy, cx = (t.y + gy + a.shape[0] // 2) // 16, (t.x + gx + a.shape[1] // 2) // 16
            k = 3 if lab[3, cy, cx] == 0 else 4
            lab[k, cy, cx] = CHARS.index(ch) + 1
            lab[k + 5, cy, cx] = place
    return lab, box


# ------------------------------------------------------------------ random scenes
def jitter(rng, rgb, amount=14):
    return tuple(int(min(255, max(0, c + rng.integers(-amount, amount + 1)))) for c in rgb)


def random_background(rng):
    if rng.random() < 0.3:
        v = int(rng.integers(236, 256))
        return v, v, v
    return tuple(int(v) for v in rng.integers(218, 256, 3))


def random_string(rng, max_len, min_len=1):
    r = rng.random()
    n = int(rng.integers(min_len, max_len + 1))
    if n == 1:
        return CODE_CHARS[rng.integers(len(CODE_CHARS))]
    if r < 0.3:
        while True:
            w = WORDS[rng.integers(len(WORDS))]
            if min_len <= len(w) <= max_len:
                return w
    if r < 0.6:
        return "".join(str(d) for d in rng.integers(0, 10, n))
    return "".join(CODE_CHARS[k] for k in rng.integers(0, len(CODE_CHARS), n))


def boxes_clear(b, others, gap):
    return all(b[2] + gap <= o[0] or o[2] + gap <= b[0] or b[3] + gap <= o[1] or o[3] + gap <= b[1] for o in others)


def place_text(rng, h, w, taken, max_len, sizes, colour=None, string=None):
    """A Text that fits and touches nothing, or None."""
    for _ in range(12):
        s = string or random_string(rng, max_len)
        f, size = int(rng.integers(len(FONT_FILES))), int(sizes[rng.integers(len(sizes))])
        tw, th, _ = layout(s, f, size)
        if tw > w - 6 or th > h - 6:
            continue
        x, y = int(rng.integers(3, w - tw - 2)), int(rng.integers(3, h - th - 2))
        if boxes_clear((x, y, x + tw, y + th), taken, 4):
            c = colour or (TEXT_COLOURS[rng.integers(len(TEXT_COLOURS))] if rng.random() < 0.6 else "black")
            return Text(s, f, size, c, jitter(rng, COLOURS[c]), x, y)
    return None


def place_shape(rng, h, w, taken, centres, lo, hi, kinds=SHAPES, colours=COLOUR_NAMES):
    for _ in range(20):
        s = int(rng.integers(lo, hi + 1))
        if s > min(h, w) - 4:
            continue
        x, y = int(rng.integers(2, w - s - 1)), int(rng.integers(2, h - s - 1))
        if boxes_clear((x, y, x + s, y + s), taken, 3) and all(abs(x + s / 2 - c) >= 0.05 * w for c in centres):
            c = colours[rng.integers(len(colours))]
            return Shape(kinds[rng.integers(len(kinds))], c, jitter(rng, COLOURS[c]), x, y, s)
    return None


def random_scene(rng, h, w, n_shapes, text_len, scale=1.0):
    """n_shapes shapes and, if text_len > 0, one text of up to text_len characters."""
    sc = Scene(h, w, random_background(rng))
    if rng.random() < 0.25:
        sc.noise = int(rng.integers(1, 9))
        sc.noise_at = (int(rng.integers(0, 512 - h + 1)), int(rng.integers(0, 512 - w + 1)))
    taken, centres = [], []
    m = min(h, w)
    if text_len:
        top = 0.42 * m if n_shapes == 0 else 0.3 * m
        sizes = [z for z in (16, 18, 20, 22, 24, 28, 32, 36, 42, 48, 56, 64) if z <= max(18, top) and z >= 16 * min(1.7, m / 192)] or [28]
        t = place_text(rng, h, w, taken, text_len, sizes)
        if t:
            sc.texts.append(t)
            taken.append(t.box())
    # few kinds and colours in some pictures, so that counts above one are common
    kinds, colours = SHAPES, COLOUR_NAMES
    if n_shapes >= 2 and rng.random() < 0.6:
        kinds = [SHAPES[i] for i in rng.choice(len(SHAPES), int(rng.integers(1, 3)), replace=False)]
    if n_shapes >= 2 and rng.random() < 0.4:
        colours = [COLOUR_NAMES[i] for i in rng.choice(len(COLOUR_NAMES), int(rng.integers(1, 4)), replace=False)]
    lo = 18 if m <= 160 else m // 8
    hi = int(min(0.5 * m, m / (0.9 + 0.55 * math.sqrt(max(1, n_shapes)))))
    lo = min(lo, hi)
    for _ in range(n_shapes):
        o = place_shape(rng, h, w, taken, centres, lo, max(lo, hi), kinds, colours)
        if o:
            sc.shapes.append(o)
            taken.append((o.x, o.y, o.x + o.s, o.y + o.s))
            centres.append(o.x + o.s / 2)
    sc.shapes.sort(key=lambda o: o.x + o.s / 2)
    return sc


def crowded_scene(rng, h, w, page=False):
    """A picture full of shapes, of text, or of both: many patch labels at once for the encoder."""
    sc = Scene(h, w, random_background(rng))
    if rng.random() < 0.2:
        sc.noise, sc.noise_at = int(rng.integers(1, 9)), (int(rng.integers(0, 512 - h + 1)), int(rng.integers(0, 512 - w + 1)))
    r, taken = 1.0 if page else rng.random(), []                # page: text only
    if r < 0.45:
        for _ in range(max(2, int(h * w / 1600)) if r < 0.3 else 3):
            o = place_shape(rng, h, w, taken, (), 18, min(h, w) // 2 if rng.random() < 0.3 else 36)
            if o:
                sc.shapes.append(o)
                taken.append((o.x, o.y, o.x + o.s, o.y + o.s))
    if r >= 0.3:
        y = int(rng.integers(2, 12))
        while y < h - 14:
            size = int(rng.choice((16, 18, 20, 22, 24, 28, 32, 36, 42, 48)))
            x, bottom = int(rng.integers(2, 14)), y
            while x < w - 10:
                s, f = random_string(rng, 5), int(rng.integers(len(FONT_FILES)))
                tw, th, _ = layout(s, f, size)
                if x + tw > w - 2:
                    s = s[:1]
                    tw, th, _ = layout(s, f, size)
                if x + tw > w - 2 or y + th > h - 2:
                    break
                if boxes_clear((x, y, x + tw, y + th), taken, 2):
                    c = TEXT_COLOURS[rng.integers(len(TEXT_COLOURS))] if rng.random() < 0.5 else "black"
                    sc.texts.append(Text(s, f, size, c, jitter(rng, COLOURS[c]), x, y))
                bottom = max(bottom, y + th)
                x += tw + int(rng.integers(5, 20))
            y = max(bottom, y + 8) + int(rng.integers(3, 14))
    sc.shapes.sort(key=lambda o: o.x + o.s / 2)
    return sc


def changed(rng, sc):
    """A copy of the scene with one difference: (scene, sentence), or (same, 'No difference.')."""
    sc2 = replace(sc, shapes=list(sc.shapes), texts=list(sc.texts))
    if sc.noise:
        sc2.noise_at = (int(rng.integers(0, 512 - sc.h + 1)), int(rng.integers(0, 512 - sc.w + 1)))
    options = ["none"]
    names = [o.name for o in sc.shapes]
    unique = [i for i, n in enumerate(names) if names.count(n) == 1]
    if unique:
        options += ["colour"] * 4 + ["missing"] * 3 + ["new"] * 3 + ["shape"] * 3
    if sc.texts:
        options += ["text"] * 4
    kind = options[rng.integers(len(options))]
    if kind in ("colour", "missing", "new", "shape"):
        i = unique[rng.integers(len(unique))]
        o = sc.shapes[i]
        if kind == "missing":
            del sc2.shapes[i]
            return sc, sc2, f"The {o.name} is missing in the second picture."
        if kind == "new":                                       # the first picture lacks it
            first = replace(sc, shapes=[p for p in sc.shapes if p is not o])
            return first, sc2, f"The {o.name} is new in the second picture."
        if kind == "colour":
            c = COLOUR_NAMES[rng.integers(len(COLOUR_NAMES))]
            if c != o.colour and f"{c} {o.kind}" not in names:
                sc2.shapes[i] = replace(o, colour=c, rgb=jitter(rng, COLOURS[c]))
                return sc, sc2, f"The {o.name} is {c} in the second picture."
        else:
            k = SHAPES[rng.integers(len(SHAPES))]
            if k != o.kind and f"{o.colour} {k}" not in names:
                sc2.shapes[i] = replace(o, kind=k)
                return sc, sc2, f"The {o.name} is a {k} in the second picture."
    if kind == "text":
        t = sc.texts[0]
        for _ in range(20):
            s = random_string(rng, len(t.string), len(t.string))
            w, h, _ = layout(s, t.font, t.size)
            box = (t.x, t.y, t.x + w, t.y + h)
            if s != t.string and box[2] < sc.w - 2 and box[3] < sc.h - 2 and boxes_clear(box, [o.box() for o in sc.shapes], 2):
                sc2.texts[0] = replace(t, string=s)
                return sc, sc2, f'The text is "{s}" in the second picture.'
    return sc, sc2, "No difference."
