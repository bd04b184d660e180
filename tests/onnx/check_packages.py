#!/usr/bin/env python3
"""Programs that we did not write answer with exported packages: ONNX Runtime alone (examples/onnx_only.py) and the released
onnxruntime-genai, both with the token ids of `qvl run`.

    python check_packages.py QVL SOURCE_FOLDER
"""
import json
import os
import subprocess
import sys
import tempfile

import onnx

QVL, SOURCE = sys.argv[1], sys.argv[2]
MODEL = os.path.join(SOURCE, "models/small")
PICTURES = [os.path.join(SOURCE, "examples", name) for name in ("shapes.png", "first.png", "second.png", "text.png")]
# (pictures, question): none, one, several of different sizes.
CASES = [
    ([], "Hello"),
    ([PICTURES[0]], "Describe this image."),
    ([PICTURES[0]], "How many circles are there?"),
    ([PICTURES[3]], "What does it say?"),
    ([PICTURES[1], PICTURES[2]], "What differs?"),
    ([PICTURES[0], PICTURES[3], PICTURES[1]], "Describe this image."),
]
failures = 0


def check(ok, what):
    global failures
    failures += not ok
    print(f"{'ok' if ok else 'FAILED'}: {what}")


def run(*command):
    return subprocess.run(command, check=True, capture_output=True, text=True,
                          env={**os.environ, "QVL_IMAGE_MEMORY": "off"}).stdout


def export(folder, *options):
    run(QVL, "export", MODEL, folder, *options)
    for name in sorted(os.listdir(folder)):
        if name.endswith(".onnx"):
            onnx.checker.check_model(os.path.join(folder, name), full_check=True)
    return folder


def qvl_tokens(pictures, question):
    images = [w for p in pictures for w in ("-i", p)]
    out = run(QVL, "run", MODEL, *images, question, "--greedy", "--max-tokens", "40", "--json",
              "--vision-dtype", "fp32", "--text-dtype", "fp32")
    return json.loads(out)["token_ids"]


def genai_tokens(genai, model, processor, pictures, question):
    prompt = ("<|im_start|>user\n" + "<|vision_start|><|image_pad|><|vision_end|>" * len(pictures) + question
              + "<|im_end|>\n<|im_start|>assistant\n")
    images = genai.Images.open(*pictures) if pictures else None
    params = genai.GeneratorParams(model)
    params.set_search_options(max_length=1024, do_sample=False)
    generator = genai.Generator(model, params)
    generator.set_inputs(processor(prompt, images=images))
    tokens = []
    while not generator.is_done() and len(tokens) < 40:
        generator.generate_next_token()
        tokens.append(int(generator.get_next_tokens()[0]))
    return tokens


def same(theirs, ours):
    """The end token may be missing: some loops do not report it."""
    return theirs == ours or theirs == ours[:-1]


def main():
    expected = [qvl_tokens(*case) for case in CASES]
    with tempfile.TemporaryDirectory() as tmp:
        package = export(os.path.join(tmp, "fp32"), "--text", "fp32", "--vision", "fp32")
        for (pictures, question), tokens in zip(CASES, expected):
            out = run(sys.executable, os.path.join(SOURCE, "examples/onnx_only.py"), package, *pictures, question,
                      "--max-tokens", "40", "--json")
            check(json.loads(out)["token_ids"] == tokens, f"onnx_only.py, {len(pictures)} pictures: {question}")
        try:
            import onnxruntime_genai as genai
        except ImportError:
            check(False, "onnxruntime-genai is not installed")
            return
        folder = export(os.path.join(tmp, "genai"), "--text", "fp32", "--vision", "fp32", "--layout", "genai")
        model = genai.Model(folder)
        processor = model.create_multimodal_processor()
        for (pictures, question), tokens in zip(CASES, expected):
            try:
                theirs = genai_tokens(genai, model, processor, pictures, question)
            except Exception as error:                          # the runtime's own limits are part of the answer
                check(False, f"onnxruntime-genai, {len(pictures)} pictures: {question}: {error}")
                continue
            check(same(theirs, tokens), f"onnxruntime-genai, {len(pictures)} pictures: {question}")
            if not same(theirs, tokens):
                print("   theirs", theirs, "\n   ours  ", tokens)


main()
sys.exit(1 if failures else 0)
