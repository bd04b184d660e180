"""Quantises a GGUF file with llama.cpp's own function, as its llama-quantize does (which the wheel does not install).

    python quantize_gguf.py IN.gguf OUT.gguf Q4_0
"""
import ctypes
import sys

import llama_cpp


def main() -> None:
    source, target, name = sys.argv[1:]
    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype = getattr(llama_cpp, f"LLAMA_FTYPE_MOSTLY_{name}")
    params.nthread = 2
    status = llama_cpp.llama_model_quantize(source.encode(), target.encode(), ctypes.byref(params))
    if status != 0:
        sys.exit(f"llama_model_quantize({source}, {name}) returned {status}")


if __name__ == "__main__":
    main()
