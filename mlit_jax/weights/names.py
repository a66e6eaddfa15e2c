"""The weight names of every family: ours, Hugging Face's, and the pattern between them (see table.py).

No other place knows Hugging Face names. A row is used where the decoder has that parameter.
"""

import re
from collections.abc import Iterable

from mlit_jax.model.config import DecoderConfig

EMBEDDING = "model.embed_tokens.weight"
HEAD = "lm_head.weight"
_LAYER = "model.layers.{layer}."

COMMON = [
  # ours, Hugging Face, theirs -> ours
  ("embed/table_VD", EMBEDDING, "V D -> V D"),
  ("blocks/attn_norm/scale_D", _LAYER + "input_layernorm.weight", "D -> D"),
  ("blocks/attn/q_DNH", _LAYER + "self_attn.q_proj.weight", "(N H) D -> D N H"),
  ("blocks/attn/k_DKH", _LAYER + "self_attn.k_proj.weight", "(K H) D -> D K H"),
  ("blocks/attn/v_DKH", _LAYER + "self_attn.v_proj.weight", "(K H) D -> D K H"),
  ("blocks/attn/o_NHD", _LAYER + "self_attn.o_proj.weight", "D (N H) -> N H D"),
  ("blocks/attn/q_bias_NH", _LAYER + "self_attn.q_proj.bias", "(N H) -> N H"),
  ("blocks/attn/k_bias_KH", _LAYER + "self_attn.k_proj.bias", "(K H) -> K H"),
  ("blocks/attn/v_bias_KH", _LAYER + "self_attn.v_proj.bias", "(K H) -> K H"),
  ("blocks/attn/o_bias_D", _LAYER + "self_attn.o_proj.bias", "D -> D"),
  ("blocks/attn/q_norm/scale_H", _LAYER + "self_attn.q_norm.weight", "H -> H"),
  ("blocks/attn/k_norm/scale_H", _LAYER + "self_attn.k_norm.weight", "H -> H"),
  ("blocks/mlp/gate_DF", _LAYER + "mlp.gate_proj.weight", "F D -> D F"),
  ("blocks/mlp/up_DF", _LAYER + "mlp.up_proj.weight", "F D -> D F"),
  ("blocks/mlp/down_FD", _LAYER + "mlp.down_proj.weight", "D F -> F D"),
  ("blocks/mlp/gate_bias_F", _LAYER + "mlp.gate_proj.bias", "F -> F"),
  ("blocks/mlp/up_bias_F", _LAYER + "mlp.up_proj.bias", "F -> F"),
  ("blocks/mlp/down_bias_D", _LAYER + "mlp.down_proj.bias", "D -> D"),
  ("final_norm/scale_D", "model.norm.weight", "D -> D"),
  ("head/kernel_DV", HEAD, "V D -> D V"),
]
# The same name means two things: Llama's norm before the MLP is Gemma's norm after attention.
PRE_NORMS = [
  ("blocks/mlp_norm/scale_D", _LAYER + "post_attention_layernorm.weight", "D -> D"),
]
PRE_AND_POST_NORMS = [
  ("blocks/post_attn_norm/scale_D", _LAYER + "post_attention_layernorm.weight", "D -> D"),
  ("blocks/mlp_norm/scale_D", _LAYER + "pre_feedforward_layernorm.weight", "D -> D"),
  ("blocks/post_mlp_norm/scale_D", _LAYER + "post_feedforward_layernorm.weight", "D -> D"),
]
EXPERTS = [
  ("blocks/moe/router_DE", _LAYER + "mlp.gate.weight", "E D -> D E"),
  ("blocks/moe/gate_EDF", _LAYER + "mlp.experts.{expert}.gate_proj.weight", "F D -> D F"),
  ("blocks/moe/up_EDF", _LAYER + "mlp.experts.{expert}.up_proj.weight", "F D -> D F"),
  ("blocks/moe/down_EFD", _LAYER + "mlp.experts.{expert}.down_proj.weight", "D F -> F D"),
]
MIXTRAL_EXPERTS = [
  ("blocks/moe/router_DE", _LAYER + "block_sparse_moe.gate.weight", "E D -> D E"),
  ("blocks/moe/gate_EDF", _LAYER + "block_sparse_moe.experts.{expert}.w1.weight", "F D -> D F"),
  ("blocks/moe/up_EDF", _LAYER + "block_sparse_moe.experts.{expert}.w3.weight", "F D -> D F"),
  ("blocks/moe/down_EFD", _LAYER + "block_sparse_moe.experts.{expert}.w2.weight", "D F -> F D"),
]
# Where one family's folders begin their names in several ways: the beginning that the tables above use,
# and after it those that stand in its place.
PREFIXES: dict[str, tuple[str, ...]] = {}
# Buffers that old exports carry and that follow from config.json.
SKIPPED = [
  re.compile(r"model\.layers\.\d+\.self_attn\.rotary_emb\.inv_freq"),
  re.compile(r"model\.rotary_emb\.inv_freq"),
]


def of_family(cfg: DecoderConfig) -> list[tuple[str, str, str]]:
  """The rows that the config's family may use."""
  rows = COMMON + (PRE_AND_POST_NORMS if cfg.post_norms else PRE_NORMS)
  return rows + (MIXTRAL_EXPERTS if cfg.family == "mixtral" else EXPERTS)


def prefix_of(cfg: DecoderConfig, found: Iterable[str]) -> str:
  """How the names of a folder begin, of the family's PREFIXES; the first of them if none fits."""
  prefixes = PREFIXES.get(cfg.family, ("",))
  found = list(found)
  longest_first = sorted(prefixes, key=len, reverse=True)
  return next((p for p in longest_first if any(n.startswith(p) for n in found)), prefixes[0])


def spell(cfg: DecoderConfig, name: str, prefix: str | None) -> str:
  """A name of the tables as a folder with this prefix has it."""
  usual = PREFIXES.get(cfg.family, ("",))[0]
  if prefix is None or prefix == usual or not name.startswith(usual):
    return name
  return prefix + name.removeprefix(usual)


def is_skipped(name: str) -> bool:
  """Whether their tensor is a buffer that may be left out."""
  return any(pattern.fullmatch(name) for pattern in SKIPPED)
