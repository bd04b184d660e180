"""Do the exported vision graphs compute what the model computes, for every size, count and variant?

    python tests/onnx/check_vision.py BUILD/tests/onnx/write_graphs [--quick]

Needs onnxruntime, onnx, numpy, safetensors (requirements.txt). Every graph passes onnx.checker (full) and strict shape
inference first. Then:
  * goldens: all files of tests/fixtures/golden/vision through vision.onnx (one call), vision_host.onnx (one call for each
    image or video) and a --static graph of each grid; fused and --plain, opsets 17 to 23, layout genai. Limit 3e-5.
  * positions: taps and weights of the graph equal the reference's to the bit, also at 34x60 patches; cos and sin to 1e-6.
  * sizes 64x64 to 2048x1536, wide and tall, on the golden model, the small model and one with head_dim 72, a table of
    side 10 and one DeepStack level, against NumPy in float64. Limit 3e-5.
  * counts: 0, 1 and 3 images, images with videos between them: equal to separate calls. A grid_thw that does not fit
    pixel_values is an error.
  * formats: bf16 and f16 equal the reference with the same rounded weights, int8 and int4 blocks the float32 graph of the
    same weights, to 3e-5; int8 rows and accuracy level 4, which round activations too, stay within 5 % of the features'
    size.
--quick leaves out the sizes above 1024 patches.
"""
import argparse
import json
import math
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
from safetensors.numpy import load_file, save_file

ROOT = Path(__file__).resolve().parents[2]
GOLDEN = ROOT / "tests/fixtures/golden"
LIMIT = 3e-5
F = np.float32
failures = []


def check(ok, what):
    print(("ok    " if ok else "FAIL  ") + what, flush=True)
    if not ok:
        failures.append(what)


# ---------------------------------------------------------------- the model in NumPy (docs/qwen3-vl-spec.md, section 5)
def patch_coords(h, w):
    k = np.arange(h * w)
    block, inside = k // 4, k % 4
    return 2 * (block // (w // 2)) + inside // 2, 2 * (block % (w // 2)) + inside % 2


def linspace(n, top):
    i = np.arange(n).astype(F)
    step = F(top) / F(n - 1)
    return np.where(np.arange(n) < n // 2, step * i, F(top) - step * (F(n - 1) - i)).astype(F)


def taps(h, w, side):
    row, col = patch_coords(h, w)
    y, x = linspace(h, side - 1), linspace(w, side - 1)
    y0, x0 = y.astype(np.int64), x.astype(np.int64)
    y1, x1 = np.minimum(y0 + 1, side - 1), np.minimum(x0 + 1, side - 1)
    dy, dx = (y - y0.astype(F))[row], (x - x0.astype(F))[col]
    y0, y1, x0, x1 = y0[row], y1[row], x0[col], x1[col]
    index = np.stack([y0 * side + x0, y0 * side + x1, y1 * side + x0, y1 * side + x1])
    return index, np.stack([(1 - dy) * (1 - dx), (1 - dy) * dx, dy * (1 - dx), dy * dx]).astype(F)


def cos_sin(h, w, head_dim):
    d = head_dim // 2
    exponent = (np.arange(0, d, 2, dtype=F) / F(d)).astype(np.float64)
    inv = (F(1) / np.power(10000.0, exponent).astype(F)).astype(F)
    row, col = patch_coords(h, w)
    angle = np.concatenate([row[:, None].astype(F) * inv, col[:, None].astype(F) * inv], 1)
    return np.cos(angle).astype(F), np.sin(angle).astype(F)


def layer_norm(x, weight, bias):
    centred = x - x.mean(-1, keepdims=True)
    return centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-6) * weight + bias


def gelu_tanh(x):
    return 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def gelu_erf(x):
    return 0.5 * x * (1 + np.frompyfunc(math.erf, 1, 1)(x / math.sqrt(2)).astype(np.float64))


class Model:
    """A checkpoint folder, its graphs, and its vision encoder in NumPy."""

    def __init__(self, folder):
        self.folder = folder
        c = json.loads((folder / "config.json").read_text())["vision_config"]
        self.config = c
        self.dim, self.heads, self.out = c["hidden_size"], c["num_heads"], c["out_hidden_size"]
        self.head_dim = self.dim // self.heads
        self.levels = len(c["deepstack_visual_indexes"])
        self.side = math.isqrt(c["num_position_embeddings"])
        self.weights = None

    def load(self):
        if self.weights is None:
            self.weights = {}
            for file in sorted(self.folder.glob("*.safetensors")):
                for name, array in load_vision(file).items():
                    self.weights[name] = array.astype(np.float64)
        return self.weights

    def rounded(self, fmt):
        """The same model with weights of 16 bits."""
        other = Model(self.folder)
        other.weights = {name: round_to(fmt, w) for name, w in self.load().items()}
        return other

    def linear(self, x, name):
        s = self.load()
        return x @ s[name + ".weight"].reshape(s[name + ".weight"].shape[0], -1).T + s[name + ".bias"]

    def merger(self, x, name, norm_after):
        s = self.load()
        norm = lambda v: layer_norm(v, s[name + ".norm.weight"], s[name + ".norm.bias"])
        y = norm(x.reshape(-1, 4 * self.dim)) if norm_after else norm(x).reshape(-1, 4 * self.dim)
        return self.linear(gelu_erf(self.linear(y, name + ".linear_fc1")), name + ".linear_fc2")

    def frame(self, pixels, h, w):
        """Features of one frame: [main, deepstack...], float64."""
        s, c = self.load(), self.config
        index, weight = taps(h, w, self.side)
        cos, sin = (t.astype(np.float64)[:, None] for t in cos_sin(h, w, self.head_dim))
        table = s["pos_embed.weight"]
        x = self.linear(pixels.astype(np.float64), "patch_embed.proj")
        x = x + sum(table[index[k]] * weight[k].astype(np.float64)[:, None] for k in range(4))
        half, deepstack = self.head_dim // 2, [None] * self.levels
        rotate = lambda v: np.concatenate(
            [v[..., :half] * cos - v[..., half:] * sin, v[..., half:] * cos + v[..., :half] * sin], -1)
        for layer in range(c["depth"]):
            p = f"blocks.{layer}."
            y = layer_norm(x, s[p + "norm1.weight"], s[p + "norm1.bias"])
            q, k, v = np.moveaxis(self.linear(y, p + "attn.qkv").reshape(-1, 3, self.heads, self.head_dim), 1, 0)
            q, k = rotate(q) * self.head_dim**-0.5, rotate(k)
            mixed = np.empty_like(q)
            for head in range(self.heads):
                for a in range(0, len(q), 1024):
                    scores = q[a:a + 1024, head] @ k[:, head].T
                    e = np.exp(scores - scores.max(-1, keepdims=True))
                    mixed[a:a + 1024, head] = e @ v[:, head] / e.sum(-1, keepdims=True)
            x = x + self.linear(mixed.reshape(-1, self.dim), p + "attn.proj")
            y = layer_norm(x, s[p + "norm2.weight"], s[p + "norm2.bias"])
            x = x + self.linear(gelu_tanh(self.linear(y, p + "mlp.linear_fc1")), p + "mlp.linear_fc2")
            for j, at in enumerate(c["deepstack_visual_indexes"]):
                if at == layer:
                    deepstack[j] = self.merger(x, f"deepstack_merger_list.{j}", True)
        return [self.merger(x, "merger", False)] + deepstack

    def features(self, pixels, grids):
        frames, begin = [], 0
        for t, h, w in grids:
            for _ in range(t):
                frames.append(self.frame(pixels[begin:begin + h * w], h, w))
                begin += h * w
        return [np.concatenate(parts) for parts in zip(*frames)]


def round_to(fmt, array):
    """To the nearest bf16 or f16, ties to even."""
    if fmt == "f16":
        return array.astype(np.float16).astype(np.float64)
    bits = array.astype(F).view(np.uint32)
    bits = (bits + 0x7FFF + ((bits >> 16) & 1)) & np.uint32(0xFFFF0000)
    return bits.view(F).astype(np.float64)


def load_vision(file):
    """The vision tensors of a safetensors file, bf16 and f16 as float32. NumPy knows no bf16, so the bytes are read here."""
    data = file.read_bytes()
    size = int.from_bytes(data[:8], "little")
    prefix, result = "model.visual.", {}
    for name, entry in json.loads(data[8:8 + size]).items():
        if not name.startswith(prefix):
            continue
        begin, end = entry["data_offsets"]
        raw = data[8 + size + begin:8 + size + end]
        if entry["dtype"] == "BF16":
            array = (np.frombuffer(raw, np.uint16).astype(np.uint32) << 16).view(F)
        else:
            array = np.frombuffer(raw, {"F32": F, "F16": np.float16}[entry["dtype"]]).astype(F)
        result[name[len(prefix):]] = array.reshape(entry["shape"])
    return result


# ---------------------------------------------------------------- graphs
class Graphs:
    """vision.onnx and vision_host.onnx of one variant."""

    checked = 0

    def __init__(self, writer, model, out, *words):
        out = out / "-".join([model.folder.name, *(w.replace(",", "x") for w in words)])
        subprocess.run([writer, model.folder, out, *words], check=True)
        self.model, self.folder, self.words = model, out, words
        self.genai = "genai" in words
        self.fixed = any(w.startswith("grid=") for w in words)
        self.sessions = {}
        for name in ("vision.onnx", "vision_host.onnx"):
            self.validate(out / name)

    def validate(self, path):
        onnx.checker.check_model(str(path), full_check=True)
        proto = onnx.load(str(path), load_external_data=False)
        inferred = onnx.shape_inference.infer_shapes(proto, check_type=True, strict_mode=True, data_prop=True)
        domains = {o.domain for o in inferred.opset_import}
        used = {n.domain for n in all_nodes(inferred.graph)}
        if "plain" in self.words and (used | domains) != {""}:
            raise AssertionError(f"{path}: --plain, yet domains {used | domains}")
        Graphs.checked += 1

    def session(self, name):
        if name not in self.sessions:
            options = ort.SessionOptions()
            options.intra_op_num_threads = 1
            options.log_severity_level = 3
            self.sessions[name] = ort.InferenceSession(str(self.folder / name), options,
                                                       providers=["CPUExecutionProvider"])
        return self.sessions[name]

    def split(self, outputs):
        if not self.genai:
            return outputs
        assert len(outputs) == 1
        return np.split(outputs[0], 1 + self.model.levels, axis=1)

    def run(self, pixels, grids):
        feed = {"pixel_values": pixels}
        if not self.fixed:
            feed["image_grid_thw" if self.genai else "grid_thw"] = np.array(grids, np.int64).reshape(-1, 3)
        return self.split(self.session("vision.onnx").run(None, feed))

    def run_host(self, pixels, grids):
        outputs, begin = [], 0
        for t, h, w in grids:
            index, weight = taps(h, w, self.model.side)
            cos, sin = cos_sin(h, w, self.model.head_dim)
            rows = pixels[begin:begin + t * h * w].reshape(t, h * w, -1)
            begin += t * h * w
            feed = {"pixel_values": rows, "position_taps": index, "position_weights": weight, "rotary_cos": cos,
                    "rotary_sin": sin}
            outputs.append(self.split(self.session("vision_host.onnx").run(None, feed)))
        return [np.concatenate(parts) for parts in zip(*outputs)]


def all_nodes(graph):
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.GRAPH:
                yield from all_nodes(attribute.g)


def difference(a, b):
    assert len(a) == len(b) and all(x.shape == y.shape for x, y in zip(a, b)), "outputs of another number or shape"
    return max(float(np.abs(x - y).max()) for x, y in zip(a, b))


def pixels_for(grids, seed=3):
    count = sum(t * h * w for t, h, w in grids)
    return np.random.default_rng(seed).uniform(-1, 1, (count, 1536)).astype(F)


def goldens():
    for path in sorted((GOLDEN / "vision").glob("*.safetensors")):
        z = load_file(path)
        if "pixel_values" in z:
            yield path.stem, z


# ---------------------------------------------------------------- checks
def check_goldens(writer, model, out):
    variants = [("f32",), ("f32", "opset=17"), ("f32", "opset=23"), ("f32", "genai"), ("f32", "skip_norm"), ("f32", "plain"),
                ("f32", "plain", "opset=17"), ("f32", "plain", "opset=23"), ("f32", "plain", "genai")]
    grids_seen = {}
    for words in variants:
        graphs = Graphs(writer, model, out, *words)
        worst = {"vision": 0.0, "vision_host": 0.0}
        for name, z in goldens():
            reference = [z["merged"]] + [z[f"deepstack{j}"] for j in range(model.levels)]
            grids = [tuple(int(v) for v in row) for row in z["grid_thw"]]
            worst["vision"] = max(worst["vision"], difference(graphs.run(z["pixel_values"], grids), reference))
            worst["vision_host"] = max(worst["vision_host"],
                                       difference(graphs.run_host(z["pixel_values"], grids), reference))
            begin = 0
            for t, h, w in grids:
                n = t * h * w
                grids_seen[(t, h, w)] = (z["pixel_values"][begin:begin + n],
                                         [r[begin // 4:(begin + n) // 4] for r in reference])
                begin += n
        for graph, error in worst.items():
            check(error <= LIMIT, f"goldens, {graph} {' '.join(words)}: {error:.1e}")
    for extra in ((), ("plain",), ("plain", "opset=17"), ("genai",)):
        worst = 0.0
        for grid, (pixels, reference) in grids_seen.items():
            graphs = Graphs(writer, model, out, "f32", *extra, "grid=" + ",".join(map(str, grid)))
            worst = max(worst, difference(graphs.run(pixels, [grid]), reference),
                        difference(graphs.run_host(pixels, [grid]), reference))
        check(worst <= LIMIT, f"goldens, static {' '.join(extra)}: {len(grids_seen)} grids, {worst:.1e}")


def positions_model(graphs):
    """What vision.onnx computes from one grid, cut out of its Loop: grid_thw and image_index in, positions out."""
    proto = onnx.load(str(graphs.folder / "vision.onnx"), load_external_data=False)
    body = next(a.g for n in proto.graph.node if n.op_type == "Loop" for a in n.attribute if a.name == "body")
    made = {name: node for node in body.node for name in node.output}
    wanted, needed = ["position_taps", "position_weights", "rotary_cos", "rotary_sin"], set()
    stack = list(wanted)
    while stack:
        name = stack.pop()
        if name in made and name not in needed:
            needed.add(name)
            stack.extend(made[name].input)
    nodes = [n for n in body.node if any(o in needed for o in n.output)]
    info = onnx.helper.make_tensor_value_info
    I, T = onnx.TensorProto.INT64, onnx.TensorProto.FLOAT
    graph = onnx.helper.make_graph(
        nodes, "positions", [info("grid_thw", I, ["images", 3]), info(body.input[0].name, I, [])],
        [info(wanted[0], I, None)] + [info(n, T, None) for n in wanted[1:]], body.initializer)
    model = onnx.helper.make_model(graph, opset_imports=proto.opset_import, ir_version=proto.ir_version)
    options = ort.SessionOptions()
    options.log_severity_level = 3  # it holds constants of the whole body
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return lambda grids, i: session.run(None, {"grid_thw": np.array(grids, np.int64), body.input[0].name: np.array(i, np.int64)})


def check_positions(writer, model, out):
    compute = positions_model(Graphs(writer, model, out, "f32"))
    exact, rotary = True, 0.0
    cases = [(z["grid_thw"], z) for _, z in goldens()]
    for grids, z in cases:
        begin = 0
        for i, (t, h, w) in enumerate(grids):
            part = slice(begin, begin + h * w)
            index, weight, cos, sin = compute(grids, i)
            exact &= np.array_equal(index, z["pos_idx"][:, part]) and np.array_equal(weight, z["pos_weight"][:, part])
            half = cos.shape[1]
            rotary = max(rotary, np.abs(cos - z["cos"][part, :half]).max(), np.abs(sin - z["sin"][part, :half]).max())
            begin += t * h * w
    check(exact, f"positions: taps and weights of {len(cases)} goldens to the bit")
    check(rotary <= 1e-6, f"positions: cos and sin of the goldens, {rotary:.1e}")
    z = load_file(GOLDEN / "vision/taps_34x60.safetensors")
    index, weight, _, _ = compute([[1, 34, 60]], 0)
    names = sorted(z)
    golden_index = z[next(n for n in names if "idx" in n)]
    golden_weight = z[next(n for n in names if "weight" in n)]
    # The reference's vectorised linspace differs by up to 4e-6 at such sizes (spec 5.2).
    check(np.array_equal(index, golden_index) and np.abs(weight - golden_weight).max() <= 5e-6,
          f"positions: 34x60, taps equal, weights {np.abs(weight - golden_weight).max():.1e}")
    equal = True
    for h, w in ((2, 2), (2, 64), (96, 128), (128, 96), (34, 60), (48, 48), (250, 6), (62, 94)):
        index, weight, _, _ = compute([[1, h, w]], 0)
        own_index, own_weight = taps(h, w, model.side)
        equal &= np.array_equal(index, own_index) and np.array_equal(weight, own_weight)
    check(equal, "positions: 8 more sizes equal the formula of spec 5.2 to the bit")


def check_sizes(writer, models, out, quick):
    sizes = [(4, 4), (2, 4), (4, 64), (20, 36), (48, 20), (32, 32)]
    large = [(34, 60), (64, 64), (96, 128)]
    for number, model in enumerate(models):
        own = sizes + ([] if quick else large if number == 0 else large[:1])
        graphs = [Graphs(writer, model, out, "f32"), Graphs(writer, model, out, "f32", "plain")]
        for h, w in own:
            grids = [(1, h, w)]
            pixels = pixels_for(grids)
            reference = model.features(pixels, grids)
            scale = max(float(np.abs(r).max()) for r in reference)
            errors = [difference(run(pixels, grids), reference) for g in graphs for run in (g.run, g.run_host)]
            # 3e-5 for features of the goldens' size (up to 6); larger features carry larger float32 steps.
            limit = LIMIT * max(1.0, scale / 6)
            check(max(errors) <= limit, f"{model.folder.name}, {w * 16}x{h * 16}: {max(errors):.1e} of {scale:.1f} "
                  f"(vision, host, plain, plain host: {', '.join(f'{e:.1e}' for e in errors)})")


def check_counts(writer, model, out):
    for words in (("f32",), ("f32", "plain"), ("f32", "genai")):
        graphs, name = Graphs(writer, model, out, *words), " ".join(words)
        none = graphs.run(np.zeros((0, 1536), F), [])
        check(all(o.shape == (0, model.out) for o in none) and len(none) == 1 + model.levels, f"no image, {name}: empty")
        grids = [(1, 4, 6), (3, 6, 4), (1, 20, 36), (1, 2, 2), (2, 8, 8)]
        for count in (1, 3, 5):
            pixels = pixels_for(grids[:count])
            together, apart, begin = graphs.run(pixels, grids[:count]), [], 0
            for t, h, w in grids[:count]:
                n = t * h * w
                apart.append(graphs.run(pixels[begin:begin + n], [(t, h, w)]))
                begin += n
            error = difference(together, [np.concatenate(parts) for parts in zip(*apart)])
            against = difference(together, model.features(pixels, grids[:count]))
            check(error == 0 and against <= LIMIT, f"{count} images and videos in one call, {name}: {error:.1e} to "
                  f"separate calls, {against:.1e} to the reference")
        for wrong in ([(1, 4, 4)], [(1, 4, 6), (1, 4, 6)]):  # 24 rows of pixel_values
            try:
                graphs.run(pixels_for([(1, 4, 6)]), wrong)
                check(False, f"{wrong} for 24 patches, {name}: accepted")
            except Exception as error:
                check("have_the_rows_of_grid_thw" in str(error), f"{wrong} for 24 patches, {name}: an error of ONNX Runtime")


def check_formats(writer, model, out):
    grids = [(1, 6, 4), (2, 4, 4), (1, 20, 36)]
    pixels = pixels_for(grids)
    exact = Graphs(writer, model, out, "f32").run(pixels, grids)
    size = max(float(np.abs(e).max()) for e in exact)
    for fmt in ("bf16", "f16"):
        rounded = model.rounded(fmt).features(pixels, grids)
        for extra in ((), ("plain",)):
            graphs = Graphs(writer, model, out, fmt, *extra)
            error = max(difference(graphs.run(pixels, grids), rounded), difference(graphs.run_host(pixels, grids), rounded))
            check(error <= LIMIT, f"{fmt} {' '.join(extra)}: {error:.1e} to the reference with these weights "
                  f"(rounding of weights: {difference(rounded, exact):.1e} of {size:.1f})")
    for fmt in ("int8 b32", "int8 b16 zp", "int4 b32", "int4 b16 zp", "int4 b64"):
        rounded = Graphs(writer, model, out, fmt, "dequantized").run(pixels, grids)
        for extra in (("accuracy=0",), ("plain",)):
            graphs = Graphs(writer, model, out, fmt, *extra)
            error = max(difference(graphs.run(pixels, grids), rounded), difference(graphs.run_host(pixels, grids), rounded))
            check(error <= LIMIT, f"{fmt} {' '.join(extra)}: {error:.1e} to the float graph of its weights "
                  f"(rounding of weights: {difference(rounded, exact):.1e} of {size:.1f})")
    for fmt, extra, limit in (("int8 row", (), 0.05), ("int8 row", ("plain",), 0.05), ("int8 b32", ("accuracy=4",), 0.05)):
        graphs = Graphs(writer, model, out, fmt, *extra)
        made = graphs.run(pixels, grids)
        error = difference(made, exact)
        cosine = min(float((a * b).sum() / np.sqrt((a * a).sum() * (b * b).sum())) for a, b in zip(made, exact))
        host = difference(graphs.run_host(pixels, grids), exact)
        check(max(error, host) <= limit * size and cosine > 0.999,
              f"{fmt} {' '.join(extra)}: {error:.1e} of {size:.1f}, cosine {cosine:.5f}")


def odd_model(folder):
    """head_dim 72 as in the 8B, table of side 10, one DeepStack level read by the first block, 48 wide mlp."""
    folder.mkdir()
    config = json.loads((GOLDEN / "model/config.json").read_text())
    config["vision_config"].update(depth=2, hidden_size=144, num_heads=2, intermediate_size=48, num_position_embeddings=100,
                                   deepstack_visual_indexes=[0])
    (folder / "config.json").write_text(json.dumps(config))
    tensors = {k: v for k, v in load_file(GOLDEN / "model/model.safetensors").items() if not k.startswith("model.visual.")}
    random = np.random.default_rng(11)

    def linear(name, rows, columns, shape=None):
        w = random.standard_normal((rows, columns)) / math.sqrt(columns)
        tensors[f"model.visual.{name}.weight"] = w.astype(F).reshape(shape or w.shape)
        tensors[f"model.visual.{name}.bias"] = (0.1 * random.standard_normal(rows)).astype(F)

    def norm(name, width):
        tensors[f"model.visual.{name}.weight"] = (1 + 0.2 * random.standard_normal(width)).astype(F)
        tensors[f"model.visual.{name}.bias"] = (0.1 * random.standard_normal(width)).astype(F)

    linear("patch_embed.proj", 144, 1536, (144, 3, 2, 16, 16))
    tensors["model.visual.pos_embed.weight"] = (0.5 * random.standard_normal((100, 144))).astype(F)
    for i in range(2):
        norm(f"blocks.{i}.norm1", 144)
        norm(f"blocks.{i}.norm2", 144)
        linear(f"blocks.{i}.attn.qkv", 432, 144)
        linear(f"blocks.{i}.attn.proj", 144, 144)
        linear(f"blocks.{i}.mlp.linear_fc1", 48, 144)
        linear(f"blocks.{i}.mlp.linear_fc2", 144, 48)
    for name, width in (("merger", 144), ("deepstack_merger_list.0", 576)):
        norm(name + ".norm", width)
        linear(name + ".linear_fc1", 576, 576)
        linear(name + ".linear_fc2", 64, 576)
    save_file(tensors, folder / "model.safetensors")
    return Model(folder)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("writer", type=lambda p: str(Path(p).resolve()))
    parser.add_argument("--quick", action="store_true")
    arguments = parser.parse_args()
    golden, small = Model(GOLDEN / "model"), Model(ROOT / "models/small")
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder)
        check_goldens(arguments.writer, golden, out)
        check_positions(arguments.writer, golden, out)
        check_counts(arguments.writer, golden, out)
        check_formats(arguments.writer, golden, out)
        check_sizes(arguments.writer, [golden, small, odd_model(out / "odd")], out, arguments.quick)
    print(f"{Graphs.checked} graphs passed onnx.checker and shape inference; {len(failures)} failures")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
