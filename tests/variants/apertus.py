"""Variants of Apertus."""

VARIANTS = {
  "apertus": dict(  # 8B: untied, llama3 scaling, grouped heads
    model_type="apertus",
    num_attention_heads=4,
    num_key_value_heads=2,
    rope_parameters={
      "rope_type": "llama3",
      "rope_theta": 10_000.0,
      "factor": 8.0,
      "low_freq_factor": 1.0,
      "high_freq_factor": 4.0,
      "original_max_position_embeddings": 16,
    },
    rms_norm_eps=1e-5,
    tie_word_embeddings=False,
  ),
  "apertus_tied": dict(  # heads wider than width / heads, biases
    model_type="apertus",
    num_attention_heads=4,
    num_key_value_heads=1,
    head_dim=12,
    rope_parameters={"rope_type": "linear", "rope_theta": 10_000.0, "factor": 4.0},
    rms_norm_eps=1e-6,
    attention_bias=True,
    tie_word_embeddings=True,
  ),
  "apertus_yarn": dict(
    model_type="apertus",
    num_attention_heads=4,
    num_key_value_heads=4,
    rope_parameters={
      "rope_type": "yarn",
      "rope_theta": 10_000.0,
      "factor": 4.0,
      "original_max_position_embeddings": 16,
      "beta_fast": 1.5,
      "beta_slow": 0.1,
    },
    rms_norm_eps=1e-5,
    tie_word_embeddings=False,
  ),
}
