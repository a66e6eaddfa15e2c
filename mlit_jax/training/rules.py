"""What one parameter's update is made of: AdamW, Adafactor and Muon, each for one array of one layer.

A rule says which arrays it keeps of a parameter, and turns a gradient into a direction: the optimizer goes
learning_rate against it.
"""

from __future__ import annotations

import dataclasses
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

from mlit_jax.training import moments, rounding
from mlit_jax.training.moments import Kept

# Of the papers and their published code.
MUON_MOMENTUM = 0.95
MUON_RMS = (
  0.2  # of a direction: about AdamW's, so that one learning rate serves both (Liu et al. 2025)
)
_NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)
_NEWTON_SCHULZ_STEPS = 5
_ADAFACTOR_DECAY = 0.8
_ADAFACTOR_TINY = 1e-30
_STACKING = ("layers", "expert")  # axes that say which matrix, not where in it
NAMED_VECTORS = ("scale", "bias")


class Matrix(NamedTuple):
  """Which axes of an array are the rows of a matrix, and which its columns; all others stack matrices."""

  rows: tuple[int, ...]
  columns: tuple[int, ...]


def matrix_of(name: str, axes: tuple[str, ...]) -> Matrix | None:
  """How a parameter is a matrix; None for norms, biases and scalars.

  q_DNH  (embed, heads, head_dim)    rows D, columns N and H together
  o_NHD  (heads, head_dim, embed)    rows N and H together, columns D
  up_EDF (expert, embed, mlp)        of each expert: rows D, columns F
  """
  groups: list[tuple[int, ...]] = []
  for i, axis in enumerate(axes):
    if axis == "head_dim" and groups:
      groups[-1] += (i,)
    elif axis not in _STACKING:
      groups.append((i,))
  if len(groups) < 2 or any(word in name for word in NAMED_VECTORS):
    return None
  assert len(groups) == 2, (name, axes)
  return Matrix(*groups)


def is_table(axes: tuple[str, ...]) -> bool:
  """Whether it has a row (or column) for each word: embeddings and heads."""
  return "vocab" in axes


@dataclasses.dataclass(frozen=True)
class AdamW:
  """Loshchilov & Hutter 2019, its two moments kept as named."""

  b1: float
  b2: float
  eps: float
  kept_as: str

  def kept(self, spec) -> dict[str, Kept]:
    first = moments.kept("m", spec, self.kept_as, signed=True)
    return first | moments.kept("v", spec, self.kept_as, signed=False)

  def update(self, g, state: dict, t, bits, good=None) -> tuple[jax.Array, dict]:
    """The direction and the new state; t counts steps from 1, `bits` are for rounding; `good`: see if_good."""
    old_m, old_v = (moments.load(state, name) for name in ("m", "v"))
    # Chosen before they are used: chosen after, XLA keeps both for the direction, a second time in memory.
    m = if_good(good, self.b1 * old_m + (1 - self.b1) * g, old_m)
    v = if_good(good, self.b2 * old_v + (1 - self.b2) * jnp.square(g), old_v)
    root = jnp.sqrt(v / (1 - self.b2**t))
    direction = m / (1 - self.b1**t) / (root + self.eps)
    for_m, for_v = (None, None) if bits is None else (rounding.mixed(bits), rounding.high(bits))
    new = moments.store(state, "m", m, for_m) | moments.store(state, "v", v, for_v)
    return direction, new if self.kept_as == "float32" else if_good(good, new, state)


@dataclasses.dataclass(frozen=True)
class Adafactor:
  """Shazeer & Stern 2018 without its own learning rate, momentum or scaling by the parameter.

  The second moment is that of rows times that of columns. Directions are as large as AdamW's, so a learning
  rate means the same.
  """

  matrix: Matrix | None

  def kept(self, spec) -> dict[str, Kept]:
    if self.matrix is None:
      return moments.kept("v", spec, "float32", signed=False)
    without = {"row": self.matrix.columns, "column": self.matrix.rows}
    return {name: _without(spec, axes) for name, axes in without.items()}

  def update(self, g, state: dict, t, bits, good=None) -> tuple[jax.Array, dict]:
    del bits  # all is float32
    b2 = 1 - t**-_ADAFACTOR_DECAY
    g2 = jnp.square(g) + _ADAFACTOR_TINY
    if self.matrix is None:
      v = if_good(good, b2 * state["v"] + (1 - b2) * g2, state["v"])
      return _clipped(g * jax.lax.rsqrt(v), over=None), {"v": v}
    rows, columns = self.matrix
    row = if_good(good, b2 * state["row"] + (1 - b2) * jnp.mean(g2, axis=columns), state["row"])
    column = if_good(
      good, b2 * state["column"] + (1 - b2) * jnp.mean(g2, axis=rows), state["column"]
    )
    row_1, column_1 = jnp.expand_dims(row, columns), jnp.expand_dims(column, rows)
    share = row_1 / jnp.mean(row_1, axis=rows, keepdims=True)
    direction = g * jax.lax.rsqrt(share) * jax.lax.rsqrt(column_1)
    return _clipped(direction, over=rows + columns), {"row": row, "column": column}


@dataclasses.dataclass(frozen=True)
class Muon:
  """Jordan et al. 2024: the momentum of a matrix, made orthogonal; scaled as by Liu et al. 2025."""

  matrix: Matrix
  kept_as: str

  def kept(self, spec) -> dict[str, Kept]:
    return moments.kept("m", spec, self.kept_as, signed=True)

  def update(self, g, state: dict, t, bits, good=None) -> tuple[jax.Array, dict]:
    beta = MUON_MOMENTUM
    old_m = moments.load(state, "m")
    m = if_good(good, beta * old_m + (1 - beta) * g, old_m)
    ahead = beta * m / (1 - beta ** (t + 1)) + (1 - beta) * g / (1 - beta**t)  # Nesterov's
    rows, columns = (math.prod(g.shape[i] for i in axes) for axes in self.matrix)
    direction = _as_matrices(_orthogonal, ahead, self.matrix)
    direction *= MUON_RMS * math.sqrt(max(rows, columns))
    for_m = None if bits is None else rounding.mixed(bits)
    new = moments.store(state, "m", m, for_m)
    return direction, new if self.kept_as == "float32" else if_good(good, new, state)


def if_good(good, new, old):
  """`new`, or where `good` is False `old`, bit by bit; always `new` where `good` is None."""
  return new if good is None else jax.tree.map(lambda a, b: jnp.where(good, a, b), new, old)


def _without(spec, axes: tuple[int, ...]) -> Kept:
  left = [i for i in range(len(spec.shape)) if i not in axes]
  shape, names = (tuple(x[i] for i in left) for x in (spec.shape, spec.axes))
  return Kept(shape, names, jnp.dtype(jnp.float32))


def _clipped(x, over: tuple[int, ...] | None) -> jax.Array:
  """x with a root mean square of at most 1, of each matrix."""
  rms = jnp.sqrt(jnp.mean(jnp.square(x), axis=over, keepdims=True))
  return x / jnp.maximum(1.0, rms)


def _as_matrices(run, x, matrix: Matrix) -> jax.Array:
  """`run` on [..., rows, columns] of an array whose axes are those of matrices."""
  stacking = [i for i in range(x.ndim) if i not in matrix.rows + matrix.columns]
  order = (*stacking, *matrix.rows, *matrix.columns)
  turned = x.transpose(order)
  sizes = [math.prod(x.shape[i] for i in axes) for axes in matrix]
  out = run(turned.reshape(*turned.shape[: len(stacking)], *sizes)).reshape(turned.shape)
  return out.transpose([order.index(i) for i in range(x.ndim)])


def _orthogonal(x) -> jax.Array:
  """The nearest orthogonal matrix, roughly: singular values come to between .7 and 1.2 (Newton-Schulz)."""
  if x.shape[-2] > x.shape[-1]:  # the square is of the shorter side
    return _orthogonal(x.mT).mT
  a, b, c = _NEWTON_SCHULZ
  x = x / (jnp.sqrt(jnp.sum(jnp.square(x), axis=(-2, -1), keepdims=True)) + 1e-8)
  for _ in range(_NEWTON_SCHULZ_STEPS):
    square = x @ x.mT
    x = a * x + (b * square + c * (square @ square)) @ x
  return x
