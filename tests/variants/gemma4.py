"""Variants of Gemma 4: what differs between its layers, and what the last of them borrow."""

from tests.variants.common import VOCAB_SIZE


def _layers(pattern: str) -> list[str]:
  """ "llg": two layers with a window, one without."""
  return [{"l": "sliding_attention", "g": "full_attention"}[letter] for letter in pattern]


_ROPE = {
  "sliding_attention": {"rope_type": "default", "rope_theta": 10_000.0},
  "full_attention": {
    "rope_type": "proportional",
    "rope_theta": 1_000_000.0,
    "partial_rotary_factor": 0.25,
  },
}
VARIANTS = {
  "gemma4_text": dict(  # 31B: a repeated pattern, keys as values in the global layers
    model_type="gemma4_text",
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=12,
    global_head_dim=24,
    num_global_key_value_heads=1,
    attention_k_eq_v=True,
    num_hidden_layers=6,
    layer_types=_layers("llgllg"),
    rope_parameters=_ROPE,
    sliding_window=4,
    final_logit_softcapping=3.0,
    hidden_size_per_layer_input=0,
    use_bidirectional_attention="vision",
    tie_word_embeddings=True,
  ),
  "gemma4_text_borrowing": dict(  # E2B: a second embedding, keys and values of earlier layers
    model_type="gemma4_text",
    num_attention_heads=4,
    num_key_value_heads=1,
    head_dim=8,
    global_head_dim=16,
    num_hidden_layers=10,
    layer_types=_layers("lglglllgll"),  # the last one is made global
    rope_parameters=_ROPE,
    sliding_window=3,
    final_logit_softcapping=4.0,
    hidden_size_per_layer_input=14,
    vocab_size_per_layer_input=VOCAB_SIZE,
    num_kv_shared_layers=4,
    use_double_wide_mlp=True,
    tie_word_embeddings=True,
  ),
  "gemma4_text_untied": dict(  # default pattern: one global layer, the last; all heads alike
    model_type="gemma4_text",
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=16,
    global_head_dim=16,
    num_hidden_layers=3,
    rope_parameters={
      "sliding_attention": {"rope_type": "default", "rope_theta": 1_000.0},
      "full_attention": {"rope_type": "linear", "rope_theta": 500_000.0, "factor": 4.0},
    },
    rms_norm_eps=1e-5,
    sliding_window=5,
    hidden_size_per_layer_input=10,
    vocab_size_per_layer_input=VOCAB_SIZE,
    tie_word_embeddings=False,
  ),
  "gemma4_text_irregular": dict(  # no pattern; keys as values and borrowing at once, single MLPs
    model_type="gemma4_text",
    num_attention_heads=4,
    num_key_value_heads=4,
    head_dim=8,
    global_head_dim=12,
    num_global_key_value_heads=2,
    attention_k_eq_v=True,
    num_hidden_layers=8,
    layer_types=_layers("gllglglg"),
    rope_parameters={
      "sliding_attention": {"rope_type": "default", "rope_theta": 5_000.0},
      "full_attention": {
        "rope_type": "proportional",
        "rope_theta": 100_000.0,
        "partial_rotary_factor": 0.5,
        "factor": 2.0,
      },
    },
    sliding_window=4,
    hidden_size_per_layer_input=20,
    vocab_size_per_layer_input=VOCAB_SIZE,
    num_kv_shared_layers=2,
    tie_word_embeddings=True,
  ),
}

_VISION = {
  "model_type": "gemma4_vision",
  "hidden_size": 16,
  "intermediate_size": 24,
  "num_hidden_layers": 1,
  "num_attention_heads": 2,
  "num_key_value_heads": 2,
  "head_dim": 8,
  "patch_size": 4,
  "position_embedding_size": 16,
}
_AUDIO = {
  "model_type": "gemma4_audio",
  "hidden_size": 16,
  "num_hidden_layers": 1,
  "num_attention_heads": 2,
  "subsampling_conv_channels": [4, 2],
  "output_proj_dims": 12,
}
_MEDIA = {"image_token_id": 300, "audio_token_id": 301, "video_token_id": 302}


def _seeing(variant: str, **changes) -> dict:
  """The text tower of a variant among the other parts."""
  text = VARIANTS[variant] | {"pad_token_id": 319}  # what stands in for pictures: must be there
  return dict(model_type="gemma4", text_config=text, vision_config=_VISION, **_MEDIA) | changes


VARIANTS |= {
  "gemma4": _seeing("gemma4_text"),  # 31B
  "gemma4_borrowing": _seeing("gemma4_text_borrowing", audio_config=_AUDIO),  # E2B
  "gemma4_untied": _seeing(
    "gemma4_text_untied",
    tie_word_embeddings=False,
    vision_config=_VISION | {"use_clipped_linears": True},
  ),
}
