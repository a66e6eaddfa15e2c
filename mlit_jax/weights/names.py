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
  ("blocks/attn/q_norm/scale_NH", _LAYER + "self_attn.q_norm.weight", "(N H) -> N H"),
  ("blocks/attn/k_norm/scale_KH", _LAYER + "self_attn.k_norm.weight", "(K H) -> K H"),
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
_BLOOM_LAYER = "transformer.h.{layer}."
_BLOOM_QKV = _BLOOM_LAYER + "self_attention.query_key_value."  # of each head, its q, k and v
BLOOM = [
  ("embed/table_VD", "transformer.word_embeddings.weight", "V D -> V D"),
  ("embed_norm/scale_D", "transformer.word_embeddings_layernorm.weight", "D -> D"),
  ("embed_norm/bias_D", "transformer.word_embeddings_layernorm.bias", "D -> D"),
  ("blocks/attn_norm/scale_D", _BLOOM_LAYER + "input_layernorm.weight", "D -> D"),
  ("blocks/attn_norm/bias_D", _BLOOM_LAYER + "input_layernorm.bias", "D -> D"),
  ("blocks/attn/q_DNH", _BLOOM_QKV + "weight", "(N 0/3 H) D -> D N H"),
  ("blocks/attn/k_DKH", _BLOOM_QKV + "weight", "(K 1/3 H) D -> D K H"),
  ("blocks/attn/v_DKH", _BLOOM_QKV + "weight", "(K 2/3 H) D -> D K H"),
  ("blocks/attn/q_bias_NH", _BLOOM_QKV + "bias", "(N 0/3 H) -> N H"),
  ("blocks/attn/k_bias_KH", _BLOOM_QKV + "bias", "(K 1/3 H) -> K H"),
  ("blocks/attn/v_bias_KH", _BLOOM_QKV + "bias", "(K 2/3 H) -> K H"),
  ("blocks/attn/o_NHD", _BLOOM_LAYER + "self_attention.dense.weight", "D (N H) -> N H D"),
  ("blocks/attn/o_bias_D", _BLOOM_LAYER + "self_attention.dense.bias", "D -> D"),
  ("blocks/mlp_norm/scale_D", _BLOOM_LAYER + "post_attention_layernorm.weight", "D -> D"),
  ("blocks/mlp_norm/bias_D", _BLOOM_LAYER + "post_attention_layernorm.bias", "D -> D"),
  ("blocks/mlp/up_DF", _BLOOM_LAYER + "mlp.dense_h_to_4h.weight", "F D -> D F"),
  ("blocks/mlp/up_bias_F", _BLOOM_LAYER + "mlp.dense_h_to_4h.bias", "F -> F"),
  ("blocks/mlp/down_FD", _BLOOM_LAYER + "mlp.dense_4h_to_h.weight", "D F -> F D"),
  ("blocks/mlp/down_bias_D", _BLOOM_LAYER + "mlp.dense_4h_to_h.bias", "D -> D"),
  ("final_norm/scale_D", "transformer.ln_f.weight", "D -> D"),
  ("final_norm/bias_D", "transformer.ln_f.bias", "D -> D"),
  ("head/kernel_DV", HEAD, "V D -> D V"),
]
# Families whose names have nothing in common with Llama's.
OWN = {"bloom": BLOOM}
# Rows of one family, in place of those above that name the same parameter. Rows of one tensor lie one after
# the other in its first axis.
OF_FAMILY: dict[str, list[tuple[str, str, str]]] = {
  "apertus": [
    ("blocks/attn_norm/scale_D", _LAYER + "attention_layernorm.weight", "D -> D"),
    ("blocks/mlp_norm/scale_D", _LAYER + "feedforward_layernorm.weight", "D -> D"),
    ("blocks/mlp/xielu/alpha_p", _LAYER + "mlp.act_fn.alpha_p", "(0/1) -> "),
    ("blocks/mlp/xielu/alpha_n", _LAYER + "mlp.act_fn.alpha_n", "(0/1) -> "),
    ("blocks/mlp/xielu/beta", _LAYER + "mlp.act_fn.beta", " -> "),
    ("blocks/mlp/xielu/eps", _LAYER + "mlp.act_fn.eps", " -> "),
  ],
  "cohere": [  # a scale per head, where the others have one for all
    ("blocks/attn/q_norm/scale_NH", _LAYER + "self_attn.q_norm.weight", "N H -> N H"),
    ("blocks/attn/k_norm/scale_KH", _LAYER + "self_attn.k_norm.weight", "K H -> K H"),
  ],
  "mixtral": [
    ("blocks/moe/router_DE", _LAYER + "block_sparse_moe.gate.weight", "E D -> D E"),
    ("blocks/moe/gate_EDF", _LAYER + "block_sparse_moe.experts.{expert}.w1.weight", "F D -> D F"),
    ("blocks/moe/up_EDF", _LAYER + "block_sparse_moe.experts.{expert}.w3.weight", "F D -> D F"),
    ("blocks/moe/down_EFD", _LAYER + "block_sparse_moe.experts.{expert}.w2.weight", "D F -> F D"),
  ],
  "phi3": [
    ("blocks/attn/q_DNH", _LAYER + "self_attn.qkv_proj.weight", "(N H) D -> D N H"),
    ("blocks/attn/k_DKH", _LAYER + "self_attn.qkv_proj.weight", "(K H) D -> D K H"),
    ("blocks/attn/v_DKH", _LAYER + "self_attn.qkv_proj.weight", "(K H) D -> D K H"),
    ("blocks/mlp/gate_DF", _LAYER + "mlp.gate_up_proj.weight", "F D -> D F"),
    ("blocks/mlp/up_DF", _LAYER + "mlp.gate_up_proj.weight", "F D -> D F"),
  ],
  "qwen3_moe": [
    ("blocks/moe/router_DE", _LAYER + "mlp.gate.weight", "E D -> D E"),
    ("blocks/moe/gate_EDF", _LAYER + "mlp.experts.{expert}.gate_proj.weight", "F D -> D F"),
    ("blocks/moe/up_EDF", _LAYER + "mlp.experts.{expert}.up_proj.weight", "F D -> D F"),
    ("blocks/moe/down_EFD", _LAYER + "mlp.experts.{expert}.down_proj.weight", "D F -> F D"),
  ],
}
# Where one family's folders begin their names in several ways: the beginning that the tables above use,
# and after it those that stand in its place.
PREFIXES: dict[str, tuple[str, ...]] = {
  "bloom": ("transformer.", ""),
  "gemma3": ("language_model.model.", "model.language_model."),  # the hub; transformers 5 in memory
}
# Models that hold a decoder among other parts: what stands before the tables' names in their folders,
# and how the names of the other parts begin, with or without "model." before. Those are not tuned and
# exported as they are.
WITHIN = {"gemma3": "language_model."}
CARRIED = {"gemma3": ("vision_tower.", "multi_modal_projector.")}
# The head's name where it does not stay HEAD, by the prefix of the others.
_HEADS = {"language_model.model.": "language_model." + HEAD}
# Buffers that old exports carry and that follow from config.json.
SKIPPED = [
  re.compile(r"model\.layers\.\d+\.self_attn\.rotary_emb\.inv_freq"),
  re.compile(r"model\.rotary_emb\.inv_freq"),
]


def of_family(cfg: DecoderConfig) -> list[tuple[str, str, str]]:
  """The rows that the config's family may use."""
  if cfg.family in OWN:
    return OWN[cfg.family]
  own = OF_FAMILY.get(cfg.family, [])
  replaced = {ours for ours, _, _ in own}
  shared = COMMON + (PRE_AND_POST_NORMS if cfg.post_norms else PRE_NORMS)
  within = WITHIN.get(cfg.family, "")
  rows = [row for row in shared if row[0] not in replaced] + own
  return [(ours, within + theirs, pattern) for ours, theirs, pattern in rows]


def prefix_of(cfg: DecoderConfig, found: Iterable[str]) -> str:
  """How the names of a folder begin, of the family's PREFIXES; the first of them if none fits."""
  prefixes = PREFIXES.get(cfg.family, ("",))
  found = list(found)
  longest_first = sorted(prefixes, key=len, reverse=True)
  return next((p for p in longest_first if any(n.startswith(p) for n in found)), prefixes[0])


def spell(cfg: DecoderConfig, name: str, prefix: str | None) -> str:
  """A name of the tables as a folder with this prefix has it."""
  usual = PREFIXES.get(cfg.family, ("",))[0]
  if prefix is None or prefix == usual:
    return name
  if name == head(usual):
    return head(prefix)
  return prefix + name.removeprefix(usual) if name.startswith(usual) else name


def head(prefix: str) -> str:
  """The head's name in a folder with this prefix."""
  return _HEADS.get(prefix, HEAD)


def is_carried(family: str, name: str) -> bool:
  """Whether their tensor is of a part that is not tuned, but exported as it is."""
  return name.removeprefix("model.").startswith(CARRIED.get(family, ()))


def is_skipped(name: str) -> bool:
  """Whether their tensor is a buffer that may be left out."""
  return any(pattern.fullmatch(name) for pattern in SKIPPED)
