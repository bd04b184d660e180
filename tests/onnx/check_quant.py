"""Do ONNX Runtime's operators read qvl's quantised bytes with the meaning that qvl gives them?

    python tests/onnx/check_quant.py BUILD/tests/onnx/quant_dump [--hashes]

Needs onnxruntime, onnx, numpy. For every format and shape (K no multiple of the block, odd numbers of blocks, one row):
  * MatMulNBits on an identity matrix returns exactly the weights that qvl's codec reads back;
  * GatherBlockQuantized returns them exactly as well (K a multiple of the block: the operator's rule);
  * int8 rows through MatMulInteger with the scales;
  * with method plain the bytes equal those of ONNX Runtime's own quantiser.
--hashes prints the table that quantize_test.cc holds, so that the last point is tested without Python too.
"""
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import onnxruntime as ort
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.capi import _pybind_state as state

MS = "com.microsoft"


def weights(n, k, seed):
    """The generator of quantize_test.cc: integers only, so that both languages get the same bits; many values are
    halves of code steps, where rounding rules differ."""
    x = np.uint32(seed)
    out = np.empty(n * k, np.float32)
    for i in range(n * k):
        x = np.uint32((int(x) * 1664525 + 1013904223) & 0xFFFFFFFF)
        v = (int(x) >> 24) - 128
        out[i] = np.float32(v) / np.float32(1024)
    w = out.reshape(n, k)
    if n > 2:
        w[2, : k // 2] = 0  # blocks of zeros
        w[1] = np.abs(w[1])  # blocks of one sign
    return w


def run_model(nodes, inputs, output, initializers):
    graph = helper.make_graph(
        nodes, "g", [helper.make_tensor_value_info(n, t, s) for n, t, s, _ in inputs],
        [helper.make_tensor_value_info(*output)], initializers)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21), helper.make_opsetid(MS, 1)], ir_version=10)
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return session.run(None, {n: v for n, _, _, v in inputs})[0]


def tensor(name, array, kind=None):
    return helper.make_tensor(name, kind or helper.np_dtype_to_tensor_dtype(array.dtype), array.shape, array.tobytes(), raw=True)


def parse(fmt):
    words = fmt.split()
    return int(words[0][3:]), int(words[1][1:]), "zp" in words


def scale_value(fmt, raw, blocks):
    """The scales as float32, made from what is stored as the exported graphs do it."""
    if "i8-scales" in fmt:
        stored = np.frombuffer(raw, np.int8).reshape(-1, 1 + blocks).astype(np.float32)
        return stored[:, 1:] * np.exp2(stored[:, :1])
    if "bf16-scales" in fmt:
        return (np.frombuffer(raw, np.uint16).astype(np.uint32) << 16).view(np.float32).reshape(-1, blocks)
    if "f16-scales" in fmt:
        return np.frombuffer(raw, np.float16).astype(np.float32).reshape(-1, blocks)
    return np.frombuffer(raw, np.float32).reshape(-1, blocks)


def scale_nodes(fmt, raw, n, blocks):
    for mark, kind in (("bf16-scales", TensorProto.BFLOAT16), ("f16-scales", TensorProto.FLOAT16)):
        if mark in fmt.split():
            init = helper.make_tensor("stored_scales", kind, [n, blocks], raw, raw=True)
            return [helper.make_node("Cast", ["stored_scales"], ["scales"], to=TensorProto.FLOAT)], init
    if "i8-scales" in fmt.split():
        init = helper.make_tensor("stored_scales", TensorProto.INT8, [n, 1 + blocks], raw, raw=True)
        constant = lambda name, value: helper.make_node("Constant", [], [name], value=numpy_helper.from_array(value))
        at = lambda name, i: constant(name, np.array([i], np.int64))
        return [
            constant("two", np.array(2, np.float32)), at("zero", 0), at("one", 1), at("end", 1 + blocks), at("last", -1),
            helper.make_node("Slice", ["stored_scales", "zero", "one", "last"], ["stored_exponents"]),
            helper.make_node("Slice", ["stored_scales", "one", "end", "last"], ["stored_codes"]),
            helper.make_node("Cast", ["stored_exponents"], ["exponents"], to=TensorProto.FLOAT),
            helper.make_node("Cast", ["stored_codes"], ["codes"], to=TensorProto.FLOAT),
            helper.make_node("Pow", ["two", "exponents"], ["factors"]),
            helper.make_node("Mul", ["codes", "factors"], ["scales"]),
        ], init
    return [], helper.make_tensor("scales", TensorProto.FLOAT, [n, blocks], raw, raw=True)


def fnv(data):
    h = 0xCBF29CE484222325
    for b in data:
        h = ((h ^ b) * 0x100000001B3) & 0xFFFFFFFFFFFFFFFF
    return h


def ort_quantize(w, bits, block, zero_points):
    n, k = w.shape
    blocks = -(-k // block)
    data = np.zeros((n, blocks, block * bits // 8), np.uint8)
    scales = np.zeros((n, blocks), np.float32)
    zp = np.zeros((n, -(-blocks * bits // 8)), np.uint8)
    fn = state.quantize_matmul_4bits if bits == 4 else state.quantize_matmul_8bits
    fn(data, np.ascontiguousarray(w.T), scales, zp, block, n, k, not zero_points)
    return data, scales, zp


def main():
    dump, hashes = sys.argv[1], "--hashes" in sys.argv
    formats = ["int4 b16", "int4 b32", "int4 b32 zp", "int4 b64 zp", "int4 b128", "int4 b256 zp", "int4 b32 bf16-scales",
               "int4 b32 zp f16-scales", "int8 b16", "int8 b32", "int8 b32 zp", "int8 b128", "int8 b128 zp bf16-scales",
               "int4 b32 i8-scales", "int8 b64 i8-scales"]
    shapes = [(5, 256), (3, 96), (4, 100), (1, 160), (6, 40), (33, 288)]
    checks = {"MatMulNBits": 0, "GatherBlockQuantized": 0, "MatMulInteger": 0, "equal to ONNX Runtime's quantiser": 0}
    bad = 0
    tmp = Path(tempfile.mkdtemp())
    for fmt in formats + ["int8 row"]:
        for n, k in shapes:
            for method in ("plain", "search"):
                w = weights(n, k, n * 1000 + k)
                (tmp / "w.f32").write_bytes(w.tobytes())
                subprocess.run([dump, fmt, method, str(n), str(k), tmp / "w.f32", tmp / "q"], check=True)
                read = lambda part: (tmp / f"q.{part}").read_bytes()
                back = np.frombuffer(read("f32"), np.float32).reshape(n, k)
                label = f"{fmt} {method} [{n}, {k}]"
                eye = np.eye(k, dtype=np.float32)
                if fmt == "int8 row":
                    # an activation of 255 in uint8 with zero point 0 and scale 1/255: exact integers
                    x = (eye * 255).astype(np.uint8)
                    b = np.frombuffer(read("data"), np.uint8).reshape(n, k)
                    y = run_model([helper.make_node("Transpose", ["b"], ["bt"], perm=[1, 0]),
                                   helper.make_node("MatMulInteger", ["x", "bt", "", "b_zero"], ["y"])],
                                  [("x", TensorProto.UINT8, [k, k], x)], ("y", TensorProto.INT32, [k, n]),
                                  [tensor("b", b), tensor("b_zero", np.array(128, np.uint8))])
                    got = (y.astype(np.float32) / 255 * np.frombuffer(read("scales"), np.float32)).T
                    checks["MatMulInteger"] += 1
                    if not np.array_equal(got, back):
                        bad += 1
                        print("MatMulInteger reads", label, "otherwise: largest difference", np.abs(got - back).max())
                    continue
                bits, block, zero_points = parse(fmt)
                blocks = -(-k // block)
                data = np.frombuffer(read("data"), np.uint8).reshape(n, blocks, block * bits // 8)
                nodes, scales = scale_nodes(fmt, read("scales"), n, blocks)
                inits, names = [tensor("b", data), scales], ["x", "b", "scales"]
                if zero_points:
                    inits.append(tensor("zp", np.frombuffer(read("zero_points"), np.uint8).reshape(n, -1)))
                    names.append("zp")
                y = run_model(nodes + [helper.make_node("MatMulNBits", names, ["y"], domain=MS, K=k, N=n, bits=bits,
                                                        block_size=block, accuracy_level=0)],
                              [("x", TensorProto.FLOAT, [k, k], eye)], ("y", TensorProto.FLOAT, [k, n]), inits)
                checks["MatMulNBits"] += 1
                # MatMulNBits folds zero point and scale into one multiply-add, so not to the last bit
                tolerance = 2e-6 * np.abs(back).max()
                if np.abs(y.T - back).max() > tolerance:
                    bad += 1
                    print("MatMulNBits reads", label, "otherwise: largest difference", np.abs(y.T - back).max())
                if k % block == 0:
                    inits[0] = tensor("b", data.reshape(n, -1))
                    gather = helper.make_node("GatherBlockQuantized", ["b", "ids", "scales"] + (["zp"] if zero_points else []),
                                              ["y"], domain=MS, bits=bits, block_size=block, quantize_axis=1, gather_axis=0)
                    ids = np.arange(n, dtype=np.int64)[::-1].copy()
                    y = run_model(nodes + [gather], [("ids", TensorProto.INT64, [n], ids)], ("y", TensorProto.FLOAT, [n, k]), inits)
                    checks["GatherBlockQuantized"] += 1
                    if not np.array_equal(y, back[::-1]):
                        bad += 1
                        print("GatherBlockQuantized reads", label, "otherwise: largest difference", np.abs(y - back[::-1]).max())
                if method == "plain" and "scales" not in fmt:
                    d, s, z = ort_quantize(w, bits, block, zero_points)
                    # Padding of the last block and a spare nibble mean nothing; compare what is read.
                    mine, theirs = data.reshape(n, -1), d.reshape(n, -1)
                    used = -(-k * bits // 8)
                    same = (np.array_equal(mine[:, :used], theirs[:, :used])
                            and np.array_equal(np.frombuffer(read("scales"), np.float32), s.ravel()))
                    if zero_points:
                        zp = np.frombuffer(read("zero_points"), np.uint8).reshape(n, -1)
                        nibbles = lambda a: np.stack([a & 15, a >> 4], -1).reshape(n, -1)[:, :blocks] if bits == 4 else a
                        same = same and np.array_equal(nibbles(zp), nibbles(z))
                    checks["equal to ONNX Runtime's quantiser"] += 1
                    if not same:
                        bad += 1
                        print("plain", label, "differs from ONNX Runtime's quantiser in",
                              int((mine[:, :used] != theirs[:, :used]).sum()), "bytes")
                    s = s + np.float32(0)  # a block of zeros has scale -0 there, 0 here
                    if hashes and k % block == 0 and blocks % 2 == 0:
                        print(f'      {{"{fmt}", {n}, {k}, 0x{fnv(d.tobytes() + s.tobytes() + (z.tobytes() if zero_points else b"")):016x}u}},')
    print(", ".join(f"{name} {count}" for name, count in checks.items()), "checks;", bad, "failures")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
