"""Measures OpenVINO GenAI through its VLMPipeline: one process, one round. Prints the lines of workload.py.

    WORK/openvino/venv/bin/python run_openvino.py MODEL PICTURES --threads 2 --seed 1
"""
import workload

TEMPLATE = ("{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
            "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}")


def main() -> None:
    args = workload.arguments()
    import numpy as np
    import openvino as ov
    import openvino_genai as genai
    from PIL import Image

    scheduler = genai.SchedulerConfig()
    scheduler.enable_prefix_caching = True
    pipe = genai.VLMPipeline(str(args.model), "CPU", scheduler_config=scheduler, INFERENCE_NUM_THREADS=args.threads)
    pipe.get_tokenizer().set_chat_template(TEMPLATE)
    workload.report_program("OpenVINO GenAI", genai.__version__.split("-")[0], weights="INT4, groups of 128")
    workload.report("ready_ms", workload.ms_since_process_start())

    config = pipe.get_generation_config()
    config.max_new_tokens = workload.DECODE_TOKENS
    config.ignore_eos = True
    config.do_sample = False

    def picture(name: str) -> "ov.Tensor":
        return ov.Tensor(np.asarray(Image.open(args.pictures / name).convert("RGB"))[None])

    def ask(text: str, images: list, tokens: int = workload.DECODE_TOKENS):
        config.max_new_tokens = tokens
        return pipe.generate(text, images=images, generation_config=config).perf_metrics

    def prefill(metrics) -> tuple[float, int]:
        ms = metrics.get_ttft().mean - metrics.get_prepare_embeddings_duration().mean
        return metrics.get_num_input_tokens() / ms * 1000, metrics.get_num_input_tokens()

    cold = ask(workload.image_question(args.seed), [picture("1.png")])
    workload.report("ttft_image_ms", cold.get_ttft().mean, prompt_tokens=cold.get_num_input_tokens())
    workload.report("ttft_new_process_ms", cold.get_ttft().mean, keeps="nothing between processes")
    workload.report("peak_rss_mb", workload.peak_rss_mb())
    # Another question in a request of its own: its prefix cache finds the picture there. In a ChatHistory's second turn it
    # does not, and the decoder computes the picture again.
    again = ask(workload.image_question(args.seed + 50), [picture("1.png")])
    workload.report("ttft_second_question_ms", again.get_ttft().mean, prompt_tokens=again.get_num_input_tokens(),
                    prepare_embeddings_ms=round(again.get_prepare_embeddings_duration().mean, 1))

    # Another picture: the first answer's one-time work is over, and no cache knows it.
    warm = ask(workload.image_question(args.seed + 100), [picture("2.png")])
    vision_ms = warm.get_prepare_embeddings_duration().mean
    workload.report("vision_patches_per_s", workload.PATCHES / vision_ms * 1000, ms=round(vision_ms, 1),
                    cold_ms=round(cold.get_prepare_embeddings_duration().mean, 1))
    speed, tokens = prefill(warm)
    workload.report("prefill_789_tokens_per_s", speed, prompt_tokens=tokens)
    workload.report("decode_800_tokens_per_s", 1000 / warm.get_tpot().mean)

    speed, tokens = prefill(ask(workload.text_prompt(workload.PREFILL_TOKENS, args.seed), [], 2))
    workload.report("prefill_512_tokens_per_s", speed, prompt_tokens=tokens)
    short = ask(workload.text_prompt(workload.SHORT_PROMPT_TOKENS, args.seed), [])
    workload.report("decode_short_tokens_per_s", 1000 / short.get_tpot().mean, prompt_tokens=short.get_num_input_tokens())


if __name__ == "__main__":
    main()
