"""The small model's configuration, as written to config.json."""
import json

VISION = dict(depth=4, hidden_size=192, intermediate_size=512, num_heads=6, out_hidden_size=192, in_channels=3, patch_size=16,
              temporal_patch_size=2, spatial_merge_size=2, num_position_embeddings=256, deepstack_visual_indexes=[1, 2, 3],
              hidden_act="gelu_pytorch_tanh", initializer_range=0.02, model_type="qwen3_vl")
TEXT = dict(hidden_size=192, intermediate_size=512, num_hidden_layers=4, num_attention_heads=6, num_key_value_heads=2, head_dim=32,
            hidden_act="silu", max_position_embeddings=4096, rms_norm_eps=1e-6, rope_theta=10000.0,
            rope_scaling=dict(rope_type="default", mrope_interleaved=True, mrope_section=[6, 5, 5]), attention_bias=False,
            attention_dropout=0.0, tie_word_embeddings=True, use_cache=True, initializer_range=0.02, dtype="bfloat16",
            model_type="qwen3_vl_text")
MIN_PIXELS, MAX_PIXELS = 9216, 40960        # 96 x 96 .. 160 x 256: the range that training covers; larger pictures are shrunk
VOCAB_MULTIPLE = 64


def make(tokenizer_folder):
    t = json.load(open(f"{tokenizer_folder}/tokenizer.json", encoding="utf-8"))
    added = {a["content"]: a["id"] for a in t["added_tokens"]}
    n = max(added.values()) + 1
    n = -(-n // VOCAB_MULTIPLE) * VOCAB_MULTIPLE
    text = dict(TEXT, vocab_size=n, bos_token_id=added["<|endoftext|>"], eos_token_id=added["<|im_end|>"])
    return dict(architectures=["Qwen3VLForConditionalGeneration"], model_type="qwen3_vl", dtype="bfloat16",
                image_token_id=added["<|image_pad|>"], video_token_id=added["<|video_pad|>"],
                vision_start_token_id=added["<|vision_start|>"], vision_end_token_id=added["<|vision_end|>"],
                tie_word_embeddings=True, text_config=text, vision_config=dict(VISION))
