"""Variants of Mixtral."""

from tests.variants.common import PLAIN_ROPE

VARIANTS = {
  "mixtral": dict(  # 8x7B
    model_type="mixtral",
    num_attention_heads=4,
    num_key_value_heads=2,
    rope_parameters={"rope_type": "default", "rope_theta": 1_000_000.0},
    rms_norm_eps=1e-5,
    num_local_experts=4,
    num_experts_per_tok=2,
    sliding_window=None,
    tie_word_embeddings=False,
  ),
  "mixtral_windows": dict(  # here tied
    model_type="mixtral",
    num_attention_heads=4,
    num_key_value_heads=1,
    rope_parameters=PLAIN_ROPE,
    rms_norm_eps=1e-5,
    intermediate_size=20,
    num_local_experts=6,
    num_experts_per_tok=3,
    sliding_window=5,
    tie_word_embeddings=True,
  ),
  "mixtral_wide_heads": dict(  # rows beyond the original length, all experts at once
    model_type="mixtral",
    num_attention_heads=4,
    num_key_value_heads=4,
    head_dim=12,
    rope_parameters={"rope_type": "linear", "rope_theta": 10_000.0, "factor": 4.0},
    rms_norm_eps=1e-6,
    num_local_experts=3,
    num_experts_per_tok=3,
    sliding_window=None,
    tie_word_embeddings=False,
  ),
}
