#!/usr/bin/env python3
"""Plants the mistakes of MODEL.md in a copy of the sources, one by one, and demands that a test notices each.

    tools/mutation_test.py [--only WORD] [--build DIR]

A mutation is one or more replacements of text that must occur exactly once each; white space matches any white space,
so that formatting does not matter. The copy lives below build/mutants, so the checkout is never touched. Exit code 1
when a mutation survives or no longer applies. Takes about half a minute each.
"""
import argparse
import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
GOLDEN = ("golden_native_test", "*scalar*")
MODEL = ("model_test", "*")
IMAGE = ("image_test", "*")
HEAD = ("engine_native_test", "HeadTest.*")
GENERATE = ("generate_test", "Session.*")

VISION = "src/qvl/engine/native/vision.cc"
DECODER = "src/qvl/engine/native/decoder.cc"
POSITIONS = "src/qvl/model/positions.cc"
SCALAR = "src/qvl/kernels/attention_scalar.cc"


@dataclass
class Mutation:
    name: str
    file: str
    old: str
    new: str
    test: tuple
    also: tuple = ()  # further (old, new) in the same file

    def apply(self, source: str) -> str:
        """The mutated source; ValueError where a text to replace does not occur exactly once."""
        for old, new in ((self.old, self.new), *self.also):
            pattern = re.compile(r"\s+".join(re.escape(word) for word in old.split()))
            found = pattern.findall(source)
            if len(found) != 1:
                raise ValueError(f"the text to replace occurs {len(found)} times in {self.file}: {old.strip()[:60]}")
            source = pattern.sub(lambda _: new, source)
        return source


MUTATIONS = [
    Mutation("merger GELU tanh instead of exact", VISION, "w.fc1, Activation::kGeluErf", "w.fc1, Activation::kGeluTanh",
             GOLDEN),
    Mutation("block GELU exact instead of tanh", VISION, "w.fc1, Activation::kGeluTanh", "w.fc1, Activation::kGeluErf",
             GOLDEN),
    Mutation("patches in raster order", POSITIONS,
             "for (int64_t ix = 0; ix < merge; ++ix) fn(by + iy, bx + ix);",
             "for (int64_t ix = 0; ix < merge; ++ix) { const int64_t n = by * g.w + bx * merge + iy * merge + ix; "
             "fn(n / g.w, n % g.w); }", GOLDEN),
    Mutation("nearest position embedding", POSITIONS,
             "const float dy = fy - static_cast<float>(y0);", "const float dy = std::round(fy - static_cast<float>(y0));",
             GOLDEN),
    Mutation("position table sampled at i*side/n", POSITIONS,
             "const float step = top / static_cast<float>(n - 1);", "const float step = top / static_cast<float>(n);",
             GOLDEN),
    Mutation("position table sampled at half-pixel centres", POSITIONS,
             "i < n / 2 ? step * static_cast<float>(i) : top - step * static_cast<float>(n - 1 - i);",
             "std::clamp((static_cast<float>(i) + 0.5f) * (top + 1.0f) / static_cast<float>(n) - 0.5f, 0.0f, top);",
             GOLDEN),
    Mutation("vision rotary row and column swapped", POSITIONS, "for (const int64_t v : {r, c}) {",
             "for (const int64_t v : {c, r}) {", GOLDEN),
    Mutation("neighbour pairs in the vision rotary", SCALAR,
             "const float a = T::load(x + i), b = T::load(x + half + i);",
             "const float a = T::load(x + 2 * i), b = T::load(x + 2 * i + 1);", GOLDEN),
    Mutation("attention across images", VISION,
             "  const int64_t dim = config_.hidden_size;\n  const model::CosSin rotary",
             "  segments.assign(1, patches);\n  const int64_t dim = config_.hidden_size;\n  const model::CosSin rotary",
             GOLDEN),
    Mutation("attention across the frames of a video", VISION,
             "segments.insert(segments.end(), static_cast<size_t>(g.t), g.h * g.w);",
             "segments.push_back(g.t * g.h * g.w);", GOLDEN),
    Mutation("LayerNorm eps 1e-5", VISION, "constexpr float kNormEps = 1e-6f;", "constexpr float kNormEps = 1e-5f;",
             GOLDEN),
    Mutation("pixel row as (time, channel)", "src/qvl/image/patches.cc", "float* const r = row + dt * plane_values;",
             "float* const r = row + dt * 3 * plane_values;", IMAGE),
    Mutation("round half up in smart_resize", "src/qvl/image/smart_resize.cc", "(2 * r == d && (q & 1) != 0)",
             "2 * r == d", IMAGE),
    Mutation("DeepStack levels reversed", DECODER, "input.deepstack[static_cast<size_t>(i)],",
             "input.deepstack[input.deepstack.size() - 1 - static_cast<size_t>(i)],", GOLDEN),
    Mutation("DeepStack before the layer", DECODER, "if (i < static_cast<int64_t>(input.deepstack.size())) {", "if (i < 0) {",
             GOLDEN,
             also=(("kernels::rms_norm(context_, x, w.input_norm.data(), eps, y);",
                    "if (static_cast<size_t>(i) < input.deepstack.size()) {\n"
                    "      add_visual_rows(context_, x, input.visual_rows, *(input.deepstack.data() + i),\n"
                    "                      input.deepstack_offset);\n    }\n"
                    "    kernels::rms_norm(context_, x, w.input_norm.data(), eps, y);"),)),
    Mutation("DeepStack one layer late", DECODER, "if (i < static_cast<int64_t>(input.deepstack.size())) {",
             "if (i > 0 && i <= static_cast<int64_t>(input.deepstack.size())) {", GOLDEN,
             also=(("input.deepstack[static_cast<size_t>(i)],", "input.deepstack[static_cast<size_t>(i - 1)],"),)),
    Mutation("DeepStack missing", DECODER, "if (i < static_cast<int64_t>(input.deepstack.size())) {", "if (i < 0) {",
             GOLDEN),
    Mutation("M-RoPE interleaving continued to the tail", POSITIONS,
             "std::min(axis.size(), static_cast<size_t>(3 * config.rope.mrope_section[a]))", "axis.size()", MODEL),
    Mutation("M-RoPE in chunks", POSITIONS, "for (size_t i = a; i < end; i += 3) axis[i]",
             "for (size_t i = a * axis.size() / 3; i < (a + 1) * axis.size() / 3 && end > 0; ++i) axis[i]", GOLDEN),
    Mutation("M-RoPE by time only", POSITIONS, "for (size_t i = a; i < end; i += 3) axis[i]",
             "for (size_t i = end; i < end; i += 3) axis[i]", GOLDEN),
    Mutation("image advances by its token count", POSITIONS, "current += std::max(rows, columns);", "current += length;",
             MODEL),
    Mutation("one-dimensional positions for images", POSITIONS, "result.axis[1][at] = current + j / columns % rows;",
             "result.axis[1][at] = current + j;", MODEL),
    Mutation("a video's grid taken as one run", POSITIONS, "GridQueue videos{video_grids, true};",
             "GridQueue videos{video_grids, false};", MODEL),
    Mutation("delta ignored in decode", "src/qvl/generate/generation.cc",
             "g->session_.length() + g->session_.delta_);", "g->session_.length());", GENERATE),
    Mutation("rope_theta beside the object ignored", "src/qvl/model/config.cc",
             'text.number("rope_theta", result.theta)', "result.theta", MODEL),
    Mutation("RMS eps 1e-5", DECODER, "const float eps = static_cast<float>(config_.rms_norm_eps);",
             "const float eps = 1e-5f;", GOLDEN),
    Mutation("kv heads tiled instead of repeated", "src/qvl/kernels/attention_causal.cc",
             "return element(q.data, q.dtype, row / group * q.stride + (kv_head * group + row % group) * kv.head_dim);",
             "return element(q.data, q.dtype, row / group * q.stride + (row % group * kv.kv_heads + kv_head) * kv.head_dim);",
             GOLDEN),
    Mutation("q/k norm left out before the rotation", SCALAR, "const float a = normed(i), b = normed(half + i);",
             "const float a = T::load(x + i), b = T::load(x + half + i);", GOLDEN),
    Mutation("q/k norm after the rotation", SCALAR,
             "const float a = normed(i), b = normed(half + i);\n"
             "    const float c = T::round(cos[i]), s = T::round(sin[i]);\n"
             "    T::store(y + i, T::round(a * c) - T::round(b * s));\n"
             "    T::store(y + half + i, T::round(b * c) + T::round(a * s));",
             "const float a = T::load(x + i) * inverse, b = T::load(x + half + i) * inverse;\n"
             "    T::store(y + i, (a * cos[i] - b * sin[i]) * weight[i]);\n"
             "    T::store(y + half + i, (b * cos[i] + a * sin[i]) * weight[half + i]);", GOLDEN),
    Mutation("scale of the attention missing", DECODER, "1.0f / std::sqrt(static_cast<float>(config_.head_dim))", "1.0f",
             GOLDEN),
    Mutation("tokens left out of the head too easily", "src/qvl/engine/native/head.cc", "constexpr float kDeviations = 7;",
             "constexpr float kDeviations = 0.2f;", HEAD),
    Mutation("rows of the head taken to be off alike", "src/qvl/engine/native/head.cc",
             "const float spread = std::sqrt(sum);", "const float spread = 1;", HEAD),
    Mutation("logits refined for the likeliest only", "src/qvl/engine/native/head.cc",
             "nth_greatest(known.logits, static_cast<size_t>(top.count))", "nth_greatest(known.logits, 1)", HEAD),
    Mutation("great weights cut off in the head's shortlist", "src/qvl/quant/shortlist.cc",
             "constexpr float kMostSteps = 5,", "constexpr float kMostSteps = 50,", ("quant_test", "Shortlist.*")),
    Mutation("the code of the first scale taken for the row's exponent", "src/qvl/kernels/int8_weight.h",
             "w.scales[row * w.scale_stride - 1]", "w.scales[row * w.scale_stride]",
             ("kernels_test", "*IntegerLinear*CodedScales*")),
    Mutation("of a scale's two codes always the nearest", "src/qvl/quant/panel_kernels_impl.h",
             "errors[1][i] < errors[0][i] ? other[i] : scales[i]", "scales[i]", ("quant_test", "QuantizeSearch.*")),
    Mutation("exponents of scales one too large", "src/qvl/quant/format.cc",
             "exponent - 7 + (mantissa", "exponent - 6 + (mantissa", ("quant_test", "*")),
    Mutation("causal mask one key too far", "src/qvl/kernels/attention_causal.cc", "return past + row / group + 1;",
             "return past + q.rows;", GOLDEN),
]


def run(command: list, **kwargs) -> subprocess.CompletedProcess:
    return subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False, **kwargs)


def build(folder: Path, target: str) -> bool:
    result = run(["cmake", "--build", str(folder), "--target", target])
    if result.returncode != 0:
        print(result.stdout[-3000:])
    return result.returncode == 0


def test_program(folder: Path, target: str) -> Path:
    found = [p for p in folder.rglob(target) if p.is_file()]
    if len(found) != 1:
        sys.exit(f"expected one program named {target} below {folder}, got {len(found)}")
    return found[0]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="mutations whose name contains this")
    parser.add_argument("--build", type=Path, default=ROOT / "build/mutants")
    args = parser.parse_args()
    chosen = [m for m in MUTATIONS if args.only in m.name]
    copy = args.build / "tree"
    if copy.exists():
        shutil.rmtree(copy)
    for part in ("src", "tests", "bench", "cmake", "models", "examples"):
        shutil.copytree(ROOT / part, copy / part)
    shutil.copy(ROOT / "CMakeLists.txt", copy)
    # Copies are as old as their originals; what was built last time may be a mutant of any of these, and newer.
    for file in {m.file for m in MUTATIONS}:
        os.utime(copy / file)
    (copy / "build").mkdir()
    (copy / "build/third_party").symlink_to(ROOT / "build/third_party")
    folder = args.build / "out"
    configured = run(["cmake", "-S", str(copy), "-B", str(folder), "-G", "Ninja", "-DCMAKE_BUILD_TYPE=Release"])
    if configured.returncode != 0:
        sys.exit(configured.stdout)

    survivors = []
    for target, filters in sorted({m.test for m in chosen}):
        if not build(folder, target):
            sys.exit(f"{target} does not build unchanged")
        clean = run([str(test_program(folder, target)), f"--gtest_filter={filters}", "--gtest_brief=1"], cwd=copy)
        if clean.returncode != 0:
            sys.exit(f"{target} fails unchanged:\n{clean.stdout[-3000:]}")
        if not re.search(r"^\[  PASSED  \] [1-9]", clean.stdout, re.MULTILINE):
            sys.exit(f"{target} has no tests that match {filters}")
    for m in chosen:
        path = copy / m.file
        source = path.read_text()
        try:
            mutated = m.apply(source)
        except ValueError as stale:
            print(f"STALE     {m.name}: {stale}")
            survivors.append(m.name)
            continue
        path.write_text(mutated)
        target, filters = m.test
        try:
            if not build(folder, target):
                print(f"BROKEN    {m.name}: does not compile")
                survivors.append(m.name)
                continue
            result = run([str(test_program(folder, target)), f"--gtest_filter={filters}", "--gtest_brief=1"], cwd=copy)
            caught = result.returncode != 0
            names = sorted({w.split(",")[0].split("/")[-2 if "/" in w else -1] for w in
                            re.findall(r"^\[  FAILED  \] (\S+\.\S+)", result.stdout, re.MULTILINE)})
            failed = ", ".join(names) or f"{target} ended with code {result.returncode}"
            print(f"{'caught' if caught else 'SURVIVED':9} {m.name}" + (f": {failed}" if caught else ""), flush=True)
            if not caught:
                survivors.append(m.name)
        finally:
            path.write_text(source)
    print(f"{len(chosen) - len(survivors)} of {len(chosen)} mutations caught")
    sys.exit(1 if survivors else 0)


if __name__ == "__main__":
    main()
