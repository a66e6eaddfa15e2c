"""OLMo 2 and 3."""

from __future__ import annotations

from mlit_jax.errors import UserError
from mlit_jax.model.families.common import SCALINGS, biases, every, require, rope, sizes, windows

_THETA = 500_000.0  # of OLMo 3 where config.json has none


def olmo2(c: dict) -> dict:
  return _olmo(c) | rope(c, SCALINGS)


def olmo3(c: dict) -> dict:
  """Scaling is for the global layers; those with a window turn by the plain frequencies."""
  return _olmo(c) | _olmo3_rope(c) | {"windows": windows({"sliding_window": 4096} | c, every(c, 4))}


def _olmo(c: dict) -> dict:
  """What OLMo 2 and 3 share."""
  require(c, hidden_act=("silu",), mlp_bias=(False, None))
  return (
    sizes(c)
    | biases(c)
    | {
      "norm_late_cast": True,
      "pre_norms": False,
      "post_norms": True,
      "qk_norm": True,
      "qk_norm_full": True,
    }
  )


def _olmo3_rope(c: dict) -> dict:
  entries = c.get("rope_parameters") or {}
  if set(entries) - {"full_attention", "sliding_attention"}:
    raise UserError("not supported: rope_parameters of olmo3 that are not one entry per layer type")
  full = dict(entries.get("full_attention") or {}) | dict(c.get("rope_scaling") or {})
  local = dict(entries.get("sliding_attention") or {})
  if "rope_theta" not in local:
    # transformers 4 gives rope_theta to all layers, 5 to the global ones alone.
    require(c, rope_theta=(_THETA, None))
  if full.get("truncate", True) is not True:
    # transformers looks for it beside the entries, where nobody writes it, and so truncates.
    raise UserError("not supported: truncate = False of olmo3")
  plain = {k: v for k, v in c.items() if k not in ("rope_parameters", "rope_scaling")}
  turned = rope(plain | {"rope_parameters": full}, SCALINGS, theta=_THETA)
  return turned | {
    "rope_local_theta": rope(plain | {"rope_parameters": local}, ("default",), theta=_THETA)[
      "rope_theta"
    ]
  }
