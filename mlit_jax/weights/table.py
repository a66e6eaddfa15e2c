"""One table of weight names: ours, Hugging Face's, and the pattern between them.

Import reads a pattern left to right, export right to left. No other place knows Hugging Face names.

    "(N H) D -> D N H"    theirs is [N*H, D], ours [D, N, H]

Parameters under blocks/ carry a leading L; row {layer} of theirs is slice `layer` of ours.
"""

import dataclasses
import functools
import math
import re
from collections.abc import Sequence

import numpy as np

from mlit_jax.model.config import DecoderConfig
from mlit_jax.model.decoder import param_specs

EMBEDDING = "model.embed_tokens.weight"
HEAD = "lm_head.weight"
_LAYER = "model.layers.{layer}."

TABLE = [
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
# Buffers that old exports carry and that follow from config.json.
SKIPPED = [
  re.compile(r"model\.layers\.\d+\.self_attn\.rotary_emb\.inv_freq"),
  re.compile(r"model\.rotary_emb\.inv_freq"),
]


@dataclasses.dataclass(frozen=True)
class Pattern:
  """ "(N H) D -> D N H": theirs as groups of axes, ours as single axes."""

  theirs: tuple[tuple[str, ...], ...]
  ours: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Row:
  """One parameter of ours: its names on both sides, its shape without L, and the pattern."""

  ours: str
  theirs: str
  pattern: Pattern
  shape: tuple[int, ...]
  num_layers: int | None  # None: not stacked

  def names(self) -> list[str]:
    """Their tensors, in the order of the layers."""
    if self.num_layers is None:
      return [self.theirs]
    return [self.theirs.format(layer=layer) for layer in range(self.num_layers)]

  @property
  def their_shape(self) -> tuple[int, ...]:
    sizes = dict(zip(self.pattern.ours, self.shape, strict=True))
    return tuple(math.prod(sizes[axis] for axis in group) for group in self.pattern.theirs)


def rows(cfg: DecoderConfig) -> list[Row]:
  """The rows that a decoder of this config needs, in the table's order."""
  specs = flatten(param_specs(cfg))
  table = TABLE + (PRE_AND_POST_NORMS if cfg.post_norms else PRE_NORMS)
  unnamed = set(specs) - {ours for ours, _, _ in table}
  assert not unnamed, f"no row in weights/table.py for {sorted(unnamed)}"
  out = []
  for ours, theirs, text in table:
    if ours not in specs:
      continue
    shape = specs[ours].shape
    stacked = ours.startswith("blocks/")
    pattern = parse(text)
    assert "".join(pattern.ours) == ours.rsplit("_", 1)[1], (ours, text)
    out.append(Row(ours, theirs, pattern, shape[stacked:], shape[0] if stacked else None))
  return out


def tensors_of(cfg: DecoderConfig) -> dict[str, tuple[Row, int | None]]:
  """Every tensor of theirs, layer by layer as a forward pass reads them: name -> (row, layer)."""
  found = [
    (row.num_layers is not None, layer, name, row)
    for row in rows(cfg)
    for layer, name in enumerate(row.names())
  ]
  before = [item for item in found if not item[0] and item[2] == EMBEDDING]
  after = [item for item in found if not item[0] and item[2] != EMBEDDING]
  inside = sorted((item for item in found if item[0]), key=lambda item: item[1])
  return {
    name: (row, layer if stacked else None) for stacked, layer, name, row in before + inside + after
  }


def is_skipped(name: str) -> bool:
  """Whether their tensor is a buffer that may be left out."""
  return any(pattern.fullmatch(name) for pattern in SKIPPED)


def read_slice(theirs, row: Row, index: Sequence[slice]) -> np.ndarray:
  """ours[index] of one layer, touching as little of `theirs` (a memory map) as one slice can.

  Inside parentheses only the first axis is cut before reading: (N H) with N cut is one run of rows;
  with H cut it would be many, so those are read whole and cut afterwards.
  """
  sizes = dict(zip(row.pattern.ours, row.shape, strict=True))
  bounds = {
    axis: part.indices(sizes[axis])[:2] for axis, part in zip(row.pattern.ours, index, strict=True)
  }
  read, flat_shape, firsts = [], [], set()
  for first, *rest in row.pattern.theirs:
    inner = math.prod(sizes[axis] for axis in rest)
    start, stop = bounds[first]
    read.append(slice(start * inner, stop * inner))
    flat_shape += [stop - start, *(sizes[axis] for axis in rest)]
    firsts.add(first)
  flat_axes = [axis for group in row.pattern.theirs for axis in group]
  array = theirs[tuple(read)].reshape(flat_shape)
  array = array.transpose([flat_axes.index(axis) for axis in row.pattern.ours])
  cut = [slice(None) if axis in firsts else slice(*bounds[axis]) for axis in row.pattern.ours]
  return array[tuple(cut)]


def to_theirs(ours: np.ndarray, row: Row) -> np.ndarray:
  """One layer of ours in their layout."""
  flat_axes = [axis for group in row.pattern.theirs for axis in group]
  array = ours.transpose([row.pattern.ours.index(axis) for axis in flat_axes])
  return array.reshape(row.their_shape)


@functools.cache
def parse(text: str) -> Pattern:
  """Pattern of its text."""
  left, right = text.split(" -> ")
  groups = [tuple(re.findall(r"[A-Z]", part)) for part in re.findall(r"\([A-Z ]+\)|[A-Z]", left)]
  ours = tuple(right.split())
  assert sorted(axis for group in groups for axis in group) == sorted(set(ours)), text
  return Pattern(tuple(groups), ours)


def flatten(tree: dict, prefix: str = "") -> dict:
  """{"a": {"b": x}} -> {"a/b": x}."""
  out = {}
  for key, value in tree.items():
    out |= flatten(value, f"{prefix}{key}/") if isinstance(value, dict) else {prefix + key: value}
  return out


def unflatten(flat: dict) -> dict:
  """{"a/b": x} -> {"a": {"b": x}}."""
  tree: dict = {}
  for path, value in flat.items():
    *parents, last = path.split("/")
    node = tree
    for parent in parents:
      node = node.setdefault(parent, {})
    node[last] = value
  return tree
