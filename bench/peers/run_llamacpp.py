"""Measures llama.cpp through llama-cpp-python's bindings of llama.h and mtmd.h: one process, one round. Prints the lines
of workload.py. A second question goes on in the KV cache, as llama.cpp's own programs do it.

    WORK/llamacpp/venv/bin/python run_llamacpp.py MODEL PICTURES --threads 2 --seed 1
"""
import ctypes
import sys
import time

import workload


class Peer:
    def __init__(self, model, threads: int):
        import llama_cpp
        import llama_cpp.mtmd_cpp as mtmd
        self.lib, self.mtmd = llama_cpp, mtmd
        # A chunk of the prompt is computed at once, in the library's own micro-batches of 512.
        self.llama = llama_cpp.Llama(str(model / "text.gguf"), n_ctx=2048, n_batch=1024, n_ubatch=512, n_threads=threads,
                                     n_threads_batch=threads, n_gpu_layers=0, verbose=False)
        self.ctx = self.llama._ctx.ctx
        params = mtmd.mtmd_context_params_default()
        params.use_gpu = False
        params.n_threads = threads
        params.print_timings = False
        self.vision = mtmd.mtmd_init_from_file(str(model / "vision.gguf").encode(), self.llama._model.model, params)
        if self.vision is None:
            sys.exit("mtmd_init_from_file failed")

    def forget(self) -> None:
        self.lib.llama_memory_clear(self.lib.llama_get_memory(self.ctx), True)

    def greedy(self) -> int:
        import numpy as np
        logits = self.lib.llama_get_logits_ith(self.ctx, -1)
        return int(np.ctypeslib.as_array(logits, shape=(self.llama.n_vocab(),)).argmax())

    # Goes on behind what the KV cache holds; positions are the library's.
    def decode(self, tokens: list[int]) -> None:
        array = (self.lib.llama_token * len(tokens))(*tokens)
        status = self.lib.llama_decode(self.ctx, self.lib.llama_batch_get_one(array, len(tokens)))
        if status != 0:
            sys.exit(f"llama_decode returned {status}")

    # (milliseconds to the first token, prompt tokens)
    def ask_text(self, text: str) -> tuple[float, int]:
        start = time.perf_counter()
        tokens = self.llama.tokenize(text.encode(), add_bos=False, special=True)
        self.decode(tokens)
        self.token = self.greedy()
        return (time.perf_counter() - start) * 1000, len(tokens)

    # (milliseconds to the first token, of vision, of the decoder, prompt tokens)
    def ask_image(self, path, question: str) -> tuple[float, float, float, int]:
        mtmd = self.mtmd
        start = time.perf_counter()
        bitmap = mtmd.mtmd_helper_bitmap_init_from_file(self.vision, str(path).encode(), False)
        if bitmap is None:
            sys.exit(f"{path} cannot be read")
        text = mtmd.mtmd_input_text()
        prompt = workload.user_turn(question, mtmd.mtmd_default_marker().decode()).encode()
        text.text, text.text_len = prompt, len(prompt)
        text.add_special = False
        text.parse_special = True
        chunks = mtmd.mtmd_input_chunks_init()
        if mtmd.mtmd_tokenize(self.vision, chunks, ctypes.byref(text), (mtmd.mtmd_bitmap_p_ctypes * 1)(bitmap), 1) != 0:
            sys.exit("mtmd_tokenize failed")
        past = self.lib.llama_pos(0)
        vision_ms = text_ms = 0.0
        count = mtmd.mtmd_input_chunks_size(chunks)
        for i in range(count):
            chunk = mtmd.mtmd_input_chunks_get(chunks, i)
            began = time.perf_counter()
            if mtmd.mtmd_input_chunk_get_type(chunk) == mtmd.MTMD_INPUT_CHUNK_TYPE_IMAGE:
                if mtmd.mtmd_encode_chunk(self.vision, chunk) != 0:
                    sys.exit("mtmd_encode_chunk failed")
                encoded = time.perf_counter()
                vision_ms += (encoded - began) * 1000
                began = encoded
                status = mtmd.mtmd_helper_decode_image_chunk(
                    self.vision, self.ctx, chunk, mtmd.mtmd_get_output_embd(self.vision), past, 0, 1024, ctypes.byref(past),
                    mtmd.mtmd_helper_post_decode_callback(), None)
            else:
                status = mtmd.mtmd_helper_eval_chunk_single(self.vision, self.ctx, chunk, past, 0, 1024, i == count - 1,
                                                            ctypes.byref(past))
            if status != 0:
                sys.exit(f"a chunk of the prompt failed with {status}")
            text_ms += (time.perf_counter() - began) * 1000
        self.token = self.greedy()
        ttft_ms = (time.perf_counter() - start) * 1000
        tokens = mtmd.mtmd_helper_get_n_tokens(chunks)
        mtmd.mtmd_input_chunks_free(chunks)
        mtmd.mtmd_bitmap_free(bitmap)
        return ttft_ms, vision_ms, text_ms, tokens

    # Tokens a second behind what is in the cache; end tokens are ignored.
    def generate(self, count: int) -> float:
        start = time.perf_counter()
        for _ in range(count):
            self.decode([self.token])
            self.token = self.greedy()
        return count / (time.perf_counter() - start)


def main() -> None:
    args = workload.arguments()
    import llama_cpp

    peer = Peer(args.model, args.threads)
    workload.report_program("llama.cpp", f"llama-cpp-python {llama_cpp.__version__}", weights="Q4_0, vision bf16",
                            system=llama_cpp.llama_print_system_info().decode())
    workload.report("ready_ms", workload.ms_since_process_start())

    decoded = workload.DECODE_TOKENS - 1
    ttft_ms, cold_vision_ms, _, tokens = peer.ask_image(args.pictures / "1.png", workload.image_question(args.seed))
    workload.report("ttft_image_ms", ttft_ms, prompt_tokens=tokens)
    workload.report("ttft_new_process_ms", ttft_ms, keeps="nothing between processes")
    peer.generate(decoded)
    workload.report("peak_rss_mb", workload.peak_rss_mb())
    ttft_ms, _ = peer.ask_text("<|im_end|>\n" + workload.user_turn(workload.second_question(args.seed)))
    workload.report("ttft_second_question_ms", ttft_ms)

    peer.forget()
    _, vision_ms, text_ms, tokens = peer.ask_image(args.pictures / "2.png", workload.image_question(args.seed + 100))
    workload.report("vision_patches_per_s", workload.PATCHES / vision_ms * 1000, ms=round(vision_ms, 1),
                    cold_ms=round(cold_vision_ms, 1))
    workload.report("prefill_789_tokens_per_s", tokens / text_ms * 1000, prompt_tokens=tokens)
    workload.report("decode_800_tokens_per_s", peer.generate(decoded))

    peer.forget()
    ms, tokens = peer.ask_text(workload.user_turn(workload.text_prompt(workload.PREFILL_TOKENS, args.seed)))
    workload.report("prefill_512_tokens_per_s", tokens / ms * 1000, prompt_tokens=tokens)
    peer.forget()
    _, tokens = peer.ask_text(workload.user_turn(workload.text_prompt(workload.SHORT_PROMPT_TOKENS, args.seed)))
    workload.report("decode_short_tokens_per_s", peer.generate(decoded), prompt_tokens=tokens)


if __name__ == "__main__":
    main()
