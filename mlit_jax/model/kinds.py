"""Layers of several shapes: each kind is stacked in arrays of its own, and one walk goes through all.

Most decoders have one kind, "blocks", and the walk is one scan. Gemma 4 has up to four:

    layers       l l l l l g l l l l l g l l l l l g l l l l l g     l: with a window, g: without
    stacks       blocks_local and blocks_global
    with the last 12 borrowing keys and values, their layers are blocks_local_borrowing and
                 blocks_global_borrowing
    stretches    2 times (5 local, 1 global), then 2 times (5 local_borrowing, 1 global_borrowing)
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from mlit_jax.model.config import DecoderConfig


class Kind(NamedTuple):
  """Layers of one shape."""

  stack: str  # their name among the parameters
  cfg: DecoderConfig  # of a decoder that has these layers and no others
  layers: tuple[int, ...]  # their numbers
  lender: str | None = None  # the stack whose last layer computes the keys and values they read


class Stretch(NamedTuple):
  """Runs of layers of one kind, (stack, how many), one after the other, `repeats` times over."""

  repeats: int
  runs: tuple[tuple[str, int], ...]


@functools.lru_cache
def kinds(cfg: DecoderConfig) -> tuple[Kind, ...]:
  """The kinds of layers that the decoder has, in the order in which they first come."""
  if cfg.global_head_dim is None:
    return (Kind("blocks", cfg, tuple(range(cfg.num_layers))),)
  first_borrowing = cfg.num_layers - cfg.num_borrowing
  which = [(bool(window), i >= first_borrowing) for i, window in enumerate(cfg.windows)]
  return tuple(_kind(cfg, which, *kind) for kind in dict.fromkeys(which))


def scan_layers(cfg: DecoderConfig, layer: Callable, carry, stacks: dict, unrolled: bool = False):
  """All layers in order: `carry, given = layer(kind, carry, part)`; one program for all, or one after the other.

  `part` is the layer's slice of stacks[kind.stack], whose arrays have the kind's layers along their
  first axis. Returns the last carry, and by stack what its layers gave, stacked in the same way.
  """
  layer_of = {kind.stack: functools.partial(layer, kind) for kind in kinds(cfg)}
  begun = dict.fromkeys(layer_of, 0)
  given: dict[str, list] = {stack: [] for stack in layer_of}
  for stretch in stretches(cfg):
    parts = [
      jax.tree.map(_cut(stretch, i, begun), stacks[s]) for i, (s, _) in enumerate(stretch.runs)
    ]
    carry, outs = _scan_stretch(stretch, layer_of, carry, parts, unrolled)
    for stack, n in _per_repeat(stretch).items():
      of_stack = [out for (s, _), out in zip(stretch.runs, outs, strict=True) if s == stack]
      joined = _concatenate(of_stack, axis=1)
      begun[stack] += n * stretch.repeats
      given[stack].append(jax.tree.map(lambda a: a.reshape(-1, *a.shape[2:]), joined))
  return carry, {stack: _concatenate(outs, axis=0) for stack, outs in given.items()}


@functools.lru_cache
def stretches(cfg: DecoderConfig) -> tuple[Stretch, ...]:
  """The layers as few stretches, so that a repeated pattern is traced once."""
  stack_of = {layer: kind.stack for kind in kinds(cfg) for layer in kind.layers}
  in_order = [stack_of[i] for i in range(cfg.num_layers)]
  runs = [(stack, len(list(run))) for stack, run in itertools.groupby(in_order)]
  out = []
  while runs:
    period, repeats = _repetition(runs)
    out.append(Stretch(repeats, tuple(runs[:period])))
    runs = runs[period * repeats :]
  return tuple(out)


def _kind(cfg: DecoderConfig, which: list, is_local: bool, borrows: bool) -> Kind:
  layers = tuple(i for i, kind in enumerate(which) if kind == (is_local, borrows))
  stack = "blocks_local" if is_local else "blocks_global"
  changes: dict = {"global_head_dim": None, "num_borrowing": 0}
  if not is_local:
    changes |= {
      "head_dim": cfg.global_head_dim,
      "num_kv_heads": cfg.global_kv_heads,
      "keys_as_values": cfg.global_keys_as_values,
    }
  if borrows:
    changes |= {"borrows_kv": True, "d_ff": cfg.borrowing_d_ff}
  of_kind = dataclasses.replace(
    cfg,
    num_layers=len(layers),
    windows=tuple(cfg.windows[i] for i in layers),
    position_free=tuple(cfg.position_free[i] for i in layers),
    **changes,
  )
  return Kind(
    f"{stack}_borrowing" if borrows else stack, of_kind, layers, stack if borrows else None
  )


def _repetition(runs: list) -> tuple[int, int]:
  """(period, repeats) with which the runs begin, such that the most of them are repeats."""
  best = (1, 1)
  for period in range(1, len(runs) // 2 + 1):
    repeats = 1
    while runs[repeats * period : (repeats + 1) * period] == runs[:period]:
      repeats += 1
    best = max(best, (period, repeats), key=lambda pair: pair[0] * (pair[1] - 1))
  return best


def _per_repeat(stretch: Stretch) -> dict[str, int]:
  """How many layers of each stack one repeat has."""
  out: dict[str, int] = {}
  for stack, n in stretch.runs:
    out[stack] = out.get(stack, 0) + n
  return out


def _cut(stretch: Stretch, i: int, begun: dict[str, int]) -> Callable:
  """What cuts an array of a stack to the layers of run i: [repeats, layers of the run, ...]."""
  stack, n = stretch.runs[i]
  start, per_repeat = begun[stack], _per_repeat(stretch)[stack]
  before = sum(m for s, m in stretch.runs[:i] if s == stack)

  def cut(a):
    here = a[start : start + stretch.repeats * per_repeat]
    by_repeat = here.reshape(stretch.repeats, per_repeat, *a.shape[1:])
    return by_repeat[:, before : before + n]

  return cut


def _scan_stretch(
  stretch: Stretch, layer_of: dict[str, Callable], carry, parts: list, unrolled: bool
):
  """The carry, and what each run gave, [repeats, layers of the run, ...]."""

  def repeat(carry, parts):
    outs = []
    for (stack, _), part in zip(stretch.runs, parts, strict=True):
      carry, out = jax.lax.scan(layer_of[stack], carry, part, unroll=unrolled)
      outs.append(out)
    return carry, outs

  if stretch.repeats > 1:
    return jax.lax.scan(repeat, carry, parts, unroll=unrolled)
  carry, outs = repeat(carry, jax.tree.map(lambda a: jnp.squeeze(a, 0), parts))
  return carry, jax.tree.map(lambda a: jnp.expand_dims(a, 0), outs)


def _concatenate(trees: list, axis: int):
  if len(trees) == 1:
    return trees[0]
  return jax.tree.map(lambda *arrays: jnp.concatenate(arrays, axis), *trees)
