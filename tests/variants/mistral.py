"""Variants of Mistral and Ministral 3."""

from tests.variants.common import PLAIN_ROPE

_MINISTRAL_ROPE = {
  "rope_type": "yarn",
  "rope_theta": 10_000.0,
  "factor": 8.0,
  "original_max_position_embeddings": 16,
  "max_position_embeddings": 128,
  "beta_fast": 2.0,
  "beta_slow": 0.25,
  "mscale": 1.0,
  "mscale_all_dim": 1.0,
  "llama_4_scaling_beta": 0.1,
}

VARIANTS = {
  "mistral": dict(  # 7B v0.1: windows everywhere
    model_type="mistral",
    num_attention_heads=4,
    num_key_value_heads=2,
    rope_parameters=PLAIN_ROPE,
    rms_norm_eps=1e-5,
    sliding_window=5,
    tie_word_embeddings=False,
  ),
  "mistral_wide_heads": dict(  # Nemo: no window, heads wider than width / heads; here tied
    model_type="mistral",
    num_attention_heads=4,
    num_key_value_heads=1,
    head_dim=12,
    rope_parameters={"rope_type": "default", "rope_theta": 1_000_000.0},
    rms_norm_eps=1e-5,
    sliding_window=None,
    tie_word_embeddings=True,
  ),
  "mistral_yarn": dict(
    model_type="mistral",
    num_attention_heads=4,
    num_key_value_heads=4,
    head_dim=16,
    rope_parameters={
      "rope_type": "yarn",
      "rope_theta": 10_000.0,
      "factor": 8.0,
      "original_max_position_embeddings": 16,
      "beta_fast": 2.0,
      "beta_slow": 0.25,
    },
    rms_norm_eps=1e-5,
    sliding_window=None,
    tie_word_embeddings=False,
  ),
  "ministral3": dict(  # 3 of 8B: yarn whose mscales cancel, queries that grow with the position
    model_type="ministral3",
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=16,
    rope_parameters=_MINISTRAL_ROPE,
    rms_norm_eps=1e-5,
    tie_word_embeddings=False,
  ),
  "ministral3_tied": dict(  # 3B; an attention factor from different mscales
    model_type="ministral3",
    num_attention_heads=6,
    num_key_value_heads=2,
    head_dim=8,
    rope_parameters=_MINISTRAL_ROPE | {"mscale": 2.0, "llama_4_scaling_beta": 0.3},
    rms_norm_eps=1e-5,
    tie_word_embeddings=True,
  ),
  "ministral3_windows": dict(  # the attention factor as given, a ramp that is not truncated
    model_type="ministral3",
    num_attention_heads=4,
    num_key_value_heads=1,
    head_dim=12,
    rope_parameters=_MINISTRAL_ROPE | {"attention_factor": 1.3, "truncate": False},
    rms_norm_eps=1e-5,
    sliding_window=5,
    tie_word_embeddings=False,
  ),
}
