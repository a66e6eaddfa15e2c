"""A plan from a config, a decoder's sizes and a topology: compile, read the program, estimate, search."""

from __future__ import annotations

import copy
import functools
import math
from collections.abc import Callable, Mapping

from jax.sharding import Mesh

from mlit_jax import checks
from mlit_jax import mesh as meshes
from mlit_jax.attention.choice import Choice
from mlit_jax.model import decoder
from mlit_jax.model.config import DecoderConfig
from mlit_jax.planning import report
from mlit_jax.planning.collectives import read_traffic
from mlit_jax.planning.compiling import Compiled, compile_step, written_flops
from mlit_jax.planning.estimate import assumptions, estimate
from mlit_jax.planning.kernels import moved_bytes
from mlit_jax.planning.search import Search
from mlit_jax.planning.topologies import Topology
from mlit_jax.training.flops import attention_flops, step_flops


def make_plan(
  c,
  cfg: DecoderConfig,
  topology: Topology,
  *,
  rows_per_device: int = 0,
  mean_segment: int = 0,
  most: int = 0,
  say: Callable[[str], None] = lambda line: None,
) -> dict:
  """All figures of one plan. `rows_per_device` replaces batch.rows; a search compiles at most `most` times."""
  c = copy.deepcopy(c)
  mesh = meshes.make_mesh(**c.mesh, devices=topology.devices)
  if rows_per_device:
    c.batch.rows = global_rows(c, mesh, rows_per_device)
  checks.check_mesh(c, cfg, mesh)
  checks.check_attention(c, cfg, mesh)
  groups = dict(zip((d.id for d in topology.devices), topology.groups, strict=True))
  groups = [groups[d.id] for d in mesh.devices.flat]
  compile_choice = functools.partial(
    _compile, cfg=cfg, mesh=mesh, topology=topology, mean_segment=mean_segment
  )
  compiled = compile_choice(c)
  figures = _describe(c, cfg, topology, mesh, compiled, mean_segment)
  figures |= _program_figures(c, cfg, topology, groups, compiled, figures)
  if most:
    figures["search"] = _search(
      c, cfg, mesh, topology, compile_choice, compiled, most, say, mean_segment
    )
  figures["advice"] = _advice(c, cfg, topology, mesh, figures)
  return figures


def global_rows(c, mesh: Mesh, rows_per_device: int) -> int:
  """batch.rows that put so many rows at a time on each shard of the batch."""
  return rows_per_device * meshes.batch_shards(mesh) * c.batch.microbatches


def _compile(c, cfg: DecoderConfig, mesh: Mesh, topology: Topology, mean_segment: int) -> Compiled:
  languages = len(c.data.train) if isinstance(c.data.train, Mapping) else 1
  usual = len(row_segments(c.batch.max_length, mean_segment, packed=c.batch.packing))
  return compile_step(
    c,
    cfg,
    mesh,
    topology,
    num_languages=max(1, languages),
    max_segments=1 if usual == 1 else 2 * usual,
  )


def _describe(c, cfg, topology, mesh, compiled, mean_segment) -> dict:
  """What was compiled, its memory and its arithmetic."""
  rows, length = c.batch.rows, c.batch.max_length
  segments = row_segments(length, mean_segment, packed=c.batch.packing)
  useful = rows * step_flops(cfg, segments)
  written = compiled.flops + kernel_flops(c, cfg, mesh, mean_segment)
  return {
    "topology": topology.name,
    "device": topology.device.name,
    "devices": len(topology.devices),
    "group_word": topology.group_word,
    "mesh": dict(mesh.shape),
    "family": cfg.family,
    "parameters": decoder.count_params(cfg),
    "dtype": c.model.dtype,
    "remat": c.model.remat,
    "rows": rows,
    "max_length": length,
    "microbatches": c.batch.microbatches,
    "rows_per_device": rows / meshes.batch_shards(mesh) / c.batch.microbatches,
    "mean_segment": segments[0],
    "tokens": rows * sum(segments),
    "compile_seconds": compiled.seconds,
    "memory": report.memory_figures(compiled, topology),
    "sources": topology.device.sources,
    "useful_flops": useful,
    "written_flops": written,
  }


def _program_figures(c, cfg, topology, groups, compiled, figures) -> dict:
  """What the compiled program sends, and how long that and the rest may take."""
  if compiled.text is None:
    return {"collectives": None, "unknown_loops": 0, "estimate": None, "assumptions": []}
  traffic = read_traffic(compiled.text, groups)
  # Of GPUs' modules alone: a TPU's say nothing of what stays in its faster memories.
  kernels = moved_bytes(compiled.text) if topology.platform == "cuda" else None
  device, devices = topology.device, len(topology.devices)
  passes = c.batch.microbatches * (2 if c.model.remat == "none" else 3)
  # The head is counted for all tokens in one, for trained ones in the other: either may be the less.
  flops = max(figures["written_flops"], figures["useful_flops"])
  found = estimate(device, devices, flops, compiled.memory, traffic, passes, kernels)
  tokens = figures["tokens"]
  peak = device.peak_flops * devices
  return {
    "collectives": report.collective_figures(traffic),
    "unknown_loops": traffic.unknown_loops,
    "estimate": report.estimate_figures(found, tokens, figures["useful_flops"], peak),
    "assumptions": assumptions(
      device, topology.group_word, offload=c.optimizer.offload, kernels=kernels
    )
    if found
    else [],
  }


def row_segments(length: int, mean: int, *, packed: bool) -> list[int]:
  """Tokens of the examples of one row: (64, 24) -> [24, 24, 16], or [24] and padding. Mean 0: one fills it."""
  mean = min(mean or length, length)
  whole, rest = divmod(length, mean)
  return [mean] * whole + [rest] * (rest > 0) if packed else [mean]


def _search(c, cfg, mesh, topology, compile_choice, compiled, most, say, mean_segment) -> dict:
  """The most rows that fit, for each way to recompute, from the one that computes least."""

  def with_choice(remat: str, rows: int):
    other = copy.deepcopy(c)
    other.model.remat, other.batch.rows = remat, global_rows(c, mesh, rows)
    return other

  def measure(remat: str, rows: int) -> tuple[int, bool]:
    found = compile_choice(with_choice(remat, rows))
    fits = report.fits(found, topology)
    say(
      f"tried remat {remat}, {rows} rows a device: {'fits' if fits else 'does not fit'} ({found.seconds:.0f} s)"
    )
    return found.memory.peak, bool(fits)

  begun = max(1, c.batch.rows // meshes.batch_shards(mesh) // c.batch.microbatches)
  cost = functools.partial(_cost, with_choice, cfg, mesh, begun, mean_segment)
  order = sorted(remat_choices(topology.platform), key=cost)  # ties stay as REMAT has them
  search = Search(measure, topology.device.usable, most)
  search.note(c.model.remat, begun, compiled.memory.peak, bool(report.fits(compiled, topology)))
  found = search.run(order, begun)
  return report.search_figures(found, list(search.tried.values()))


def remat_choices(platform: str) -> list[str]:
  """What a search tries. Only TPU compilers tell of what lies in host memory."""
  return [remat for remat in decoder.REMAT if remat != "offload" or platform == "tpu"]


def _cost(with_choice, cfg, mesh, rows, mean_segment, remat) -> float:
  c = with_choice(remat, rows)
  return written_flops(c, cfg, mesh) + kernel_flops(c, cfg, mesh, mean_segment)


def kernel_flops(c, cfg: DecoderConfig, mesh: Mesh, mean_segment: int) -> float:
  """Of attention kernels, which the trace does not show: all that is seen, and nothing that is masked.

  Two products forward and, as the scores are computed again, five backward (FlashAttention 2); with
  model.remat=full the forward ones twice.
  """
  choice = Choice.on(mesh, c.model.attention)
  backends = decoder.attention_backends(cfg, choice, c.batch.max_length, c.model.dtype)
  if all(backend.in_trace for _, backend in backends.values()):
    return 0.0
  segments = row_segments(c.batch.max_length, mean_segment, packed=c.batch.packing)
  products = 9 if c.model.remat == "full" else 7
  return c.batch.rows * attention_flops(cfg, segments) * products / 6


def _advice(c, cfg: DecoderConfig, topology: Topology, mesh: Mesh, figures: dict) -> list[str]:
  out = []
  fsdp, context = mesh.shape["fsdp"], mesh.shape["context"]
  if cfg.d_model % (fsdp * context):
    fitting = math.gcd(cfg.d_model // math.gcd(cfg.d_model, context), fsdp)
    out.append(
      f"mesh.fsdp={fsdp}{f' * mesh.context={context}' if context > 1 else ''} does not divide the width {cfg.d_model}, so parameters and optimizer state lie whole on "
      f"every device; mesh.fsdp={fitting} with mesh.data={mesh.shape['data'] * fsdp // fitting} splits them"
    )
  sent = {of["kind"] for of in figures["collectives"] or ()}
  if topology.platform == "tpu" and fsdp > 1 and sent and "all-gather" not in sent:
    out.append(
      f"no parameter is gathered: with mesh.fsdp={fsdp} its parts are so small that the compiler adds up padded "
      "arrays instead, at twice the traffic; a smaller mesh.fsdp, with mesh.data for the rest, may be faster"
    )
  word, groups = topology.group_word, len(set(topology.groups))
  if figures["memory"]["fits"] is False and not figures.get("search"):
    out.append(
      "it does not fit; --search tries fewer rows on a device and other values of model.remat"
    )
  if groups > 1 and mesh.shape["data"] % groups:
    out.append(
      f"parameters are split over {groups} {word}s, so every layer waits for the network between them; "
      f"mesh.data={groups} keeps a copy in each, where memory allows"
    )
  if figures.get("search"):
    out += _found_advice(c, mesh, figures["search"])
  if c.optimizer.offload and topology.platform != "tpu":
    out.append(
      "this compiler's figures do not tell the host's memory apart: what optimizer.offload keeps there was taken off "
      "the peak by arithmetic"
    )
  if topology.platform == "cuda":
    out.append(
      "a GPU run needs XLA_PYTHON_CLIENT_MEM_FRACTION=.92 to have the memory counted as usable here"
    )
  return out


def _found_advice(c, mesh: Mesh, search: dict) -> list[str]:
  fitting = [of for of in search["largest"] if of["rows_per_device"]]
  if not fitting:
    return [
      "nothing that was tried fits: more devices, a smaller batch.max_length, or a larger mesh.tensor"
    ]
  cheapest, largest = fitting[0], max(fitting, key=lambda of: of["rows_per_device"])

  def keys(of: dict) -> str:
    rows = global_rows(c, mesh, of["rows_per_device"])
    return f"model.remat={of['remat']} with batch.rows={rows} ({of['rows_per_device']} rows a device at a time)"

  out = [f"the least recomputation that fits: {keys(cheapest)}"]
  if largest["rows_per_device"] > cheapest["rows_per_device"]:
    out.append(f"the most rows that fit: {keys(largest)}")
  return out
