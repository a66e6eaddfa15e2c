"""Loops whose number of turns is known only while they run, marked with how many to reckon with."""

from __future__ import annotations

import re
from collections.abc import Callable

import jax

_MARK = re.compile(r"turns_(\d+(?:\.\d+)?)")


def run_loop(first, last, body: Callable, carry, *, about: float):
  """`carry = body(i, carry)` for i of first..last, which may be arrays.

  `about`: how many turns a full batch takes, left in the name of the loop, where mlit_jax.plan reads it:
  neither a trace nor a compiled module can tell.
  """
  with jax.named_scope(f"turns_{about:g}"):
    return jax.lax.fori_loop(first, last, body, carry)


def marked_turns(name: str) -> float | None:
  """What run_loop left in the name of a loop: "jvp(turns_4)/while" -> 4.0; of nested ones the innermost."""
  found = _MARK.findall(name)
  return float(found[-1]) if found else None
