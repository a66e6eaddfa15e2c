import itertools
import math

import numpy as np
import pytest

from mlit_jax.model.config import DecoderConfig
from mlit_jax.model.decoder import count_params
from mlit_jax.weights import names, table

SIZES = {"N": 4, "H": 3, "D": 5}


def row(text):
  pattern = table.parse(text)
  return table.Row("x", "x", pattern, tuple(SIZES[axis] for axis in pattern.ours))


def alone(row):
  return table.Theirs(row.their_shape, ((row, ()),))


def test_a_pattern_names_the_same_element_on_both_sides():
  """Worked: q_proj row 7 of "(N H) D" is head 2, element 1 of that head (7 = 2 * 3 + 1)."""
  theirs = np.arange(60).reshape(12, 5)
  r = row("(N H) D -> D N H")
  ours = table.read_slice(theirs, r, [slice(None)] * 3)
  assert ours.shape == (5, 4, 3) and ours[4, 2, 1] == theirs[7, 4]
  theirs = np.arange(60).reshape(5, 12)
  ours = table.read_slice(theirs, row("D (N H) -> N H D"), [slice(None)] * 3)
  assert ours.shape == (4, 3, 5) and ours[2, 1, 4] == theirs[4, 7]


@pytest.mark.parametrize(
  "text", ["(N H) D -> D N H", "D (N H) -> N H D", "N D -> D N", "(N H) -> N H"]
)
def test_slices_are_cut_from_the_whole_and_export_undoes_import(text):
  r = row(text)
  theirs = np.arange(np.prod(r.their_shape)).reshape(r.their_shape)
  whole = table.read_slice(theirs, r, [slice(None)] * len(r.shape))
  np.testing.assert_array_equal(table.to_theirs([whole], alone(r)), theirs)
  for cut in itertools.product([slice(None), slice(1, 3), slice(2, 3)], repeat=len(r.shape)):
    np.testing.assert_array_equal(table.read_slice(theirs, r, cut), whole[cut])


def test_parts_of_one_tensor_follow_each_other_or_interleave():
  """Worked: q, k, v of two heads of one element: "q0 q1 k0 k1 v0 v1" and "q0 k0 v0 q1 k1 v1"."""
  parts = [np.array([[0, 1]]), np.array([[2, 3]]), np.array([[4, 5]])]  # [D, N] each

  def tensor(texts, first):
    rows, offset = [], 0
    for text in texts:
      pattern = table.parse(text)
      rows.append(table.Row("x", "x", pattern, (1, 2), (), offset))
      offset += 2 if first is None else 0
    return table.Theirs((6, 1), tuple((r, ()) for r in rows))

  behind = tensor(["N D -> D N"] * 3, None)
  between = tensor([f"(N {i}/3) D -> D N" for i in range(3)], 0)
  for made, expected in ((behind, [0, 1, 2, 3, 4, 5]), (between, [0, 2, 4, 1, 3, 5])):
    theirs = table.to_theirs(parts, made)
    assert theirs[:, 0].tolist() == expected
    for part, (r, _) in zip(parts, made.parts, strict=True):
      for cut in ((slice(None), slice(None)), (slice(None), slice(1, 2))):
        np.testing.assert_array_equal(table.read_slice(theirs, r, cut), part[cut])


@pytest.mark.parametrize(
  "text, num_pieces",
  [
    ("(N H) D -> D N H", 3),
    ("N D -> D N", 3),
    ("D (N H) -> N H D", 1),  # D is no longer than a strip
    ("(N 1/3 H) D -> D N H", 3),
    ("(0/1) -> ", 1),
  ],
)
def test_pieces_of_a_slice_hold_each_value_once(text, num_pieces):
  pattern = table.parse(text)
  sizes = {"N": 20, "H": 3, "D": 5}
  r = table.Row("x", "x", pattern, tuple(sizes[axis] for axis in pattern.ours))
  theirs = np.arange(np.prod(r.their_shape)).reshape(r.their_shape)
  cut = [slice(1, sizes[axis]) for axis in pattern.ours]
  whole = table.read_slice(theirs, r, cut)
  out = np.full(whole.shape, -1)
  pieces = list(table.pieces(r, cut, 8 * theirs.size // 20))
  for index, place in pieces:
    assert (out[place] == -1).all()
    out[place] = table.read_slice(theirs, r, index)
    assert table.rows_read(theirs, r, index).size <= 8 * theirs.size // 20 or num_pieces == 1
  np.testing.assert_array_equal(out, whole)
  assert len(pieces) == num_pieces


class Recorder:
  """Stands for a memory map and remembers which part was asked for."""

  def __init__(self, array):
    self.array, self.read = array, 0

  def __getitem__(self, index):
    self.read += self.array[index].size
    return self.array[index]


@pytest.mark.parametrize(
  "text, cut, elements",
  [
    ("(N H) D -> D N H", (slice(1, 3), slice(2, 3), slice(None)), 3 * 5),
    ("D (N H) -> N H D", (slice(0, 2), slice(None), slice(4, 5)), 12),
    ("(N H) D -> D N H", (slice(0, 1), slice(None), slice(1, 2)), 60),  # H cut: all heads are read
    ("N D -> D N", (slice(0, 1), slice(3, 4)), 5),
  ],
)
def test_only_the_rows_of_the_slice_are_read(text, cut, elements):
  r = row(text)
  theirs = Recorder(np.zeros(r.their_shape))
  table.read_slice(theirs, r, cut)
  assert theirs.read == elements


def config(**changes):
  sizes = dict(
    family="llama",
    vocab_size=7,
    d_model=4,
    num_layers=2,
    num_heads=2,
    num_kv_heads=1,
    head_dim=2,
    d_ff=6,
  )
  return DecoderConfig(**(sizes | changes))


ALL = dict(tied=False, qk_norm=True, attn_bias=True, out_bias=True, mlp_bias=True)


GEMMA4 = dict(layer_scalar=True, layer_input_dim=3)
SHAPES = GEMMA4 | dict(
  num_layers=7,
  windows=(3, 0, 3, 0, 3, 3, 0),
  global_head_dim=5,
  global_kv_heads=2,
  num_borrowing=3,
  borrowing_d_ff=8,
)
# Of each family with rows of its own, what makes it use them all.
FAMILIES = {
  "apertus": dict(activation="xielu"),
  "bloom": ALL
  | dict(
    norm="layer",
    norm_bias=True,
    embed_norm=True,
    gated=False,
    alibi=True,
    qk_norm=False,
    num_kv_heads=2,
  ),
  "cohere": dict(norm="layer", qk_norm=True, qk_norm_per_head=True),
  "gemma4": GEMMA4,
  "gemma4_text": GEMMA4,
  "mixtral": dict(num_experts=3, experts_per_token=1),
  "phi3": dict(tied=False),
  "qwen3_moe": dict(num_experts=3, experts_per_token=1),
}


def test_every_row_is_used_and_every_value_has_one_place():
  common = [config(post_norms=post, **ALL) for post in (False, True)]
  common.append(config(qk_norm_full=True))
  used = {row.ours for cfg in common for row in table.rows(cfg)}
  shared = names.COMMON + names.PRE_NORMS + names.PRE_AND_POST_NORMS
  assert used == {ours for ours, _, _ in shared}
  own = names.OWN | names.OF_FAMILY
  assert set(FAMILIES) == set(own)
  configs = {family: config(family=family, **changes) for family, changes in FAMILIES.items()}
  for family, cfg in configs.items():
    assert {ours for ours, _, _ in own[family]} <= {row.ours for row in table.rows(cfg)}
  for cfg in [*common, *configs.values(), config(family="gemma4_text", **SHAPES)]:
    tensors = table.tensors_of(cfg)
    assert set(tensors) == {name for row in table.rows(cfg) for name in row.names()}
    assert sum(math.prod(tensor.shape) for tensor in tensors.values()) == count_params(cfg)


def test_a_parameter_without_a_row_is_an_error(monkeypatch):
  monkeypatch.setattr(names, "COMMON", [r for r in names.COMMON if r[0] != "blocks/mlp/up_DF"])
  with pytest.raises(AssertionError, match=r"no row.*blocks/mlp/up_DF"):
    table.rows(config())


def test_tensors_come_in_the_order_of_a_forward_pass():
  for cfg in (config(tied=False), config(family="gemma4_text", tied=False, **SHAPES)):
    found = list(table.tensors_of(cfg))
    assert found[0] == names.EMBEDDING and found[-2:] == ["model.norm.weight", names.HEAD]
    layers = [int(name.split(".")[2]) for name in found if ".layers." in name]
    assert layers == sorted(layers) and set(layers) == set(range(cfg.num_layers))
