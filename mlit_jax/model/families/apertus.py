"""Apertus."""

from __future__ import annotations

from mlit_jax.errors import UserError
from mlit_jax.model.families.common import SCALINGS, biases, require, rope, sizes


def apertus(c: dict) -> dict:
  # transformers reads none of the last three: the family has no such choice.
  require(
    c, hidden_act=("xielu",), mlp_bias=(False, None), qk_norm=(True, None), post_norm=(False, None)
  )
  if not (c.get("rope_parameters") or c.get("rope_scaling")):
    # Without one transformers 4 scales nothing, 5 by a factor of 8.
    raise UserError(
      "not supported: an apertus without rope_parameters or rope_scaling, which transformers 4 and 5 "
      'read differently; for positions that are not scaled write "rope_type": "default"'
    )
  return (
    sizes(c)
    | rope(c, SCALINGS, theta=12e6)
    | biases(c)
    | {"qk_norm": True, "activation": "xielu", "gated": False}
  )
