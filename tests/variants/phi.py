"""Variants of Phi-3, Phi-4 and Phi-4-mini."""

from tests.variants.common import PLAIN_ROPE

# Short, so that the tests' rows reach beyond it.
_ORIGINAL = 40


def _longrope(frequencies, **more):
  """Factors that differ from each other, as the published ones do."""
  return {
    "rope_type": "longrope",
    "rope_theta": 10_000.0,
    "short_factor": [1.0 + 0.05 * i for i in range(frequencies)],
    "long_factor": [1.0 + 0.4 * i * i for i in range(frequencies)],
    "original_max_position_embeddings": _ORIGINAL,
    **more,
  }


VARIANTS = {
  "phi3": dict(  # Phi-3-mini-4k: untied, a kv head per head, windows everywhere
    model_type="phi3",
    num_attention_heads=4,
    num_key_value_heads=4,
    rope_parameters=PLAIN_ROPE,
    rms_norm_eps=1e-5,
    sliding_window=5,
    tie_word_embeddings=False,
  ),
  "phi3_grouped": dict(  # Phi-4 of 14B: no window, grouped heads; here wider than width / heads
    model_type="phi3",
    num_attention_heads=6,
    num_key_value_heads=2,
    head_dim=12,
    rope_parameters={"rope_type": "default", "rope_theta": 250_000.0, "partial_rotary_factor": 0.5},
    rms_norm_eps=1e-4,
    sliding_window=None,
    tie_word_embeddings=False,
  ),
  "phi3_longrope": dict(  # Phi-4-mini: tied, grouped heads of which three quarters turn
    model_type="phi3",
    num_attention_heads=2,
    num_key_value_heads=1,
    original_max_position_embeddings=_ORIGINAL,
    rope_parameters=_longrope(6, partial_rotary_factor=0.75),
    rms_norm_eps=1e-5,
    sliding_window=600,
    tie_word_embeddings=True,
  ),
  "phi3_longrope_factor": dict(  # Phi-3-mini-128k; here with the attention factor given
    model_type="phi3",
    num_attention_heads=4,
    num_key_value_heads=2,
    original_max_position_embeddings=_ORIGINAL,
    rope_parameters=_longrope(4, attention_factor=1.3),
    rms_norm_eps=1e-5,
    sliding_window=None,
    tie_word_embeddings=False,
  ),
}
