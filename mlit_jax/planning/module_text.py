"""The text of a compiled module: its computations, and how often their loops turn."""

from __future__ import annotations

import dataclasses
import functools
import math
import re

from mlit_jax.loops import marked_turns

_BYTES = {"pred": 1, "s4": 0.5, "u4": 0.5, "c64": 8, "c128": 16}
_INSTRUCTION = re.compile(r"^\s+(?:ROOT )?%?([\w.-]+) = (.*?)\s([a-z][a-z0-9-]*)\((.*)$")
_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.-]+) \(.*\{\s*$")
_SHAPE = re.compile(r"\b([a-z]+\d*[a-z0-9]*)\[([\d,]*)\]")
_OPENS, _CLOSES = "([{", ")]}"


@dataclasses.dataclass(frozen=True)
class Instruction:
  name: str
  type: str
  opcode: str
  rest: str  # operands and attributes

  @functools.cached_property
  def operands(self) -> list[str]:
    """Their names: (%a, f32[] %b), calls=%f -> [a, b]"""
    depth = 1
    for end, letter in enumerate(self.rest):
      depth += (letter in _OPENS) - (letter in _CLOSES)
      if not depth:
        return re.findall(r"%([\w.-]+)", self.rest[:end])
    return []


Computations = dict[str, list[Instruction]]


def read_computations(text: str) -> Computations:
  """{name: instructions}; the entry is also found under ""."""
  out: Computations = {}
  body: list[Instruction] = []
  for line in text.split("\n"):
    if head := _COMPUTATION.match(line):
      body = out[head[2]] = []
      if head[1]:
        out[""] = body
    elif instruction := _INSTRUCTION.match(line):
      body.append(Instruction(*instruction.groups()))
  return out


def turns(computations: Computations, i: Instruction) -> float | None:
  """Of a while loop: as the compiler notes it, as its name says, or as what its counter is compared with."""
  if known := re.search(r'known_trip_count"?:?=?\s*\{"?n"?:"?(\d+)', i.rest):
    return int(known[1])
  if (name := re.search(r'op_name="([^"]*)"', i.rest)) and (marked := marked_turns(name[1])):
    return marked
  condition = computations.get(called(i.rest, "condition"), [])
  bounds = {
    int(m[1])
    for c in condition
    if c.opcode == "constant" and re.match(r"[su]\d+\[\]", c.type) and (m := re.match(r"(\d+)\)", c.rest))
  }  # fmt: skip
  compares = [c for c in condition if c.opcode == "compare"]
  if len(bounds) == 1 and len(compares) == 1 and "direction=LT" in compares[0].rest:
    return bounds.pop()
  return None


def called(rest: str, key: str) -> str:
  """The computation under this key: body, calls, to_apply."""
  found = re.search(rf"\b{key}=%?([\w.-]+)", rest)
  return found[1] if found else "?"


def branches(rest: str) -> list[str]:
  """Of a conditional."""
  if found := re.search(r"branch_computations=\{([^}]*)\}", rest):
    return re.findall(r"[\w.-]+", found[1])
  return [called(rest, key) for key in ("true_computation", "false_computation")]


def type_bytes(text: str) -> float:
  """Of all arrays in a type, a tuple's parts together."""
  total = 0.0
  for dtype, sides in _SHAPE.findall(text):
    total += math.prod(numbers(sides)) * _item_bytes(dtype)
  return total


@functools.lru_cache
def _item_bytes(dtype: str) -> float:
  if dtype in _BYTES:
    return _BYTES[dtype]
  bits = re.match(r"[a-z]+(\d+)", dtype)  # f32, bf16, s32, f8e4m3fn
  return int(bits[1]) / 8 if bits else 0.0


def numbers(text: str) -> tuple[int, ...]:
  """2,48 -> (2, 48)"""
  return tuple(int(n) for n in text.split(",") if n)
