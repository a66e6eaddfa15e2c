"""What the kernels of a compiled step read from a device's memory and write to it, from the text of its module.

  %fusion = f32[8,16] fusion(f32[4,8,16] %stack, s32[] %i), calls=%c      in a loop of 4 turns
  %c: dynamic-slice of its first parameter                                -> 4 times, 512 bytes read, 512 written

A kernel reads each operand once and writes its result once; what it cuts from a larger array counts by the piece, and
what it writes into one in place as well. Caches are taken to help no two kernels, and to hold all that one reads twice.
Read of GPUs' modules, whose fusions are kernels; what a library's kernel needs besides operands and result is not known.
"""

from __future__ import annotations

import dataclasses

from mlit_jax.planning.module_text import (
  Instruction,
  branches,
  called,
  read_computations,
  turns,
  type_bytes,
)

# Nothing is moved for these; of what runs beside the others its begin tells all.
_FREE = {"parameter", "constant", "bitcast", "tuple", "get-tuple-element", "after-all", "iota"}
_FREE |= {"partition-id", "replica-id", "optimization-barrier"}
_FUSED = {"fusion", "fusion-start", "async-start"}
_PRODUCTS = {"dot", "convolution", "custom-call"}  # in a fusion, or alone


@dataclasses.dataclass(frozen=True)
class Moved:
  """Bytes of one device in a step."""

  products: float = 0.0  # by kernels of matrix products and attention, which compute meanwhile
  others: float = 0.0

  def __add__(self, other: Moved) -> Moved:
    return Moved(self.products + other.products, self.others + other.others)

  def times(self, number: float) -> Moved:
    return Moved(self.products * number, self.others * number)

  @property
  def total(self) -> float:
    return self.products + self.others


def moved_bytes(text: str) -> Moved:
  """Of a step whose compiled module this is; a loop whose turns the text does not tell counts once."""
  return _Reader(text).walk("")


class _Reader:
  def __init__(self, text: str):
    self.computations = read_computations(text)

  def walk(self, name: str) -> Moved:
    body = self.computations.get(name, [])
    types = {i.name: i.type for i in body}
    return sum((self.of(i, types) for i in body), Moved())

  def of(self, i: Instruction, types: dict[str, str]) -> Moved:
    if i.opcode in _FREE or i.opcode.endswith(("-done", "-update")):
      return Moved()
    if i.opcode == "while":
      return self.walk(called(i.rest, "body")).times(turns(self.computations, i) or 1)
    if i.opcode == "call":
      return self.walk(called(i.rest, "to_apply"))
    if i.opcode == "conditional":
      return max((self.walk(b) for b in branches(i.rest)), key=lambda m: m.total, default=Moved())
    sizes = [type_bytes(types.get(name, "")) for name in i.operands]
    if i.opcode in _FUSED:
      return self.fused(called(i.rest, "calls"), sizes)
    if i.opcode == "dynamic-slice":
      moved = 2 * type_bytes(i.type)
    elif i.opcode == "dynamic-update-slice":
      moved = 2 * sizes[1]
    else:
      moved = sum(sizes) + type_bytes(i.type)
    return Moved(moved) if i.opcode in _PRODUCTS else Moved(others=moved)

  def fused(self, name: str, sizes: list[float]) -> Moved:
    body = self.computations.get(name, [])
    if not body:
      return Moved()
    by_name = {i.name: i for i in body}
    parameters = {int(i.rest.split(")")[0]): i.name for i in body if i.opcode == "parameter"}
    moved = written(by_name, body[-1].name)
    for number, size in enumerate(sizes):
      moved += min(size, read(body, parameters.get(number, ""), size))
    is_product = any(i.opcode in _PRODUCTS for i in body)
    return Moved(moved) if is_product else Moved(others=moved)


def read(body: list[Instruction], name: str, size: float) -> float:
  """Bytes of a fusion's parameter that it reads: the pieces alone, where nothing else is done with it."""
  total = 0.0
  for i in body:
    if name not in i.operands:
      continue
    is_first = i.operands[0] == name
    if i.opcode == "bitcast":
      total += read(body, i.name, size)
    elif i.opcode in ("dynamic-slice", "gather") and is_first:
      total += type_bytes(i.type)
    elif not (i.opcode == "dynamic-update-slice" and is_first):
      return size
  return total


def written(by_name: dict[str, Instruction], name: str) -> float:
  """Bytes that a fusion writes for this result: of an array that is changed in place the part."""
  i = by_name[name]
  if i.opcode == "bitcast":
    return written(by_name, i.operands[0])
  if i.opcode == "tuple":
    return sum(written(by_name, part) for part in i.operands)
  if i.opcode == "dynamic-update-slice":
    return type_bytes(by_name[i.operands[1]].type)
  return type_bytes(i.type)
