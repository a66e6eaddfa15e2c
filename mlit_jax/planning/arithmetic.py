"""The arithmetic that a step is written to do: every matrix product of its trace, loops multiplied out.

XLA's own `cost_analysis` counts the body of a loop once, so it is of no use for stacked layers.
"""

from __future__ import annotations

import math

import jax
from jax.extend import core as jex

from mlit_jax.loops import marked_turns, share_of


def product_flops(jaxpr) -> float:
  """FLOPs of all matrix products and convolutions on all devices together; of branches the dearest.

  Kernels (Pallas, cuDNN) do not count: how much of their grid they skip, their writers alone know.
  """
  return _flops(getattr(jaxpr, "jaxpr", jaxpr))


def _flops(jaxpr) -> float:
  return sum(_of(eqn) for eqn in jaxpr.eqns)


def _of(eqn) -> float:
  name = eqn.primitive.name
  if name == "dot_general":
    return _dot(eqn)
  if name in ("ragged_dot", "ragged_dot_general"):
    return _ragged(eqn)
  if name == "conv_general_dilated":
    kernel = eqn.invars[1].aval
    out_features = eqn.params["dimension_numbers"].rhs_spec[0]
    return 2.0 * math.prod(eqn.outvars[0].aval.shape) * kernel.size / kernel.shape[out_features]
  if name == "pallas_call":
    return 0.0
  inner = [_flops(j) for j in _jaxprs(eqn.params)]
  if not inner:
    return 0.0
  if name == "cond":
    return max(inner)
  return _times(eqn) * sum(inner)


def _times(eqn) -> float:
  """How often the body of this equation runs, over all devices."""
  name, params = eqn.primitive.name, eqn.params
  if name == "scan":
    return params["length"]
  if name == "while":  # without a mark, of turns that nobody knows: one
    return marked_turns(str(eqn.source_info.name_stack)) or 1
  if name == "shard_map":  # its body is written for one device of those axes
    mesh = params["mesh"]
    return math.prod(mesh.shape[axis] for axis in params.get("manual_axes", mesh.axis_names))
  return 1


def _dot(eqn) -> float:
  (contracting, _), _ = eqn.params["dimension_numbers"]
  lhs = eqn.invars[0].aval.shape
  return 2.0 * math.prod(eqn.outvars[0].aval.shape) * math.prod(lhs[i] for i in contracting)


def _ragged(eqn) -> float:
  """Rows by their group's matrix, or (the gradient of the matrices) rows contracted within groups."""
  rows, width = eqn.invars[0].aval.shape
  share = share_of(str(eqn.source_info.name_stack))
  return 2.0 * share * rows * width * eqn.invars[1].aval.shape[-1]


def _jaxprs(params) -> list:
  """The bodies among an equation's parameters; not the rules for a derivative that is taken already."""
  out = []
  for key, value in params.items():
    if key in ("fwd_jaxpr_thunk", "jvp_jaxpr_fun", "bwd"):
      continue
    for leaf in jax.tree.leaves(value, is_leaf=_is_jaxpr):
      if _is_jaxpr(leaf):
        out.append(getattr(leaf, "jaxpr", leaf))
  return out


def _is_jaxpr(x) -> bool:
  return isinstance(x, (jex.Jaxpr, jex.ClosedJaxpr))
