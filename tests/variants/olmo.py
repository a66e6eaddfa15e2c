"""Variants of OLMo 2 and 3."""

_YARN = {
  "rope_type": "yarn",
  "rope_theta": 10_000.0,
  "factor": 4.0,
  "original_max_position_embeddings": 16,
  "beta_fast": 1.5,
  "beta_slow": 0.1,
}

VARIANTS = {
  "olmo2": dict(  # 7B
    model_type="olmo2",
    num_attention_heads=4,
    num_key_value_heads=4,
    rope_parameters={"rope_type": "default", "rope_theta": 500_000.0},
    rms_norm_eps=1e-6,
    tie_word_embeddings=False,
  ),
  "olmo2_grouped": dict(  # 32B: grouped heads; here tied, with biases
    model_type="olmo2",
    num_attention_heads=4,
    num_key_value_heads=2,
    rope_parameters={"rope_type": "linear", "rope_theta": 10_000.0, "factor": 4.0},
    rms_norm_eps=1e-5,
    attention_bias=True,
    tie_word_embeddings=True,
  ),
  "olmo2_yarn": dict(
    model_type="olmo2",
    num_attention_heads=4,
    num_key_value_heads=1,
    head_dim=12,
    rope_parameters=_YARN,
    rms_norm_eps=1e-5,
    tie_word_embeddings=False,
  ),
  "olmo3": dict(  # 7B: three windows of four, yarn of the global layers
    model_type="olmo3",
    num_attention_heads=4,
    num_key_value_heads=4,
    num_hidden_layers=4,
    rope_parameters={
      "full_attention": _YARN | {"rope_theta": 500_000.0, "attention_factor": 1.2},
      "sliding_attention": {"rope_type": "default", "rope_theta": 500_000.0},
    },
    rms_norm_eps=1e-6,
    sliding_window=4,
    tie_word_embeddings=False,
  ),
  "olmo3_grouped": dict(  # 32B: grouped heads; here tied, no scaling, the family's own base
    model_type="olmo3",
    num_attention_heads=4,
    num_key_value_heads=2,
    layer_types=["full_attention", "sliding_attention", "full_attention"],
    rms_norm_eps=1e-5,
    sliding_window=5,
    tie_word_embeddings=True,
  ),
  "olmo3_linear": dict(
    model_type="olmo3",
    num_attention_heads=4,
    num_key_value_heads=1,
    layer_types=["sliding_attention", "sliding_attention", "full_attention"],
    rope_parameters={
      "full_attention": {"rope_type": "linear", "rope_theta": 50_000.0, "factor": 4.0},
      "sliding_attention": {"rope_type": "default", "rope_theta": 1_000.0},
    },
    rms_norm_eps=1e-6,
    sliding_window=3,
    attention_bias=True,
    tie_word_embeddings=False,
  ),
}
