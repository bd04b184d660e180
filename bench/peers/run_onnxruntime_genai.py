"""Measures ONNX Runtime GenAI through its Generator: one process, one round. Prints the lines of workload.py.

Its model builder exports the text part alone, so the picture's rows are unavailable and the prompt of 789 tokens is text.

    WORK/onnxruntime_genai/venv/bin/python run_onnxruntime_genai.py MODEL PICTURES --threads 2 --seed 1
"""
import json
import time

import workload

NO_VISION = "its model builder exports no vision for this model"


def main() -> None:
    args = workload.arguments()
    import onnxruntime_genai as genai

    config = genai.Config(str(args.model))
    config.overlay(json.dumps({"model": {"decoder": {"session_options": {"intra_op_num_threads": args.threads}}}}))
    model = genai.Model(config)
    tokenizer = genai.Tokenizer(model)
    workload.report_program("ONNX Runtime GenAI", genai.__version__, weights="INT4, blocks of 32", part="text alone")
    workload.report("ready_ms", workload.ms_since_process_start(), part="text alone")

    # (prefill tokens a second, decode tokens a second, prompt tokens)
    def ask(prompt_tokens: int, seed: int, decoded: int) -> tuple[float, float, int]:
        tokens = tokenizer.encode(workload.user_turn(workload.text_prompt(prompt_tokens, seed)))
        params = genai.GeneratorParams(model)
        length = len(tokens) + decoded + 1
        params.set_search_options(max_length=length, min_length=length, do_sample=False)
        generator = genai.Generator(model, params)
        start = time.perf_counter()
        generator.append_tokens(tokens)
        generator.generate_next_token()
        first = time.perf_counter()
        for _ in range(decoded):
            generator.generate_next_token()
        end = time.perf_counter()
        return len(tokens) / (first - start), decoded / (end - first) if decoded else 0.0, len(tokens)

    decoded = workload.DECODE_TOKENS - 1
    _, short, tokens = ask(workload.SHORT_PROMPT_TOKENS, args.seed, decoded)
    workload.report("decode_short_tokens_per_s", short, prompt_tokens=tokens)
    prefill, _, tokens = ask(workload.PREFILL_TOKENS, args.seed, 0)
    workload.report("prefill_512_tokens_per_s", prefill, prompt_tokens=tokens)
    prefill, long, tokens = ask(workload.IMAGE_PROMPT_TOKENS, args.seed, decoded)
    workload.report("prefill_789_tokens_per_s", prefill, prompt_tokens=tokens, prompt="text")
    workload.report("decode_800_tokens_per_s", long)
    workload.report_unavailable(NO_VISION, "vision_patches_per_s", "ttft_image_ms", "ttft_second_question_ms",
                                "ttft_new_process_ms", "peak_rss_mb")


if __name__ == "__main__":
    main()
