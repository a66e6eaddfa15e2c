"""BLOOM and BLOOMZ.

Keys of published configs that change nothing here: attention_softmax_in_fp32 (it always is), offset_alibi
and seq_length (ALiBi has no longest row), pretraining_tp, skip_bias_add, skip_bias_add_qkv and the fusions
(how Megatron computed the same).
"""

from __future__ import annotations

from mlit_jax.errors import UserError
from mlit_jax.model.families.common import require


def bloom(c: dict) -> dict:
  if c.get("slow_but_exact") and c.get("pretraining_tp", 1) > 1:
    # transformers then leaves out the biases of dense and dense_4h_to_h: the model has two meanings.
    raise UserError("not supported: slow_but_exact with pretraining_tp above 1, of bloom")
  width, heads = _either(c, "n_embed", "hidden_size"), _either(c, "n_head", "num_attention_heads")
  if width % heads:
    raise UserError(f"not supported: {heads} heads of {width} / {heads}, of bloom")
  require(c, n_inner=(None, 4 * width))
  return {
    "family": "bloom",
    "vocab_size": c["vocab_size"],
    "d_model": width,
    "num_layers": _either(c, "n_layer", "num_hidden_layers"),
    "num_heads": heads,
    "num_kv_heads": heads,
    "head_dim": width // heads,
    "d_ff": 4 * width,
    "norm": "layer",
    "norm_bias": True,
    "norm_eps": c.get("layer_norm_epsilon", 1e-5),
    "embed_norm": True,
    "residual_after_norm": bool(c.get("apply_residual_connection_post_layernorm")),
    "activation": "gelu_tanh",  # with sqrt(2 / pi) to eight digits: in float32 the same number
    "gated": False,
    "alibi": True,
    "attn_bias": True,
    "out_bias": True,
    "mlp_bias": True,
    "tied": bool(c.get("tie_word_embeddings", True)),
  }


def _either(c: dict, old: str, new: str) -> int:
  """The value under one of its two names; published configs mix them."""
  values = [c[key] for key in (old, new) if c.get(key) is not None]
  if len(set(values)) > 1:
    raise UserError(f"not supported: {old} = {values[0]} beside {new} = {values[1]}, of bloom")
  return values[0] if values else c[new]
