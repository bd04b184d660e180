"""Writes the strings of the tokenizer parity test and what the reference library makes of them.

    python make_strings.py TOKENIZER_FOLDER OUT.jsonl [COUNT]

Deterministic: the same library version and vocabulary give the same file. Strings are byte strings; bytes that
are not UTF-8 reach the reference as bytes.decode("utf-8", "replace"), which is what qvl promises to do itself.
One JSON object a line:

    {"kind", "hex": input bytes, "ids": [...], "decoded_hex", "skip_hex": decoded without special tokens}

and for kind "ids" (arbitrary token lists, which need not be anything's encoding) no "hex".
"""
import json
import random
import sys
import unicodedata

import tokenizers

# First code points of the blocks of every script, symbols included (Unicode 16), with their lengths.
BLOCKS = [
    (0x0000, 128), (0x0080, 128), (0x0100, 128), (0x0180, 208), (0x0250, 96), (0x02B0, 80), (0x0300, 112), (0x0370, 144),
    (0x0400, 256), (0x0500, 48), (0x0530, 96), (0x0590, 112), (0x0600, 256), (0x0700, 80), (0x0750, 48), (0x0780, 64),
    (0x07C0, 64), (0x0800, 64), (0x0840, 32), (0x0860, 16), (0x0870, 48), (0x08A0, 96), (0x0900, 128), (0x0980, 128),
    (0x0A00, 128), (0x0A80, 128), (0x0B00, 128), (0x0B80, 128), (0x0C00, 128), (0x0C80, 128), (0x0D00, 128), (0x0D80, 128),
    (0x0E00, 128), (0x0E80, 128), (0x0F00, 256), (0x1000, 160), (0x10A0, 96), (0x1100, 256), (0x1200, 384), (0x1380, 32),
    (0x13A0, 96), (0x1400, 640), (0x1680, 32), (0x16A0, 96), (0x1700, 128), (0x1780, 128), (0x1800, 176), (0x18B0, 80),
    (0x1900, 80), (0x1950, 48), (0x1980, 96), (0x19E0, 32), (0x1A00, 32), (0x1A20, 144), (0x1AB0, 80), (0x1B00, 128),
    (0x1B80, 64), (0x1BC0, 64), (0x1C00, 80), (0x1C50, 48), (0x1C80, 16), (0x1C90, 48), (0x1CC0, 64), (0x1D00, 192),
    (0x1DC0, 64), (0x1E00, 256), (0x1F00, 256), (0x2000, 112), (0x2070, 48), (0x20A0, 48), (0x20D0, 48), (0x2100, 80),
    (0x2150, 64), (0x2190, 112), (0x2200, 256), (0x2300, 256), (0x2400, 96), (0x2460, 160), (0x2500, 256), (0x2600, 256),
    (0x2700, 192), (0x27C0, 64), (0x2800, 256), (0x2900, 256), (0x2A00, 256), (0x2B00, 256), (0x2C00, 96), (0x2C60, 32),
    (0x2C80, 128), (0x2D00, 48), (0x2D30, 80), (0x2D80, 96), (0x2DE0, 32), (0x2E00, 128), (0x2E80, 128), (0x2F00, 240),
    (0x2FF0, 16), (0x3000, 64), (0x3040, 192), (0x3100, 48), (0x3130, 96), (0x3190, 112), (0x3200, 512), (0x3400, 512),
    (0x4DC0, 64), (0x4E00, 4096), (0x9000, 4096), (0xA000, 1168), (0xA490, 64), (0xA4D0, 48), (0xA500, 320), (0xA640, 96),
    (0xA6A0, 96), (0xA700, 256), (0xA800, 48), (0xA830, 16), (0xA840, 64), (0xA880, 96), (0xA8E0, 32), (0xA900, 96),
    (0xA960, 32), (0xA980, 128), (0xAA00, 96), (0xAA60, 128), (0xAAE0, 80), (0xAB30, 208), (0xAC00, 4096), (0xC000, 6064),
    (0xD7B0, 80), (0xE000, 64), (0xF900, 512), (0xFB00, 80), (0xFB50, 688), (0xFE00, 64), (0xFE50, 176), (0xFF00, 256),
    (0x10000, 320), (0x10140, 112), (0x101D0, 48), (0x10280, 128), (0x10300, 176), (0x10400, 176), (0x104B0, 176),
    (0x10570, 144), (0x10600, 480), (0x10800, 192), (0x108E0, 96), (0x10980, 256), (0x10A80, 288), (0x10C00, 80),
    (0x10C80, 192), (0x10E60, 32), (0x10E80, 256), (0x10FB0, 80), (0x11000, 256), (0x11100, 224), (0x11200, 256),
    (0x11300, 256), (0x11400, 224), (0x11580, 128), (0x11600, 384), (0x11800, 80), (0x118A0, 256), (0x119A0, 336),
    (0x11B00, 112), (0x11C00, 192), (0x11D00, 176), (0x11EE0, 128), (0x11FB0, 80), (0x12000, 1360), (0x12F90, 112),
    (0x13000, 1120), (0x13460, 512), (0x14400, 640), (0x16100, 64), (0x16800, 672), (0x16AD0, 192), (0x16D40, 64),
    (0x16E40, 96), (0x16F00, 160), (0x16FE0, 32), (0x17000, 1024), (0x18800, 768), (0x18CFF, 10), (0x1AFF0, 16),
    (0x1B000, 512), (0x1B170, 400), (0x1BC00, 176), (0x1CC00, 256), (0x1CF00, 208), (0x1D000, 256), (0x1D100, 256),
    (0x1D200, 80), (0x1D2C0, 64), (0x1D300, 128), (0x1D400, 1024), (0x1D800, 688), (0x1DF00, 256), (0x1E000, 48),
    (0x1E030, 96), (0x1E100, 80), (0x1E290, 112), (0x1E4D0, 48), (0x1E5D0, 48), (0x1E7E0, 32), (0x1E800, 224),
    (0x1E900, 96), (0x1EC70, 80), (0x1ED00, 80), (0x1EE00, 256), (0x1F000, 256), (0x1F100, 512), (0x1F300, 768),
    (0x1F600, 80), (0x1F650, 176), (0x1F700, 256), (0x1F800, 256), (0x1F900, 512), (0x1FB00, 256), (0x20000, 2048),
    (0x2A6D0, 64), (0x2B730, 64), (0x2EBF0, 256), (0x2F800, 544), (0x31350, 256), (0x323A0, 64), (0xE0000, 128),
    (0xE0100, 240), (0xF0000, 32), (0x10FFC0, 64),
]
WHITE = ["\t", "\n", "\v", "\f", "\r", "\r\n", " ", "  ", "    ", "\x1c", "\x1f", "\x85", "\xa0", "\u1680", "\u180e", "\u2000",
         "\u2003", "\u200a", "\u200b", "\u2028", "\u2029", "\u202f", "\u205f", "\u2060", "\u3000", "\ufeff"]
WORDS = ("the of and a to in is it you that he was for on are with as his they at be this from have or by one had not "
         "but what all were when we there can an your which their said if do will each about how up out them then she "
         "many some so these would other into has more her two like him see time could no make than first been its who "
         "now people my made over did down only way find use may water long little very after words called just where "
         "most know Internationalization antidisestablishmentarianism HTTPServer camelCaseName snake_case_name").split()
TAILS = ["'s", "'S", "'t", "'T", "'re", "'RE", "'Re", "'ve", "'m", "'ll", "'lL", "'d", "'\u017f", "'x", "''s", "\u2019s", "'", "'r", "'l",
         "'v", "'\u017ft", "'sx"]
MARKS = list(range(0x300, 0x370)) + list(range(0x1AB0, 0x1AD0)) + list(range(0x1DC0, 0x1E00)) + list(range(0x20D0, 0x20F1)) + \
    [0x5B0, 0x5BC, 0x64B, 0x651, 0x670, 0x93C, 0x94D, 0x9BC, 0x9D7, 0xE38, 0xEB8, 0xF71, 0xF74, 0x3099, 0x309A, 0x302A,
     0x1D165, 0x1D16D, 0x16FF0, 0x11134, 0x1133C, 0x110BA, 0x11930, 0x1E8D0, 0x7FD, 0x8D3]
EMOJI = ["\U0001F600", "\U0001F44D\U0001F3FD", "\U0001F468\u200d\U0001F469\u200d\U0001F467\u200d\U0001F466", "\u2764\ufe0f",
         "\U0001F1E9\U0001F1EA", "1\ufe0f\u20e3", "\U0001F3F4\U000E0067\U000E0062\U000E0065\U000E006E\U000E0067\U000E007F", "\u00a9\ufe0f",
         "\U0001FAE8", "\U0001F9D1\u200d\U0001F680", "\U0001F573\ufe0f", "\u2603", "\U0001F1FF", "\u200d", "\ufe0e"]
CODE = ["for (int i = 0; i < n; ++i) {\n\tsum += a[i] * b[i];\n}\n", "def f(x: list[int]) -> str:\n    return f\"{x!r:>10}\"\n\n\n",
        "#include <vector>\n\n// \u4e2d\u6587 comment\n", "SELECT * FROM t WHERE a='b' AND c<>\"d\";--x\r\n", "<div class=\"a b\">&nbsp;</div>\n",
        "let x = 0xDEAD_BEEFu64;\n", "{\"key\": [1, 2.5e-3, null, true], \"\u00fc\": \"\\u00e9\"}", "https://example.org/a/b?c=d&e=%20#f",
        "x = y == z ? a->b::c : !d && e || ~f;\n", "```python\nprint('hi')\n```\n", "$HOME/.config/*.toml | grep -v '^#' > /dev/null 2>&1\n",
        "\\begin{align}\n  \\frac{a}{b} &= \\sqrt{x^2+1} \\\\\n\\end{align}", "if(a){b();}else{c();}\n\n\n\n", "\t\t\treturn 0;\r\n\r\n"]
NORMAL = ["caf\u00e9", "cafe\u0301", "\u212b", "\u2126", "\u212a", "\ufb01", "\uf900", "\U0002F800", "\u1e9b\u0323", "\ud55c\uae00", "\u1112\u1161\u11ab", "\u1100\u1161",
          "\uac00\u11a8", "\u1112\u1161", "\u11ab", "q\u0307\u0323", "\u0344", "\u0958", "\u2adc", "\u1d15e", "\u0374", "\u037e", "\u0387", "\u1fef", "\u2000",
          "\u2001", "\u232a", "\u0b94", "\u0b92\u0bd7", "\u0dd9\u0dcf\u0dca", "\u1b06", "\u1b05\u1b35", "\U0001109A", "\U00011099\U000110BA", "\U00011938",
          "\U00011935\U00011930", "\u03b1\u0345\u0313\u0301", "\u0061\u0315\u0300\u05ae\u0062", "\u0f77", "\u0f78", "\u0fb2\u0f71\u0f80"]


def random_char(rng):
    while True:
        c = rng.randrange(0x110000) if rng.random() < 0.1 else (lambda b: b[0] + rng.randrange(b[1]))(rng.choice(BLOCKS))
        if not 0xD800 <= c < 0xE000 and c < 0x110000:
            return chr(c)


def broken(rng, data):
    """Cuts, drops, flips and inserts bytes."""
    data = bytearray(data)
    for _ in range(rng.randint(1, 4)):
        at = rng.randrange(len(data) + 1)
        op = rng.randrange(6)
        if op == 0 and data:
            del data[at % len(data)]
        elif op == 1 and data:
            data[at % len(data)] = rng.randrange(256)
        elif op == 2:
            data[at:at] = bytes(rng.randrange(128, 256) for _ in range(rng.randint(1, 5)))
        elif op == 3:
            data[at:at] = rng.choice([b"\xed\xa0\x80", b"\xed\xbf\xbf", b"\xf4\x90\x80\x80", b"\xc0\x80", b"\xe0\x80\x80", b"\xf0\x80\x80\x80",
                                      b"\xf8\x88\x80\x80\x80", b"\xe2\x82", b"\xf0\x9f\x98", b"\xf0\x9f", b"\xfe\xff", b"\xc3"])
        elif op == 4 and data:
            data = data[:at]
        else:
            data[at:at] = data[:rng.randint(0, 3)]
    return bytes(data)


def strings(count, added, tokens, rng):
    # Fixed part: every block whole, every white space around letters and newlines, every contraction, code.
    for first, length in BLOCKS:
        chars = [chr(c) for c in range(first, min(first + length, 0x110000)) if not 0xD800 <= c < 0xE000]
        yield "block", "".join(chars[:1200])
        yield "block", " ".join(chars[:400])
        yield "block", "a" + "1".join(chars[:400])
        yield "block", "\u0301".join(chars[:400])
    for w in WHITE:
        for v in WHITE:
            for form in ("a{}{}b", "{}{}", "1{}{}.", "{}{}'s", "a{}{}", "{}{}b"):
                yield "white", form.format(w, v)
    for t in TAILS:
        for form in ("don{}", "{}", " {} x", "A{}{}", "\u4e2d{}", "1{}", "\n{}\n", "${}"):
            yield "contraction", form.format(t, t)
    for c in CODE:
        yield "code", c
    for n in NORMAL:
        for form in ("{}", "a{}b", " {}", "{}\u0323\u0301", "\u0301{}", "<|im_end|>{}", "x{}\u1161\u11a8"):
            yield "nfc", form.format(n)
    for a in added:
        for form in ("{}", "x{}y", " {} ", "{}{}", "<{}>", "{}\u0301", "\u00e9{}\n\n", "<|{}|>", "\n{}\n"):
            yield "added", form.format(a, a)
        yield "added", a[:-1]
        yield "added", a[1:]
        yield "added", a.upper()
    for n in (63, 64, 65, 100, 1000, 4000):
        for unit in ("a", "ab", "=", " ", "\n", " \n", "\u4e2d\u6587", "\u0e01\u0e33", "7", "aA", "\u00e9", "e\u0301", "\U0001F600", "-=", "\ud55c"):
            yield "long", unit * n
            yield "long", unit * n + "z"
        yield "long", "".join(rng.choice("abcdefghijklmnopqrstuvwxyz") for _ in range(n))
        yield "long", "".join(chr(rng.randrange(0x4E00, 0x9FFF)) for _ in range(n))
        yield "long", "a" + "".join(chr(rng.choice(MARKS)) for _ in range(n))
    pool = WHITE + WORDS + TAILS + EMOJI + CODE + NORMAL + added + [chr(c) for c in range(33, 127)] * 2
    while True:
        kind = rng.randrange(9)
        if kind == 0:                                                 # a few scripts, with blanks and digits between
            yield "scripts", "".join(random_char(rng) if rng.random() < 0.8 else rng.choice(" \n1.'") for _ in range(rng.randint(1, 40)))
        elif kind == 1:                                               # one script
            first, length = rng.choice(BLOCKS)
            chars = [chr(first + rng.randrange(length)) if rng.random() < 0.85 else rng.choice(WHITE + ["1", "-", "a"]) for _ in range(rng.randint(2, 60))]
            yield "script", "".join(c for c in chars if not 0xD800 <= ord(c[0]) < 0xE000)
        elif kind == 2:
            yield "mixed", "".join(rng.choice(pool) for _ in range(rng.randint(1, 25)))
        elif kind == 3:
            yield "prose", " ".join(rng.choice(WORDS) + (rng.choice(TAILS) if rng.random() < 0.1 else "") + rng.choice(["", "", ",", ".", "!\n"]) for _ in range(rng.randint(3, 50)))
        elif kind == 4:
            yield "emoji", "".join(rng.choice(EMOJI + [" ", "a", "\u4e2d"]) for _ in range(rng.randint(1, 15)))
        elif kind == 5:                                               # marks in any order on any base
            yield "marks", "".join((random_char(rng) if rng.random() < 0.5 else rng.choice("aeouAE \u03b1\u0438")) +
                                   "".join(chr(rng.choice(MARKS)) for _ in range(rng.randint(0, 5))) for _ in range(rng.randint(1, 12)))
        elif kind == 6:
            base = "".join(rng.choice([random_char(rng), rng.choice(pool)]) for _ in range(rng.randint(1, 15)))
            yield "broken", broken(rng, base.encode())
        elif kind == 7:
            yield "code", "".join(rng.choice(CODE) if rng.random() < 0.5 else rng.choice(WORDS + WHITE + list("(){}[];:=<>+-*/\"'\\|&#@!?.,0123456789")) for _ in range(rng.randint(1, 15)))
        else:
            yield "tokens", "".join(rng.choice(tokens) for _ in range(rng.randint(1, 30)))


def main():
    folder, out_path = sys.argv[1], sys.argv[2]
    count = int(sys.argv[3]) if len(sys.argv) > 3 else 20000
    tok = tokenizers.Tokenizer.from_file(f"{folder}/tokenizer.json")
    rng = random.Random(20250930)
    spec = json.load(open(f"{folder}/tokenizer.json", encoding="utf-8"))
    added = [a["content"] for a in spec["added_tokens"]]
    size = tok.get_vocab_size()
    words = [tok.decode([i]) for i in range(0, len(spec["model"]["vocab"]), 7)]
    words = [w for w in words if "\ufffd" not in w]
    rows, source = [], strings(count, added, words, rng)
    while len(rows) < count:
        kind, s = next(source)
        rows.append((kind, s if isinstance(s, bytes) else s.encode()))
    with open(out_path, "w") as f:
        head = {"tokenizers": tokenizers.__version__, "strings": len(rows), "unicodedata": unicodedata.unidata_version}
        f.write(json.dumps(head) + "\n")
        for kind, data in rows:
            ids = tok.encode(data.decode("utf-8", "replace"), add_special_tokens=False).ids
            f.write(json.dumps({"kind": kind, "hex": data.hex(), "ids": ids,
                                "decoded_hex": tok.decode(ids, skip_special_tokens=False).encode().hex(),
                                "skip_hex": tok.decode(ids, skip_special_tokens=True).encode().hex()}) + "\n")
        for _ in range(count // 10):
            ids = [rng.randrange(size + 20) if rng.random() < 0.95 else size - 1 - rng.randrange(26) for _ in range(rng.randint(1, 20))]
            f.write(json.dumps({"kind": "ids", "ids": ids,
                                "decoded_hex": tok.decode(ids, skip_special_tokens=False).encode().hex(),
                                "skip_hex": tok.decode(ids, skip_special_tokens=True).encode().hex()}) + "\n")


if __name__ == "__main__":
    main()
