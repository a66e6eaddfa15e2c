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
GEMMA4 = [
  ("layer_inputs/table_VLP", "model.embed_tokens_per_layer.weight", "V (L P) -> V L P"),
  ("layer_inputs/proj_DLP", "model.per_layer_model_projection.weight", "(L P) D -> D L P"),
  ("layer_inputs/norm/scale_P", "model.per_layer_projection_norm.weight", "P -> P"),
  ("blocks/layer_input/gate_DP", _LAYER + "per_layer_input_gate.weight", "P D -> D P"),
  ("blocks/layer_input/out_PD", _LAYER + "per_layer_projection.weight", "D P -> P D"),
  ("blocks/layer_input/norm/scale_D", _LAYER + "post_per_layer_input_norm.weight", "D -> D"),
  ("blocks/layer_scalar", _LAYER + "layer_scalar", "(0/1) -> "),
]
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
  "gemma4": GEMMA4,
  "gemma4_text": GEMMA4,
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
# Where a family's folders begin their names otherwise than the tables above: in place of "model."
# ("transformer." in BLOOM), the usual way first.
PREFIXES: dict[str, tuple[str, ...]] = {
  "bloom": ("transformer.", ""),
  "gemma3": ("language_model.model.", "model.language_model."),  # the hub; transformers 5 in memory
  "gemma4": ("model.language_model.",),
}
# Models that hold a decoder among other parts: how the names of those begin, with or without "model."
# before. They are not tuned and exported as they are. Parts that some sizes lack stand apart.
CARRIED = {
  "gemma3": ("vision_tower.", "multi_modal_projector."),
  "gemma4": ("vision_tower.", "embed_vision."),
}
CARRIED_IF_THERE = {"gemma4": ("audio_tower.", "embed_audio.")}
# The published folders of Gemma 4 hold keys and values of layers that read those of an earlier one.
_BORROWED = re.compile(r".*\blayers\.(\d+)\.self_attn\.(?:k_proj|v_proj|k_norm|v_norm)\.weight")
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
  return [row for row in shared if row[0] not in replaced] + own


def prefix_of(cfg: DecoderConfig, found: Iterable[str]) -> str:
  """How the names of a folder begin, of the family's PREFIXES; the first of them if none fits."""
  prefixes = PREFIXES.get(cfg.family, ("model.",))
  found = list(found)
  longest_first = sorted(prefixes, key=len, reverse=True)
  return next((p for p in longest_first if any(n.startswith(p) for n in found)), prefixes[0])


def spell(cfg: DecoderConfig, name: str, prefix: str | None) -> str:
  """A name of the tables as a folder with this prefix has it, or as the family's folders usually do."""
  prefix = prefix_of(cfg, ()) if prefix is None else prefix
  if name == HEAD:
    return head(prefix)
  of_tables = "transformer." if cfg.family in OWN else "model."
  return prefix + name.removeprefix(of_tables) if name.startswith(of_tables) else name


def head(prefix: str) -> str:
  """The head's name in a folder with this prefix."""
  return _HEADS.get(prefix, HEAD)


def is_carried(cfg: DecoderConfig, name: str) -> bool:
  """Whether their tensor is of a part that is not tuned, but exported as it is."""
  parts = CARRIED.get(cfg.family, ()) + CARRIED_IF_THERE.get(cfg.family, ())
  if name.removeprefix("model.").startswith(parts):
    return True
  found = _BORROWED.fullmatch(name) if cfg.num_borrowing else None
  return bool(found) and int(found[1]) >= cfg.num_layers - cfg.num_borrowing


def is_skipped(name: str) -> bool:
  """Whether their tensor is a buffer that may be left out."""
  return any(pattern.fullmatch(name) for pattern in SKIPPED)
