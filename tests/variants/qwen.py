"""Variants of Qwen 2 and 3."""

from tests.variants.common import PLAIN_ROPE

VARIANTS = {
  "qwen2": dict(  # 2.5 of 0.5B: tied; the window of the published configs, which is not used
    model_type="qwen2",
    num_attention_heads=4,
    num_key_value_heads=2,
    rope_parameters={"rope_type": "default", "rope_theta": 1_000_000.0},
    rms_norm_eps=1e-6,
    use_sliding_window=False,
    sliding_window=4,
    tie_word_embeddings=True,
  ),
  "qwen2_untied": dict(  # 2.5 of 7B
    model_type="qwen2",
    num_attention_heads=4,
    num_key_value_heads=1,
    rope_parameters={"rope_type": "linear", "rope_theta": 10_000.0, "factor": 4.0},
    rms_norm_eps=1e-5,
    tie_word_embeddings=False,
  ),
  "qwen2_windows": dict(  # windows of the upper layers
    model_type="qwen2",
    num_attention_heads=4,
    num_key_value_heads=4,
    rope_parameters=PLAIN_ROPE,
    rms_norm_eps=1e-6,
    use_sliding_window=True,
    sliding_window=4,
    max_window_layers=1,
    tie_word_embeddings=False,
  ),
  "qwen3": dict(  # 0.6B: tied, heads wider than width / heads
    model_type="qwen3",
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=16,
    rope_parameters={"rope_type": "default", "rope_theta": 1_000_000.0},
    rms_norm_eps=1e-6,
    tie_word_embeddings=True,
  ),
  "qwen3_untied": dict(
    model_type="qwen3",
    num_attention_heads=6,
    num_key_value_heads=2,
    head_dim=8,
    rope_parameters=PLAIN_ROPE,
    rms_norm_eps=1e-6,
    tie_word_embeddings=False,
  ),
  "qwen3_linear": dict(  # rows beyond the original length, a kv head per head
    model_type="qwen3",
    num_attention_heads=4,
    num_key_value_heads=4,
    head_dim=12,
    rope_parameters={"rope_type": "linear", "rope_theta": 10_000.0, "factor": 4.0},
    rms_norm_eps=1e-5,
    tie_word_embeddings=False,
  ),
}
