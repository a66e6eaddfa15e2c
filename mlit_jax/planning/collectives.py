"""What a compiled step sends between devices, read from the text of its module.

  %all-gather.3 = bf16[2048,512] all-gather(%p), replica_groups=mesh['x'=8] {'x'}     in a loop of 16 turns
  -> all-gather, 16 times, 2 MiB gathered each, of which a device receives 7/8

Each device sends and receives the same. Of a collective over several hosts, what a host wants from the others
comes once, in equal parts through the adapters of all of its members, and goes on over its own links. On a TPU one collective may be spread over several fusions, all
with its channel; it counts once.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Sequence

import numpy as np

from mlit_jax.planning.module_text import (
  Instruction,
  branches,
  called,
  numbers,
  read_computations,
  turns,
  type_bytes,
)

KINDS = (
  "all-gather", "reduce-scatter", "all-reduce", "all-to-all", "ragged-all-to-all", "collective-permute",
  "collective-broadcast",
)  # fmt: skip
_MEGASCALE = re.compile(r'_xla_megascale_transfer_type="(\w+)"')


@dataclasses.dataclass(frozen=True)
class Collective:
  """One collective of the program, and how often a step runs it."""

  kind: str
  times: float
  payload: float  # bytes of the whole: gathered, to be reduced, or exchanged; once
  near: float  # bytes that a device receives over the links of its host or slice; once
  far: float  # the same over the network between them
  size: int  # devices that take part
  in_loop: bool
  name: str


@dataclasses.dataclass(frozen=True)
class Traffic:
  """All collectives of a step."""

  collectives: tuple[Collective, ...]
  unknown_loops: int  # loops around collectives whose turns the text does not tell: counted as one

  @property
  def near(self) -> float:
    """Bytes that a device receives in a step over the links of its host or slice."""
    return sum(c.times * c.near for c in self.collectives)

  @property
  def far(self) -> float:
    """Bytes that a device receives in a step over the network between hosts or slices."""
    return sum(c.times * c.far for c in self.collectives)


def read_traffic(text: str, groups: Sequence[int]) -> Traffic:
  """The collectives of a compiled module. `groups[i]`: the host or slice of the mesh's i-th device."""
  reader = _Reader(read_computations(text), np.asarray(groups))
  found = reader.walk(reader.entry, 1, False)
  return Traffic(tuple(found), reader.unknown_loops)


class _Reader:
  def __init__(self, computations, groups):
    self.computations, self.groups = computations, groups
    self.entry, self.unknown_loops = "", 0

  def walk(self, name: str, times: int, in_loop: bool) -> list[Collective]:
    out, seen = [], set()
    for i in self.computations.get(name, ()):
      kind = i.opcode.removesuffix("-start")
      if kind in KINDS:
        out.append(self.collective(i, kind, times, in_loop))
      elif i.opcode == "send" and (way := _MEGASCALE.search(i.rest)):
        out.append(self.between_slices(i, way[1], times, in_loop))
      elif i.opcode == "while":
        body = self.walk(called(i.rest, "body"), 1, True)
        if body:
          turns = self.turns(i)
          out += [dataclasses.replace(c, times=c.times * turns * times) for c in body]
      elif i.opcode in ("fusion", "async-start"):
        for c, channel in self.fused(called(i.rest, "calls"), times, in_loop):
          if channel is None or channel not in seen:
            out.append(c)
          seen.add(channel)
      elif i.opcode == "call":
        out += self.walk(called(i.rest, "to_apply"), times, in_loop)
      elif i.opcode == "conditional":
        found = [self.walk(b, times, in_loop) for b in branches(i.rest)]
        out += max(found, key=lambda b: sum(c.times * (c.near + c.far) for c in b), default=[])
    return out

  def fused(self, name: str, times: int, in_loop: bool) -> list[tuple[Collective, str | None]]:
    """Collectives within a fusion, each with its channel."""
    out = []
    for i in self.computations.get(name, ()):
      kind = i.opcode.removesuffix("-start")
      if kind in KINDS:
        # A TPU's reduce-scatter is a fusion of that name around an all-reduce.
        if "all-reduce-scatter" in name and kind == "all-reduce":
          kind = "reduce-scatter of a whole"
        channel = re.search(r"channel_id=(\d+)", i.rest)
        out.append((self.collective(i, kind, times, in_loop), channel[1] if channel else None))
      elif i.opcode == "fusion":
        out += self.fused(called(i.rest, "calls"), times, in_loop)
    return out

  def collective(self, i: Instruction, kind: str, times: int, in_loop: bool) -> Collective:
    size, places = self.members(i.rest)
    total = type_bytes(i.type.split(", u32[]")[0])  # without a permutation's contexts
    if i.opcode.endswith("-start") and kind in ("all-gather", "reduce-scatter"):
      total *= size / (size + 1)  # its type holds part and whole
    elif i.opcode.endswith("-start") and kind != "all-reduce":
      total /= 2  # its type holds what goes and what comes
    elif kind == "reduce-scatter":
      total *= size
    kind = kind.removesuffix(" of a whole")
    near, far = _received(kind, total, size, places)
    return Collective(kind, times, total, near, far, size, in_loop, i.name)

  def between_slices(self, i: Instruction, way: str, times: int, in_loop: bool) -> Collective:
    """A TPU's collective over slices is one within each slice, and this: each device with its like elsewhere."""
    slices = len(set(self.groups.tolist()))
    kind = way.lower().replace("_", "-")
    part = type_bytes(i.type.split(", u32[]")[0])
    total = part * slices if kind == "all-gather" else part
    if kind not in KINDS:  # to one other
      kind = "collective-permute"
    far = _received(kind, total, slices, slices)[1]
    return Collective(kind, times, total, 0.0, far, slices, in_loop, i.name)

  def members(self, rest: str) -> tuple[int, int]:
    """How many devices take part in each of a collective's groups, and in how many hosts or slices they lie."""
    if pairs := re.search(r"source_target_pairs=\{([\d,{} ]*)\}", rest):
      ids = np.array(re.findall(r"\d+", pairs[1]), int).reshape(-1, 2)
      return 2, 1 + int((self.groups[ids[:, 0]] != self.groups[ids[:, 1]]).any())
    groups = _replica_groups(rest, len(self.groups))
    places = max(len(set(self.groups[list(g)])) for g in groups)
    return max(len(g) for g in groups), places

  def turns(self, i: Instruction) -> float:
    found = turns(self.computations, i)
    self.unknown_loops += found is None
    return found or 1


def _received(kind: str, total: float, size: int, places: int) -> tuple[float, float]:
  """Bytes that a device receives near and far, of a collective of `size` devices in so many hosts or slices."""
  if kind in ("collective-permute", "collective-broadcast"):
    return (0.0, total) if places > 1 else (total, 0.0)
  total *= 2 if kind == "all-reduce" else 1  # a reduce-scatter and an all-gather
  share, far_share = (size - 1) / size, (places - 1) / places
  if kind in ("all-to-all", "ragged-all-to-all"):  # each pair has its own part
    return total * (share - far_share), total * far_share
  each = max(1, size // places)
  return (total * share if each > 1 else 0.0), total * far_share / each


def _replica_groups(rest: str, count: int) -> np.ndarray | list[list[int]]:
  """The groups, as indices of the mesh's devices, in any of XLA's three ways to write them.

  {{0,1},{2,3}}    [2,4]<=[4,2]T(1,0)    mesh['a'=2,'b'=4] {'b'}
  """
  if found := re.search(r"replica_groups=\{(\{[\d,{} ]*\})\}", rest):
    return [[int(n) for n in g.split(",")] for g in re.findall(r"\{([\d, ]+)\}", found[1])]
  if found := re.search(r"replica_groups=\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", rest):
    shape, sides = numbers(found[1]), numbers(found[2])
    ids = np.arange(math.prod(sides)).reshape(sides)
    if found[3]:
      ids = ids.transpose(numbers(found[3]))
    return ids.reshape(shape)
  if found := re.search(r"replica_groups=mesh\[([^\]]*)\]([^{]*)\{([^}]*)\}", rest):
    return _mesh_groups(found[1], found[2], found[3])
  return np.arange(count).reshape(1, count)


def _mesh_groups(axes: str, devices: str, wanted: str) -> np.ndarray:
  """Groups along some axes of a mesh: 'a'=2,'b'=4 and 'b' -> [[0, 1, 2, 3], [4, 5, 6, 7]]."""
  names = dict((name, int(size)) for name, size in re.findall(r"'([^']+)'=(\d+)", axes))
  along, shape, labels = re.findall(r"'([^']+)'(?::\((\d+)\)(\d+))?", wanted), [], []
  # 'a':(2)4 is the part of 4 of an axis that has 2 before it.
  parts = {name: (int(before), int(size)) for name, before, size in along if size}
  for name, size in names.items():
    if name in parts:
      before, part = parts[name]
      shape += [before, part, size // (before * part)]
      labels += ["", name, ""]
    else:
      shape.append(size)
      labels.append(name if name in {a[0] for a in along} else "")
  order = re.search(r"device_ids=\(\[([\d,]+)\](?:T\(([\d,]+)\))?\)", devices)
  ids = np.arange(math.prod(shape))
  if order:
    sides = numbers(order[1])
    ids = ids.reshape(sides)
    if order[2]:
      ids = ids.transpose(numbers(order[2]))
  ids = ids.reshape(shape)
  inner = [i for i, label in enumerate(labels) if label]
  outer = [i for i, label in enumerate(labels) if not label]
  return ids.transpose(outer + inner).reshape(-1, math.prod(shape[i] for i in inner))
