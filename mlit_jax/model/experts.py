"""Experts: every token reaches its k gated MLPs, however unevenly the router spreads them.

A token's visit to one expert is a pair. Pairs are sorted by expert into slots, each expert's from a new
block on, so that a block of slots is one product with one expert's weight.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from mlit_jax.loops import marked_share, run_loop

# Rows of a block at most, and blocks multiplied at once.
BLOCK_ROWS = 128
AT_ONCE = 4


class Slots(NamedTuple):
  """Where pairs lie: N tokens, C choices of each, S slots in A blocks."""

  slot_NC: jax.Array  # of the pair; S where its expert is not among ours
  token_S: jax.Array  # in the slot; N where it is empty
  expert_A: jax.Array  # of the block
  used: jax.Array  # blocks that hold a pair; they come first


def run(
  x_BTD, choice_BTC, weight_BTC, gate_EDF, up_EDF, down_EFD, first=0, *, of: int = 0
) -> jax.Array:
  """Sum over the choices of weight * down(silu(gate x) * up x), of the experts from `first` on alone.

  `of`: how many there are in all (0: no others), to tell how many pairs are ours if all are liked alike.
  """
  B, T, D = x_BTD.shape
  C = choice_BTC.shape[-1]
  x_ND, weight_NC = x_BTD.reshape(-1, D), weight_BTC.reshape(-1, C)
  slots = make_slots(choice_BTC.reshape(-1, C) - first, len(gate_EDF))
  about = reckoned_blocks(slots, weight_NC.size, len(gate_EDF), of or len(gate_EDF))
  x_SD = x_ND.at[slots.token_S].get(mode="fill", fill_value=0)
  gate_SF = grouped_matmul(x_SD, gate_EDF, slots.expert_A, slots.used, about)
  up_SF = grouped_matmul(x_SD, up_EDF, slots.expert_A, slots.used, about)
  h_SF = jax.nn.silu(gate_SF) * up_SF
  y_SD = grouped_matmul(h_SF, down_EFD, slots.expert_A, slots.used, about)
  y_NCD = y_SD.at[slots.slot_NC].get(mode="fill", fill_value=0).astype(weight_NC.dtype)
  return jnp.sum(y_NCD * weight_NC[..., None], axis=1).astype(x_BTD.dtype).reshape(B, T, D)


def make_slots(choice_NC, num_experts: int) -> Slots:
  """Slots of the pairs whose expert is in 0 .. num_experts - 1; there is always room for all."""
  N, C = choice_NC.shape
  pairs = N * C
  rows = block_rows(pairs, num_experts)
  blocks = pairs // rows + min(num_experts, pairs)  # one begun block per expert, at most
  blocks += -blocks % AT_ONCE
  choice_P = choice_NC.reshape(-1)
  choice_P = jnp.where((choice_P >= 0) & (choice_P < num_experts), choice_P, num_experts)
  order_P = jnp.argsort(choice_P, stable=True)
  sorted_P = choice_P[order_P]
  # Experts and, last, all who are not ours.
  begin_E = jnp.searchsorted(sorted_P, jnp.arange(num_experts + 1), method="scan_unrolled")
  taken_E = -(-jnp.diff(begin_E) // rows)
  until_E = jnp.cumsum(taken_E)
  first_E = jnp.append(until_E - taken_E, blocks) * rows
  slot_P = first_E[sorted_P] + jnp.arange(pairs) - begin_E[sorted_P]
  slot_P = jnp.where(sorted_P < num_experts, slot_P, blocks * rows)
  expert_A = jnp.searchsorted(until_E, jnp.arange(blocks), side="right", method="scan_unrolled")
  return Slots(
    jnp.zeros_like(slot_P).at[order_P].set(slot_P).reshape(N, C),
    jnp.full(blocks * rows, N).at[slot_P].set(order_P // C, mode="drop"),
    jnp.minimum(expert_A, num_experts - 1),
    until_E[-1],
  )


def block_rows(pairs: int, num_experts: int) -> int:
  """A power of two near the pairs of one expert: few slots stay empty."""
  rows = 8
  while rows < min(BLOCK_ROWS, pairs // num_experts):
    rows *= 2
  return rows


def reckoned_blocks(slots: Slots, pairs: int, num_experts: int, of: int) -> float:
  """Blocks in use where `of` experts are liked alike: those full, and half a block begun by each of ours."""
  blocks = len(slots.expert_A)
  rows = len(slots.token_S) // blocks
  return min(blocks, pairs * num_experts / of / rows + min(num_experts, pairs) / 2)


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def grouped_matmul(x_SD, w_EDF, expert_A, used, about: float) -> jax.Array:
  """y_SF: the rows of each block times its expert's weight, for the first `used` blocks, `about` so many.

  A loop over the blocks that are used, but on TPUs, where XLA has a kernel for jax.lax.ragged_dot. On
  CPU and GPU it multiplies every row by every expert's weight and masks.
  """
  ways = {"tpu": _ragged, "default": _looped}
  ways = {platform: functools.partial(way, about=about) for platform, way in ways.items()}
  return jax.lax.platform_dependent(x_SD, w_EDF, expert_A, used, **ways)


def _forward(x_SD, w_EDF, expert_A, used, about):
  return grouped_matmul(x_SD, w_EDF, expert_A, used, about), (x_SD, w_EDF, expert_A, used)


def _backward(about, saved, dy_SF):
  x_SD, w_EDF, expert_A, used = saved
  dx_SD = grouped_matmul(dy_SF, w_EDF.swapaxes(1, 2), expert_A, used, about)
  ways = {"tpu": _ragged_weight, "default": _looped_weight}
  ways = {platform: functools.partial(way, about=about) for platform, way in ways.items()}
  dw_EDF = jax.lax.platform_dependent(x_SD, dy_SF, w_EDF, expert_A, used, **ways)
  return dx_SD, dw_EDF, None, None


grouped_matmul.defvjp(_forward, _backward)


def _looped(x_SD, w_EDF, expert_A, used, *, about):
  A, F = len(expert_A), w_EDF.shape[-1]
  x_ARD = x_SD.reshape(A, -1, x_SD.shape[-1])

  def multiply(i, y_ARF):
    x_WRD, expert_W = _window(x_ARD, i), _window(expert_A, i)
    y_WRF = jnp.matmul(x_WRD, w_EDF[expert_W], preferred_element_type=jnp.float32)
    y_WRF = y_WRF.astype(y_ARF.dtype)
    return jax.lax.dynamic_update_slice_in_dim(y_ARF, y_WRF, i * AT_ONCE, axis=0)

  y_ARF = jnp.zeros((*x_ARD.shape[:2], F), x_SD.dtype)
  turns = -(-used // AT_ONCE)
  return run_loop(0, turns, multiply, y_ARF, about=about / AT_ONCE).reshape(-1, F)


def _looped_weight(x_SD, dy_SF, w_EDF, expert_A, used, *, about):
  A = len(expert_A)
  x_ADR = x_SD.reshape(A, -1, x_SD.shape[-1]).swapaxes(1, 2)
  dy_ARF = dy_SF.reshape(A, -1, dy_SF.shape[-1])

  def add(i, dw_EDF):
    x_WDR, dy_WRF, expert_W = (_window(a, i) for a in (x_ADR, dy_ARF, expert_A))
    dw_WDF = jnp.matmul(x_WDR, dy_WRF, preferred_element_type=jnp.float32)
    for w in range(AT_ONCE):  # one at a time: an expert may own several of them
      dw_EDF = dw_EDF.at[expert_W[w]].add(dw_WDF[w])
    return dw_EDF

  dw_EDF = jnp.zeros(w_EDF.shape, jnp.float32)
  turns = -(-used // AT_ONCE)
  return run_loop(0, turns, add, dw_EDF, about=about / AT_ONCE).astype(w_EDF.dtype)


def _window(a, i):
  """The blocks of turn i."""
  return jax.lax.dynamic_slice_in_dim(a, i * AT_ONCE, AT_ONCE, axis=0)


def _ragged(x_SD, w_EDF, expert_A, used, *, about):
  with marked_share(about / len(expert_A)):
    return jax.lax.ragged_dot(x_SD, w_EDF, _sizes(x_SD, w_EDF, expert_A, used))


def _ragged_weight(x_SD, dy_SF, w_EDF, expert_A, used, *, about):
  transpose = jax.linear_transpose(  # not vjp, whose trace has the product itself, too
    lambda w_EDF: _ragged(x_SD, w_EDF, expert_A, used, about=about), w_EDF
  )
  return transpose(dy_SF)[0]


def _sizes(x_SD, w_EDF, expert_A, used):
  """Slots of each expert."""
  A = len(expert_A)
  rows_A = jnp.where(jnp.arange(A) < used, len(x_SD) // A, 0)
  return jax.ops.segment_sum(rows_A, expert_A, len(w_EDF)).astype(jnp.int32)
