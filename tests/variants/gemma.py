"""Variants of Gemma 2 and 3."""

from tests.variants.common import PLAIN_ROPE

_GEMMA_ROPE = {
  "full_attention": {"rope_type": "linear", "rope_theta": 1_000_000.0, "factor": 8.0},
  "sliding_attention": {"rope_type": "default", "rope_theta": 10_000.0},
}

VARIANTS = {
  "gemma2": dict(  # 2B: both caps, every second layer with a window
    model_type="gemma2",
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=16,
    num_hidden_layers=4,
    rope_parameters=PLAIN_ROPE,
    rms_norm_eps=1e-6,
    sliding_window=4,
    query_pre_attn_scalar=24,
    attn_logit_softcapping=3.0,
    final_logit_softcapping=4.0,
    tie_word_embeddings=True,
  ),
  "gemma2_listed": dict(
    model_type="gemma2",
    num_attention_heads=4,
    num_key_value_heads=1,
    head_dim=12,
    layer_types=["full_attention", "sliding_attention", "sliding_attention"],
    rope_parameters={"rope_type": "linear", "rope_theta": 10_000.0, "factor": 4.0},
    rms_norm_eps=1e-6,
    sliding_window=5,
    query_pre_attn_scalar=8,
    attn_logit_softcapping=2.0,
    final_logit_softcapping=None,
    tie_word_embeddings=False,
  ),
  "gemma2_uncapped": dict(
    model_type="gemma2",
    num_attention_heads=4,
    num_key_value_heads=4,
    head_dim=8,
    rope_parameters=PLAIN_ROPE,
    rms_norm_eps=1e-5,
    sliding_window=3,
    query_pre_attn_scalar=8,
    attn_logit_softcapping=None,
    final_logit_softcapping=3.0,
    tie_word_embeddings=True,
  ),
  "gemma3_text": dict(  # 4B: linear scaling of the global layers, windows of 4
    model_type="gemma3_text",
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=16,
    num_hidden_layers=7,
    rope_parameters=_GEMMA_ROPE,
    rms_norm_eps=1e-6,
    sliding_window=4,
    query_pre_attn_scalar=24,
    tie_word_embeddings=True,
  ),
  "gemma3_text_untied": dict(
    model_type="gemma3_text",
    num_attention_heads=4,
    num_key_value_heads=1,
    head_dim=8,
    layer_types=["sliding_attention", "full_attention", "sliding_attention"],
    rms_norm_eps=1e-6,
    sliding_window=3,
    query_pre_attn_scalar=8,
    tie_word_embeddings=False,
    final_logit_softcapping=3.0,
  ),
}
VARIANTS["gemma3_text_patterned"] = VARIANTS["gemma3_text"] | dict(
  num_key_value_heads=4,
  num_hidden_layers=4,
  layer_types=["full_attention", "sliding_attention", "sliding_attention", "full_attention"],
  rope_parameters={
    "full_attention": {"rope_type": "default", "rope_theta": 500_000.0},
    "sliding_attention": {"rope_type": "default", "rope_theta": 1_000.0},
  },
  sliding_window=5,
)

_VISION = {
  "model_type": "siglip_vision_model",
  "hidden_size": 16,
  "intermediate_size": 24,
  "num_hidden_layers": 1,
  "num_attention_heads": 2,
  "image_size": 16,
  "patch_size": 4,
  "vision_use_head": False,
}
_PICTURES = {"vision_config": _VISION, "mm_tokens_per_image": 4, "image_token_index": 300}
VARIANTS |= {
  "gemma3": dict(  # 4B: linear scaling of the global layers; here with another scale of queries
    model_type="gemma3",
    text_config=dict(
      num_attention_heads=4,
      num_key_value_heads=2,
      head_dim=16,
      num_hidden_layers=7,
      rope_parameters=_GEMMA_ROPE,
      sliding_window=4,
      query_pre_attn_scalar=24,
    ),
    **_PICTURES,
  ),
  "gemma3_untied": dict(  # only the outer key says so, as transformers 5 writes it
    model_type="gemma3",
    tie_word_embeddings=False,
    text_config=dict(
      num_attention_heads=4,
      num_key_value_heads=1,
      head_dim=8,
      layer_types=["sliding_attention", "full_attention", "sliding_attention"],
      sliding_window=3,
      query_pre_attn_scalar=8,
    ),
    **_PICTURES,
  ),
  "gemma3_patterned": dict(
    model_type="gemma3",
    text_config=dict(
      num_attention_heads=4,
      num_key_value_heads=4,
      head_dim=16,
      num_hidden_layers=4,
      layer_types=["full_attention", "sliding_attention", "sliding_attention", "full_attention"],
      rope_parameters={
        "full_attention": {"rope_type": "default", "rope_theta": 500_000.0},
        "sliding_attention": {"rope_type": "default", "rope_theta": 1_000.0},
      },
      rms_norm_eps=1e-5,
      sliding_window=5,
      query_pre_attn_scalar=24,
    ),
    **_PICTURES,
  ),
}
