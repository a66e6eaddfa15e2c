"""The least memory that a run of a config takes on a host without accelerators; weights are not touched."""

from __future__ import annotations

import math
from pathlib import Path

import jax

from mlit_jax.config import load_config
from mlit_jax.examining import host
from mlit_jax.examining.finding import Finding, ok, warning, wrong
from mlit_jax.model import decoder
from mlit_jax.model.config import from_hf, from_scratch
from mlit_jax.opening import open_tokenizer
from mlit_jax.weights import source

GIB = 1 << 30
LEAST, USUAL = 8, 16  # bytes a parameter: float32 with gradients; and with both moments


def of_config(path: str) -> list[Finding]:
  """Its parameters, against the memory of this host, or of its devices together."""
  c = load_config(path, [])
  if not c.model.path:
    cfg = from_scratch(dict(c.model.sizes), open_tokenizer(c, None).vocab_size)
  else:
    found = Path(c.model.path).expanduser()
    if not (found / "config.json").is_file():
      return [
        ok(
          "model memory", f"not reckoned: {c.model.path} is no folder here, and nothing is fetched"
        )
      ]
    cfg = from_hf(source.read_config(found / "config.json"))
  number = sum(math.prod(s.shape) for s in jax.tree.leaves(decoder.param_shapes(cfg)))
  stats = [d.memory_stats() or {} for d in jax.local_devices()]
  limits = [s["bytes_limit"] for s in stats if "bytes_limit" in s]
  if jax.local_devices()[0].platform == "cpu":
    return check(number, host.available_memory(), "of this host")
  processes = jax.process_count()
  return check(number, sum(limits) * processes if limits else None, "of all devices")


def check(number: int, free: int | None, whose: str) -> list[Finding]:
  """Against what parameters and gradients take at least, and with both moments."""
  item, millions = "model memory", f"{number / 1e6:,.1f} million parameters"
  if free is None:
    return [ok(item, f"{millions}; the memory {whose} is not known")]
  text = f"{millions}: {LEAST * number / GIB:,.1f} GiB at least, {USUAL * number / GIB:,.1f} with moments, of {free / GIB:,.1f} GiB {whose}"
  if LEAST * number > free:
    remedy = "A smaller model, or more memory; `mlit_jax.plan` says what would do."
    return [wrong(item, text, remedy)]
  if USUAL * number > free:
    remedy = (
      "See docs/memory.md (optimizer.moments, offload); `mlit_jax.plan` says whether it fits."
    )
    return [warning(item, text, remedy)]
  return [ok(item, text)]
