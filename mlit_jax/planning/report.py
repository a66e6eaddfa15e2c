"""A plan as figures, for --json, and as lines, for people."""

from __future__ import annotations

import collections
from collections.abc import Sequence

from mlit_jax.planning.collectives import Traffic
from mlit_jax.planning.compiling import Compiled
from mlit_jax.planning.estimate import Estimate
from mlit_jax.planning.hardware import GIB
from mlit_jax.planning.search import Largest, Tried
from mlit_jax.planning.topologies import Topology


def memory_figures(compiled: Compiled, topology: Topology) -> dict:
  """Bytes of one device, and whether they fit; `fits` is None where its memory is not known."""
  m, usable = compiled.memory, topology.device.usable
  return {
    "params": m.params,
    "optimizer": m.optimizer,
    "batch": m.batch,
    "arguments": m.arguments,
    "temporaries": m.temporaries,
    "peak": m.peak or None,
    "usable": int(usable) or None,
    "fits": fits(compiled, topology),
  }


def fits(compiled: Compiled, topology: Topology) -> bool | None:
  """GPUs and CPUs say nothing when memory is short; a TPU's compiler refuses."""
  if compiled.text is None:
    return False
  return compiled.memory.peak <= topology.device.usable if topology.device.usable else None


def collective_figures(traffic: Traffic, topology: Topology) -> list[dict]:
  """By kind and by the links they go over; most bytes first."""
  sums: dict = collections.defaultdict(lambda: [0, 0.0, 0.0, 0])
  for c in traffic.collectives:
    entry = sums[c.kind, c.crosses]
    entry[0] += c.times
    entry[1] += c.times * c.payload
    entry[2] += c.times * c.moved
    entry[3] += c.times if c.in_loop else 0
  word = topology.group_word
  return [
    {
      "kind": kind,
      "links": f"between {word}s" if crosses else f"within a {word}",
      "times": times,
      "in_loops": loops,
      "payload_bytes": int(payload),
      "received_bytes": int(moved),
    }
    for (kind, crosses), (times, payload, moved, loops) in sorted(
      sums.items(), key=lambda item: -item[1][2]
    )
  ]


def estimate_figures(
  found: Estimate | None, tokens: int, useful: float, peak: float
) -> dict | None:
  """Seconds, tokens/s and useful FLOPs over the peak, at both ends."""
  if found is None:
    return None
  parts = {
    f"{name}_seconds": getattr(found, name) for name in ("products", "memory", "inside", "outside")
  }
  ends = {}
  for end in ("best", "worst"):
    seconds = getattr(found, end)
    ends[end] = {
      "step_seconds": seconds,
      "tokens_per_second": tokens / seconds,
      "mfu": useful / seconds / peak,
    }
  return parts | ends


def search_figures(found: list[Largest], tried: Sequence[Tried]) -> dict:
  return {
    "compilations": len(tried),
    "largest": [
      {"remat": f.remat, "rows_per_device": f.rows, "peak": f.peak or None, "proven": f.proven}
      for f in found
    ],
    "tried": [
      {"remat": t.remat, "rows_per_device": t.rows, "peak": t.peak or None, "fits": t.fits}
      for t in tried
    ],
  }


def lines(figures: dict) -> list[str]:
  """The whole plan, for a terminal."""
  f, m = figures, figures["memory"]
  out = [
    f"{f['topology']}: {f['devices']} x {f['device']}, mesh "
    + " ".join(f"{axis}={size}" for axis, size in f["mesh"].items()),
    f"{f['family']}, {f['parameters']:,} parameters; {f['rows']} rows of {f['max_length']} tokens a step, "
    f"{f['rows_per_device']:g} a device at a time; remat {f['remat']}, {f['dtype']}",
    f"compiled in {f['compile_seconds']:.0f} s; nothing was run, and no such hardware was there",
    "",
    _verdict(m),
    *_memory_lines(m),
    "",
    f"arithmetic  {f['useful_flops'] / 1e12:,.1f} TFLOP a step are useful (segments of {f['mean_segment']} tokens), "
    f"{f['written_flops'] / 1e12:,.1f} in products as the step is written",
  ]
  out += _collective_lines(f)
  out += _estimate_lines(f)
  if f.get("search"):
    out += ["", *_search_lines(f["search"])]
  if f["advice"]:
    out += ["", *(f"advice  {line}" for line in f["advice"])]
  return out


def _verdict(m: dict) -> str:
  peak = _gib(m["peak"]) if m["peak"] else "more than there is"
  if m["fits"] is None:
    return f"memory  {peak} at the peak, a device; what it has is not known"
  verdict = "fits" if m["fits"] else "DOES NOT FIT"
  share = f" ({m['peak'] / m['usable']:.0%})" if m["peak"] else ""
  return f"memory  {verdict}: {peak} of {_gib(m['usable'])} usable on each device{share}"


def _memory_lines(m: dict) -> list[str]:
  names = {
    "params": "parameters",
    "optimizer": "optimizer state",
    "batch": "batch",
    "temporaries": "temporaries: gradients, activations, logits, gathered weights",
  }
  return [f"  {_gib(m[key]):>12}  {name}" for key, name in names.items()]


def _collective_lines(f: dict) -> list[str]:
  if f["collectives"] is None:
    return ["collectives  not known: the compiler gave no program"]
  if not f["collectives"]:
    return ["collectives  none"]
  out = ["collectives of a step, and what a device receives by them"]
  for c in f["collectives"]:
    out.append(
      f"  {_gib(c['received_bytes']):>12}  {c['times']:>5} x {c['kind']} {c['links']} ({c['in_loops']} in loops)"
    )
  if f["unknown_loops"]:
    out.append(f"  {f['unknown_loops']} loops of unknown length were counted as one turn")
  return out


def _estimate_lines(f: dict) -> list[str]:
  e = f["estimate"]
  if not e:
    return ["", "estimate  none: no figures of this device are known, or there is no program"]
  out = ["", "ESTIMATE of a step, from data sheets; nothing was measured"]
  for end in ("best", "worst"):
    of = e[end]
    out.append(
      f"  {end:<5} {of['step_seconds']:.3f} s, {of['tokens_per_second']:,.0f} tokens/s, "
      f"{of['tokens_per_second'] / f['devices']:,.0f} a device, MFU {of['mfu']:.0%}"
    )
  parts = {
    "products": "products",
    "memory": "memory",
    "inside": "near links",
    "outside": "far links",
  }
  out.append(
    "  alone: " + ", ".join(f"{name} {e[f'{key}_seconds']:.3f} s" for key, name in parts.items())
  )
  return out + [f"  assumed: {line}" for line in f["assumptions"]]


def _search_lines(s: dict) -> list[str]:
  out = [f"search  {s['compilations']} compilations"]
  for of in s["largest"]:
    rows = (
      f"{of['rows_per_device']} rows a device" if of["rows_per_device"] else "not even one row fits"
    )
    peak = f", {_gib(of['peak'])}" if of["peak"] else ""
    out.append(
      f"  remat {of['remat']:<16} {rows}{peak}" + ("" if of["proven"] else ", perhaps more")
    )
  return out


def _gib(n: float) -> str:
  return f"{n / GIB:,.2f} GiB" if n >= GIB / 100 else f"{n / 2**20:,.2f} MiB"
