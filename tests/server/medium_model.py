"""A checkpoint with the small model's tokenizer and vision stage and a text stage of random weights that no cache holds:
for measurements in which decoding is bound by reading weights, as it is with the public models."""

import json
import os
import shutil
import struct
from pathlib import Path

from harness import SMALL

HIDDEN, MLP, LAYERS, HEADS, KV_HEADS, HEAD_DIM = 1536, 6144, 4, 12, 4, 128


def random_bf16(count):
    """Random signs and mantissas, magnitudes 1/64 to 1/32: about a standard deviation of 0.02."""
    out = bytearray()
    step = 1 << 20
    keep = int.from_bytes(b"\x7f\x80" * step, "little")
    exponent = int.from_bytes(b"\x80\x3c" * step, "little")
    for at in range(0, count, step):
        bits = int.from_bytes(os.urandom(2 * step), "little") & keep | exponent
        out += bits.to_bytes(2 * step, "little")[: 2 * min(step, count - at)]
    return bytes(out)


def text_tensors():
    yield "model.language_model.embed_tokens.weight", (640, HIDDEN)
    yield "model.language_model.norm.weight", (HIDDEN,)
    for i in range(LAYERS):
        layer = f"model.language_model.layers.{i}."
        yield layer + "input_layernorm.weight", (HIDDEN,)
        yield layer + "post_attention_layernorm.weight", (HIDDEN,)
        yield layer + "self_attn.q_norm.weight", (HEAD_DIM,)
        yield layer + "self_attn.k_norm.weight", (HEAD_DIM,)
        yield layer + "self_attn.q_proj.weight", (HEADS * HEAD_DIM, HIDDEN)
        yield layer + "self_attn.k_proj.weight", (KV_HEADS * HEAD_DIM, HIDDEN)
        yield layer + "self_attn.v_proj.weight", (KV_HEADS * HEAD_DIM, HIDDEN)
        yield layer + "self_attn.o_proj.weight", (HIDDEN, HEADS * HEAD_DIM)
        yield layer + "mlp.gate_proj.weight", (MLP, HIDDEN)
        yield layer + "mlp.up_proj.weight", (MLP, HIDDEN)
        yield layer + "mlp.down_proj.weight", (HIDDEN, MLP)


def write(folder):
    """Returns the bytes of weights that a decode step reads."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    for file in SMALL.iterdir():
        if file.suffix in (".json", ".jinja"):
            shutil.copy(file, folder / file.name)
    config = json.loads((SMALL / "config.json").read_text())
    config["text_config"].update(hidden_size=HIDDEN, intermediate_size=MLP, num_hidden_layers=LAYERS, num_attention_heads=HEADS,
                                 num_key_value_heads=KV_HEADS, head_dim=HEAD_DIM)
    config["text_config"]["rope_scaling"]["mrope_section"] = [24, 20, 20]
    config["vision_config"]["out_hidden_size"] = HIDDEN
    (folder / "config.json").write_text(json.dumps(config, indent=1))

    data = (SMALL / "model.safetensors").read_bytes()
    size = struct.unpack("<Q", data[:8])[0]
    small = json.loads(data[8:8 + size])
    tensors = {}
    for name, about in small.items():
        if not name.startswith("model.visual."):
            continue
        shape = about["shape"]
        if "merger" in name and "linear_fc2" in name:
            tensors[name] = [HIDDEN, *shape[1:]], None
        else:
            begin, end = about["data_offsets"]
            tensors[name] = shape, data[8 + size + begin:8 + size + end]
    for name, shape in text_tensors():
        tensors[name] = list(shape), None

    header, at = {"__metadata__": {"format": "pt"}}, 0
    count = {name: 1 for name in tensors}
    for name, (shape, _) in tensors.items():
        for n in shape:
            count[name] *= n
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [at, at + 2 * count[name]]}
        at += 2 * count[name]
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(folder / "model.safetensors", "wb") as out:
        out.write(struct.pack("<Q", len(text)) + text)
        for name, (shape, values) in tensors.items():
            if values is None:
                values = b"\x80\x3f" * count[name] if "norm" in name else random_bf16(count[name])
            out.write(values)
    return 2 * sum(n for name, n in count.items() if name.startswith("model.language_model."))
