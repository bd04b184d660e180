#!/usr/bin/env python3
"""Runs the exported text graphs (embedding.onnx, decoder.onnx) in ONNX Runtime's Python package, without qvl, against the
golden fixtures: every operator variant and weight format that `write_graphs` can write.

  check_graphs.py --writer build/release/tests/onnx/write_graphs [--source .] [--only NAME] [--keep FOLDER]

What is proved, for each variant where it applies:
  * onnx.checker with full_check and strict shape inference accept the graph with its external data;
  * logits of every position of every golden prompt (text, images, video, both, left-padded batch) within 1e-4, and the 16
    greedy tokens equal, by prefill and cached steps, in separate past/present and in one shared buffer;
  * the residual stream after every layer within 2e-4;
  * prefill in chunks gives the same logits and the same cache; num_logits_to_keep gives the last rows of all logits;
  * integer and 16-bit weights give what their values give in float32 (accuracy_level 0);
  * a number of features other than that of the placeholders is refused.

Needs requirements.txt of this folder. Prints one line a check and exits with 1 if any fails.
"""
import argparse
import glob
import json
import os
import struct
import subprocess
import sys
import tempfile

import numpy as np
import onnx
import onnxruntime as ort

LOGITS_ATOL = 1e-4
failures = []


def report(ok, name, what):
    print(f"{'ok  ' if ok else 'FAIL'} {name:34s} {what}", flush=True)
    if not ok:
        failures.append(f"{name}: {what}")


def load_safetensors(path):
    types = {"F32": np.float32, "I64": np.int64, "I32": np.int32, "U8": np.uint8}
    with open(path, "rb") as f:
        header = json.loads(f.read(struct.unpack("<Q", f.read(8))[0]))
        body = f.read()
    header.pop("__metadata__", None)
    return {k: np.frombuffer(body[v["data_offsets"][0]:v["data_offsets"][1]], types[v["dtype"]]).reshape(v["shape"])
            for k, v in header.items()}


class Config:
    def __init__(self, checkpoint):
        with open(os.path.join(checkpoint, "config.json")) as f:
            c = json.load(f)
        t = c["text_config"]
        self.image, self.video = c["image_token_id"], c["video_token_id"]
        self.layers, self.kv, self.dim = t["num_hidden_layers"], t["num_key_value_heads"], t["head_dim"]
        self.width, self.vocab = t["hidden_size"], t["vocab_size"]
        self.levels = len(c["vision_config"]["deepstack_visual_indexes"])


def session(path):
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 4  # refusals are provoked below
    return ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])


class Model:
    """The two graphs of a folder; `fixed` (S, C): written with static=S,C."""

    def __init__(self, folder, config, genai=False, fixed=None):
        self.c, self.genai, self.fixed = config, genai, fixed
        self.embedding = session(os.path.join(folder, "embedding.onnx"))
        self.decoder = session(os.path.join(folder, "decoder.onnx"))
        self.outputs = [o.name for o in self.decoder.get_outputs()]

    def embed(self, ids, features):
        """features [1+K, M, D]; returns inputs_embeds and deepstack_embeds (None for genai)."""
        if self.fixed:
            missing = self.fixed[0] - features.shape[1]
            features = np.concatenate([features, np.full((features.shape[0], missing, self.c.width), 7.0, np.float32)], 1)
        if self.genai:
            feed = {"image_features": np.concatenate(list(features), -1)}
        else:
            feed = {"image_features": features[0]}
            feed.update({f"deepstack_features.{j}": features[1 + j] for j in range(self.c.levels)})
        out = self.embedding.run(None, {"input_ids": ids, **feed})
        return out[0], None if self.genai else out[1]

    def empty_past(self, batch, length=0):
        shape = (batch, self.c.kv, length, self.c.dim)
        return {f"past_key_values.{i}.{kv}": np.zeros(shape, np.float32) for i in range(self.c.layers) for kv in ("key", "value")}

    def feed(self, embeds, deepstack, positions, mask, keep):
        f = {"inputs_embeds": embeds, "position_ids": positions, "attention_mask": mask}
        if not self.genai:
            f["deepstack_embeds"] = deepstack
            if not self.fixed:
                f["num_logits_to_keep"] = np.array([keep], np.int64)
        return f

    def decode(self, embeds, deepstack, positions, mask, past, keep):
        out = dict(zip(self.outputs, self.decoder.run(None, {**self.feed(embeds, deepstack, positions, mask, keep), **past})))
        logits = out.pop("logits")
        return logits, {k.replace("present", "past_key_values"): v for k, v in out.items()}


class Case:
    """A golden prompt. The features are read back from the reference's own tensors: the rows put into inputs_embeds and
    what was added to the layers."""

    def __init__(self, path, config, parts=None):
        z = load_safetensors(path)
        self.name = os.path.basename(path).removesuffix(".safetensors")
        self.ids, self.mask, self.positions, self.delta = z["input_ids"], z["attention_mask"], z["position_ids"], z["rope_deltas"][:, 0]
        self.logits, self.tokens = z["logits"], z["greedy.tokens"]
        if parts:  # a batch of other cases
            self.features = np.concatenate([p.features for p in parts], 1)
        else:
            visual = (self.ids == config.image) | (self.ids == config.video)
            planes = [z["inputs_embeds"][visual]] + [(z[f"layer{j}"] - z[f"layer{j}.pre_deepstack"])[visual] for j in range(config.levels)]
            self.features = np.stack(planes).astype(np.float32)
            self.layers = [z[f"layer{i}"] for i in range(config.layers)]


def golden_cases(source, config):
    folder = os.path.join(source, "tests/fixtures/golden/text")
    names = sorted(os.path.basename(p) for p in glob.glob(os.path.join(folder, "*.safetensors")) if "batch" not in p)
    cases = {n.removesuffix(".safetensors"): Case(os.path.join(folder, n), config) for n in names}
    batch = Case(os.path.join(folder, "batch_left_pad.safetensors"), config, [cases["image"], cases["two_images"]])
    return list(cases.values()) + [batch]


def no_features(config):
    return np.zeros((1 + config.levels, 0, config.width), np.float32)


def chunk_features(config, case, start, end):
    """The feature rows of the placeholders in columns [start, end), row-major over the batch."""
    visual = (case.ids == config.image) | (case.ids == config.video)
    number = np.cumsum(visual.ravel()).reshape(visual.shape) - 1
    return case.features[:, number[:, start:end][visual[:, start:end]]]


def prefill(model, case, chunks=None, keep_all=True):
    """Logits of all positions (or the last one) and the cache, in chunks of the given sizes."""
    c, (batch, length) = model.c, case.ids.shape
    past, start, logits = model.empty_past(batch), 0, []
    for size in chunks or [length]:
        end = min(start + size, length)
        embeds, deepstack = model.embed(case.ids[:, start:end], chunk_features(c, case, start, end))
        keep = end - start if keep_all else 1
        out, past = model.decode(embeds, deepstack, case.positions[:, :, start:end], case.mask[:, :end], past, keep)
        logits.append(out)
        start = end
        if start == length:
            break
    return np.concatenate(logits, 1), past


def step_inputs(model, case, token, step):
    """One generated token for each row: embeddings, DeepStack rows, positions, mask."""
    batch = case.ids.shape[0]
    embeds, deepstack = model.embed(token[:, None], no_features(model.c))
    at = case.mask.sum(1) + case.delta + step
    positions = np.ascontiguousarray(np.broadcast_to(at[None, :, None], (3, batch, 1))).astype(np.int64)
    mask = np.concatenate([case.mask, np.ones((batch, step + 1), np.int64)], 1)
    return embeds, deepstack, positions, mask


def greedy(model, case, logits, past, count=16):
    tokens = []
    token = logits[:, -1].argmax(-1)
    for step in range(count):
        tokens.append(token)
        embeds, deepstack, positions, mask = step_inputs(model, case, token, step)
        logits, past = model.decode(embeds, deepstack, positions, mask, past, 1)
        token = logits[:, -1].argmax(-1)
    return np.stack(tokens, 1)


def greedy_shared(model, case, count=16):
    """The whole case with past and present in one buffer a layer, as an engine holds its cache."""
    batch, length = case.ids.shape
    cache = {n: ort.OrtValue.ortvalue_from_numpy(v) for n, v in model.empty_past(batch, length + count + 5).items()}
    addresses = {n: v.data_ptr() for n, v in cache.items()}

    def run(embeds, deepstack, positions, mask):
        binding = model.decoder.io_binding()
        for name, value in model.feed(embeds, deepstack, positions, mask, 1).items():
            binding.bind_cpu_input(name, np.ascontiguousarray(value))
        for name, value in cache.items():
            binding.bind_ortvalue_input(name, value)
            binding.bind_ortvalue_output(name.replace("past_key_values", "present"), value)
        binding.bind_output("logits")
        model.decoder.run_with_iobinding(binding)
        return binding.get_outputs()[-1].numpy()

    embeds, deepstack = model.embed(case.ids, case.features)
    logits, tokens = run(embeds, deepstack, case.positions, case.mask), []
    for step in range(count):
        tokens.append(logits[:, -1].argmax(-1))
        logits = run(*step_inputs(model, case, tokens[-1], step))
    same = all(cache[n].data_ptr() == a for n, a in addresses.items())
    return np.stack(tokens, 1), same


def accept(name, folder):
    for graph in ("embedding", "decoder"):
        path = os.path.join(folder, graph + ".onnx")
        try:
            onnx.checker.check_model(path, full_check=True)
            inferred = os.path.join(folder, graph + ".inferred")
            onnx.shape_inference.infer_shapes_path(path, inferred, check_type=True, strict_mode=True, data_prop=True)
            os.remove(inferred)
        except Exception as e:  # noqa: BLE001: the kind of refusal is part of the report
            report(False, name, f"{graph}: {type(e).__name__}: {str(e)[:300]}")
            return
    report(True, name, "checker and shape inference")


def check_domains(name, folder, plain):
    for graph in ("embedding", "decoder"):
        model = onnx.load(os.path.join(folder, graph + ".onnx"), load_external_data=False)
        contrib = sorted({n.op_type for n in model.graph.node if n.domain})
        if plain:
            report(not contrib, name, f"{graph}: standard operators only {contrib}")


def check_golden(name, model, cases, all_logits=True):
    """Every golden prompt; a runtime that asks for one row of logits gets one."""
    for case in cases:
        if model.genai and case.ids.shape[0] > 1:
            continue  # that layout pads on the right
        logits, past = prefill(model, case)
        want = case.logits if all_logits else case.logits[:, -1:]
        valid = case.mask.astype(bool) if all_logits else np.ones(want.shape[:2], bool)
        worst = np.abs(logits - want)[valid].max()
        tokens = greedy(model, case, logits, past)
        report(worst <= LOGITS_ATOL and np.isfinite(logits).all() and np.array_equal(tokens, case.tokens), name,
               f"{case.name}: logits {worst:.1e}, tokens {'equal' if np.array_equal(tokens, case.tokens) else 'DIFFER'}")


def check_chunks(name, model, cases, any_batch):
    """any_batch: several tokens on top of a past also in a batch, which GroupQueryAttention does not do."""
    for case in cases:
        whole, whole_past = prefill(model, case)
        valid = case.mask.astype(bool)
        for chunks in ([5] * 99, [7, 1, 1, 99], [1] * 99) if any_batch or case.ids.shape[0] == 1 else ([20] + [1] * 99, [1] * 99):
            parts, past = prefill(model, case, chunks)
            worst = np.abs(parts - whole)[valid].max()
            cache = max(np.abs(past[n] - whole_past[n]).transpose(0, 2, 1, 3)[valid].max() for n in past)
            report(worst <= 2e-5 and cache <= 2e-5, name, f"{case.name}: chunks of {chunks[0]}.. logits {worst:.1e}, cache {cache:.1e}")


def check_layers(name, folder, model, cases):
    """The residual stream after each layer, under the name that traces use, against the reference's."""
    proto = onnx.load(os.path.join(folder, "decoder.onnx"), load_external_data=False)
    layers = [f"layer{i}" for i in range(model.c.layers)]
    proto.graph.output.extend(onnx.helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, None) for n in layers)
    path = os.path.join(folder, "decoder.layers.onnx")
    onnx.save(proto, path)
    traced = session(path)
    for case in cases:
        if case.ids.shape[0] > 1:
            continue
        embeds, deepstack = model.embed(case.ids, case.features)
        feed = {**model.feed(embeds, deepstack, case.positions, case.mask, case.ids.shape[1]), **model.empty_past(1)}
        worst = max(np.abs(got - want[0]).max() for got, want in zip(traced.run(layers, feed), case.layers))
        report(worst <= 2e-4, name, f"{case.name}: layers {worst:.1e}")


def check_keep(name, model, case):
    whole, _ = prefill(model, case)
    embeds, deepstack = model.embed(case.ids, case.features)
    for keep in (1, 3, case.ids.shape[1]):
        some, _ = model.decode(embeds, deepstack, case.positions, case.mask, model.empty_past(case.ids.shape[0]), keep)
        worst = np.abs(some - whole[:, -keep:]).max()
        report(some.shape[1] == keep and worst <= 2e-5, name, f"{case.name}: last {keep} logits {worst:.1e}")


def check_counts(name, model, case):
    for wrong in (case.features[:, :-1], np.concatenate([case.features, case.features[:, :1]], 1), no_features(model.c)):
        try:
            model.embed(case.ids, wrong)
            report(False, name, f"{wrong.shape[1]} features for {case.features.shape[1]} placeholders are accepted")
        except Exception as e:  # noqa: BLE001
            report("Reshape" in str(e), name, f"{wrong.shape[1]} features for {case.features.shape[1]} placeholders are refused")
    text = np.array([[1, 2, 3]], np.int64)
    try:
        model.embed(text, case.features)
        report(False, name, "features without placeholders are accepted")
    except Exception as e:  # noqa: BLE001
        report("Reshape" in str(e), name, "features without placeholders are refused")


def check_static(name, wide, single, cases):
    """Chunks of S by one graph, single tokens by another over the same cache length C; padding on the left."""
    size, capacity = wide.fixed
    for case in cases:
        if case.ids.shape[0] > 1 or case.ids.shape[1] + 16 > capacity:
            continue
        c, length = wide.c, case.ids.shape[1]
        first = (length - 1) % size + 1
        past_mask = np.zeros((1, capacity), np.int64)
        past = wide.empty_past(1, capacity - size)
        start, worst = 0, 0.0

        def run(model, ids, features, positions, past_mask, past):
            pad = model.fixed[0] - ids.shape[1]
            ids = np.pad(ids, ((0, 0), (pad, 0)))
            positions = np.pad(positions, ((0, 0), (0, 0), (pad, 0)))
            mask = np.concatenate([past_mask[:, model.fixed[0]:], np.zeros((1, pad), np.int64), np.ones((1, model.fixed[0] - pad), np.int64)], 1)
            embeds, deepstack = model.embed(ids, features)
            logits, present = model.decode(embeds, deepstack, positions, mask, past, 1)
            return logits, mask, present

        def last(present, count):
            return {k: np.ascontiguousarray(v[:, :, v.shape[2] - count:]) for k, v in present.items()}

        while start < length:
            end = start + (first if start == 0 else size)
            logits, past_mask, present = run(wide, case.ids[:, start:end], chunk_features(c, case, start, end),
                                             case.positions[:, :, start:end], past_mask, past)
            past, start = last(present, capacity - size), end
            worst = max(worst, np.abs(logits[:, -1] - case.logits[:, end - 1]).max())
        tokens, past = [], last(present, capacity - 1)
        token = logits[:, -1].argmax(-1)
        for step in range(16):
            tokens.append(token)
            positions = np.full((3, 1, 1), length + case.delta[0] + step, np.int64)
            logits, past_mask, present = run(single, token[:, None], no_features(c), positions, past_mask, past)
            past, token = last(present, capacity - 1), logits[:, -1].argmax(-1)
        same = np.array_equal(np.stack(tokens, 1), case.tokens)
        report(worst <= LOGITS_ATOL and same, name, f"{case.name}: logits {worst:.1e}, tokens {'equal' if same else 'DIFFER'}")


def check_against(name, model, reference, cases, relative, argmax=1.0):
    """Logits of two models, as a part of the largest logit, and how often they choose the same token."""
    for case in cases:
        a, _ = prefill(model, case)
        b, _ = prefill(reference, case)
        valid = case.mask.astype(bool)
        worst = np.abs(a - b)[valid].max() / np.abs(b[valid]).max()
        same = (a.argmax(-1) == b.argmax(-1))[valid].mean()
        report(worst <= relative and same >= argmax, name, f"{case.name}: logits differ by {worst:.1e} of the largest, {same:.0%} same choice")


class RandomCase:
    """A prompt of random tokens and features for a checkpoint without golden files; two rows, one of them padded."""

    def __init__(self, config, seed):
        rng = np.random.default_rng(seed)
        length, image = 24, 6
        self.name = f"random {seed}"
        self.ids = rng.integers(0, min(config.image, config.video, config.vocab) - 20, (2, length))
        self.ids[:, 8:8 + image] = config.image
        self.mask = np.ones((2, length), np.int64)
        self.mask[1, :5] = 0
        self.positions = np.maximum(np.cumsum(self.mask, 1) - 1, 0)[None].repeat(3, 0)
        self.positions[:, :, 8:8 + image] += rng.integers(0, 4, (3, 2, image))
        self.delta = np.zeros(2, np.int64)
        self.features = (rng.standard_normal((1 + config.levels, 2 * image, config.width)) * 0.5).astype(np.float32)


class Runner:
    def __init__(self, args, folder):
        self.args, self.folder = args, folder

    def wanted(self, name):
        return not self.args.only or self.args.only in name

    def write(self, checkpoint, name, *words):
        out = os.path.join(self.folder, name.replace(" ", "_"))
        done = subprocess.run([self.args.writer, checkpoint, out, *words], capture_output=True, text=True)
        if done.returncode != 0:
            raise RuntimeError(f"write_graphs {' '.join(words)}: {done.stderr.strip()}")
        return out

    def text_variants(self, checkpoint, config, cases):
        float_variants = [("f32", [], {}), ("f32 opset17", ["opset=17"], {}), ("f32 opset23", ["opset=23"], {}),
                          ("f32 plain", ["plain"], {}), ("f32 plain opset17", ["plain", "opset=17"], {}),
                          ("f32 plain opset23", ["plain", "opset=23"], {}),
                          ("f32 genai", ["genai", "all_logits"], {"genai": True}), ("f32 genai last", ["genai"], {"genai": True}),
                          ("f32 genai plain", ["genai", "plain", "all_logits"], {"genai": True})]
        for name, words, kind in float_variants:
            if not self.wanted(name):
                continue
            folder = self.write(checkpoint, name, "f32", *words)
            accept(name, folder)
            check_domains(name, folder, "plain" in words)
            model = Model(folder, config, **kind)
            check_golden(name, model, cases, all_logits="last" not in name)
            if "last" not in name:
                check_layers(name, folder, model, cases)
            check_counts(name, model, next(c for c in cases if c.name == "image"))
            if not model.genai:
                check_chunks(name, model, cases, any_batch="plain" in words)
                check_keep(name, model, next(c for c in cases if c.name == "two_images"))
            if not model.genai and "plain" not in words:
                for case in cases:
                    tokens, same = greedy_shared(model, case)
                    report(same and np.array_equal(tokens, case.tokens), name, f"{case.name}: cache in one shared buffer, tokens equal")
        for name, words in (("f32 static", []), ("f32 plain static", ["plain"])):
            if not self.wanted(name):
                continue
            wide = self.write(checkpoint, name, "f32", "static=8,48", *words)
            single = self.write(checkpoint, name + " 1", "f32", "static=1,48", *words)
            accept(name, wide)
            accept(name + " 1", single)
            check_static(name, Model(wide, config, fixed=(8, 48)), Model(single, config, fixed=(1, 48)), cases)

    def formats(self, checkpoint, config, cases, names):
        """Each format against float32 graphs that hold its dequantised weights."""
        for format_name in names:
            name = format_name
            if not self.wanted(name):
                continue
            reference = Model(self.write(checkpoint, name + " floats", format_name, "dequantized"), config)
            exact = format_name != "int8 row"
            variants = [("", ["accuracy=0"]), (" plain", ["plain"])]
            for suffix, words in variants:
                folder = self.write(checkpoint, name + suffix, format_name, *words)
                accept(name + suffix, folder)
                check_domains(name + suffix, folder, "plain" in words)
                # int8 rows quantise activations too.
                check_against(name + suffix, Model(folder, config), reference, cases, 2e-5 if exact else 0.1, 1.0 if exact else 0.85)
            if "int" in format_name and exact:
                folder = self.write(checkpoint, name + " accuracy 4", format_name, "accuracy=4")
                check_against(name + " accuracy 4", Model(folder, config), reference, cases, 0.1, 0.85)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--writer", required=True)
    parser.add_argument("--source", default=os.path.join(os.path.dirname(os.path.abspath(__file__)), "../.."))
    parser.add_argument("--only", help="variants whose name contains this")
    parser.add_argument("--keep", help="folder for the graphs, kept; else a temporary one")
    args = parser.parse_args()

    formats = ["bf16", "f16", "int4 b32", "int4 b32 zp", "int4 b64 zp", "int4 b128", "int4 b128 zp", "int4 b32 bf16-scales",
               "int4 b16 zp f16-scales", "int4 b32 i8-scales", "int8 b32", "int8 b64 zp i8-scales", "int8 row"]
    with tempfile.TemporaryDirectory() as temporary:
        runner = Runner(args, args.keep or temporary)
        golden = os.path.join(args.source, "tests/fixtures/golden/model")
        config = Config(golden)
        cases = golden_cases(args.source, config)
        runner.text_variants(golden, config, cases)
        runner.formats(golden, config, cases, formats)

        small = os.path.join(args.source, "models/small")
        config = Config(small)
        cases = [RandomCase(config, seed) for seed in range(3)]
        if runner.wanted("small"):
            fused = Model(runner.write(small, "small f32", "f32"), config)
            plain = Model(runner.write(small, "small f32 plain", "f32", "plain"), config)
            check_against("small fused and plain", fused, plain, cases, 2e-5)
        for name in ["bf16", "int4 b32 i8-scales", "int8 row"]:
            if runner.wanted("small"):
                reference = Model(runner.write(small, "small floats", name, "dequantized"), config)
                folder = runner.write(small, "small " + name, name, "accuracy=0")
                accept("small " + name, folder)
                check_against("small " + name, Model(folder, config), reference, cases, 2e-5 if name != "int8 row" else 0.1, 0.85)
    print(f"{len(failures)} failed")
    for failure in failures:
        print("  " + failure)
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
