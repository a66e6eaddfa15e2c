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
    "host": m.host,
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


def collective_figures(traffic: Traffic) -> list[dict]:
  """By kind and by whether they leave a host or slice; most bytes first."""
  sums: dict = collections.defaultdict(list)
  for c in traffic.collectives:
    sums[c.kind, c.far > 0].append(c)
  out = [
    {
      "kind": kind,
      "times": sum(c.times for c in found),
      "in_loops": sum(c.times for c in found if c.in_loop),
      "payload_bytes": int(sum(c.times * c.payload for c in found)),
      "near_bytes": int(sum(c.times * c.near for c in found)),
      "far_bytes": int(sum(c.times * c.far for c in found)),
    }
    for (kind, _), found in sums.items()
  ]
  return sorted(out, key=lambda c: -c["near_bytes"] - c["far_bytes"])


def estimate_figures(
  found: Estimate | None, tokens: int, useful: float, peak: float
) -> dict | None:
  """Seconds, tokens/s and useful FLOPs over the peak, at both ends."""
  if found is None:
    return None
  parts = {
    f"{name}_seconds": getattr(found, name)
    for name in ("products", "memory", "inside", "outside", "host")
  }
  ends = {}
  for end in ("overlapped", "serial"):
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
    f"arithmetic  {_flops(f['useful_flops'])} a step are useful (segments of {f['mean_segment']} tokens"
    f"{', as planned in the workdir' if f['segment_planned'] else ''}), "
    f"{_flops(f['written_flops'])} in products as the step is written",
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
  if m["host"]:
    names["host"] = "in the host's memory, for each of its devices: optimizer state"
  return [f"  {_gib(m[key]):>12}  {name}" for key, name in names.items()]


def _collective_lines(f: dict) -> list[str]:
  if f["collectives"] is None:
    return ["collectives  not known: the compiler gave no program"]
  if not f["collectives"]:
    return ["collectives  none"]
  word = f["group_word"]
  out = [f"collectives of a step: received by a device within its {word}, and from other {word}s"]
  for c in f["collectives"]:
    out.append(
      f"  {_gib(c['near_bytes']):>12} {_gib(c['far_bytes']):>12}  {c['times']:>5} x {c['kind']} ({c['in_loops']} in loops)"
    )
  if f["unknown_loops"]:
    out.append(f"  {f['unknown_loops']} loops of unknown length were counted as one turn")
  return out


def _estimate_lines(f: dict) -> list[str]:
  e = f["estimate"]
  if not e:
    return ["", "estimate  none: no figures of this device are known, or there is no program"]
  out = ["", "ESTIMATE of a step, from data sheets; nothing was measured"]
  for end in ("overlapped", "serial"):
    of = e[end]
    out.append(
      f"  {end:<10} {_seconds(of['step_seconds'])}, {of['tokens_per_second']:,.0f} tokens/s, "
      f"{of['tokens_per_second'] / f['devices']:,.0f} a device, MFU {of['mfu']:.0%}"
    )
  parts = {
    "products": "products",
    "memory": "memory",
    "inside": "near links",
    "outside": "far links",
  }
  if f["memory"]["host"]:
    parts["host"] = "host's memory"
  out.append(
    "  alone: "
    + ", ".join(f"{name} {_seconds(e[f'{key}_seconds'])}" for key, name in parts.items())
  )
  return out + [f"  assumed: {line}" for line in f["assumptions"]]


def _search_lines(s: dict) -> list[str]:
  out = [f"search  {s['compilations']} compilations"]
  for of in s["largest"]:
    rows, peak = f"{of['rows_per_device']} rows a device", ""
    if not of["rows_per_device"]:
      rows = "not even one row fits" if of["proven"] else "nothing found that fits"
    elif of["peak"]:
      peak = f", {_gib(of['peak'])}"
    more = "" if of["proven"] else "; not searched to the end (--max_compilations)"
    out.append(f"  remat {of['remat']:<16} {rows}{peak}{more}")
  return out


def _flops(n: float) -> str:
  return f"{n / 1e12:,.1f} TFLOP" if n >= 1e11 else f"{n / 1e9:,.2f} GFLOP"


def _seconds(n: float) -> str:
  return f"{n:.2f} s" if n >= 1 else f"{n * 1e3:.2f} ms"


def _gib(n: float) -> str:
  return f"{n / GIB:,.2f} GiB" if n >= GIB / 100 else f"{n / 2**20:,.2f} MiB"
