"""Work whose amount or need is known only while it runs, marked with how much to reckon with."""

from __future__ import annotations

import re
from collections.abc import Callable

import jax
import jax.numpy as jnp

_MARK = re.compile(r"turns_(\d+(?:\.\d+)?)")
_SHARE = re.compile(r"share_(\d+(?:\.\d+)?)")


def run_loop(first, last, body: Callable, carry, *, about: float):
  """`carry = body(i, carry)` for i of first..last, which may be arrays.

  `about`: how many turns a full batch takes, left in the name of the loop, where mlit_jax.plan reads it:
  neither a trace nor a compiled module can tell.
  """
  with jax.named_scope(f"turns_{about:.6f}".rstrip("0").rstrip(".")):
    return jax.lax.fori_loop(first, last, body, carry)


def once(make: Callable, always: jax.Array):
  """`make()`, computed once, however many places read it.

  XLA on CPU computes what is cheap to tell, such as the sine of an array, in every place that reads it, and does
  not heed an optimization barrier. A branch it does not look into. always: a scalar that is true, which only who
  made the data knows.
  """
  shapes = jax.eval_shape(make)
  never = lambda: jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)  # noqa: E731
  return jax.lax.cond(always, make, never)


def marked_turns(name: str) -> float | None:
  """What run_loop left in the name of a loop: "jvp(turns_4)/while" -> 4.0; of nested ones the innermost."""
  found = _MARK.findall(name)
  return float(found[-1]) if found else None


def marked_share(share: float):
  """A scope for a ragged product that leaves rows out: the share of its rows to reckon with."""
  return jax.named_scope(f"share_{share:.6f}")


def share_of(name: str) -> float:
  """What marked_share left in the name of an operation; 1 without a mark."""
  found = _SHARE.findall(name)
  return float(found[-1]) if found else 1.0
