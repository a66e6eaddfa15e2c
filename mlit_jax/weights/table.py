"""How a tensor of theirs and a parameter of ours hold the same values, from the rows of names.py.

Import reads a pattern left to right, export right to left.

    "(N H) D -> D N H"        theirs is [N*H, D], ours [D, N, H]
    "(N 1/3 H) D -> D N H"    theirs is [N*3*H, D], ours its second third (BLOOM's interleaved q, k, v)
    "(0/1) -> "               theirs is [1], ours a scalar

Rows that name the same tensor and have no such fraction lie one after the other in its first axis, in the
table's order (Phi-3's fused q, k, v). Parameters under blocks/ carry a leading L, experts E after it:
the tensor named with {layer} (and {expert}) is that slice of ours. Where layers differ in shape, a row under
blocks/ stands for one in each stack of model/kinds.py that has the parameter.
"""

import dataclasses
import functools
import math
import re
import sys
from collections.abc import Iterator, Sequence

import numpy as np

from mlit_jax.model.config import DecoderConfig
from mlit_jax.model.decoder import param_specs
from mlit_jax.model.kinds import kinds
from mlit_jax.weights import names as their_names

EMBEDDING = "embed/table_VD"
_STRIP = 32  # bytes of a row: of 8 to 128, 32 is the fastest on an AMD EPYC
Slot = tuple[int, int]  # (which, of how many)


@dataclasses.dataclass(frozen=True)
class Pattern:
  """ "(N H) D -> D N H": theirs as groups of axes (or slots), ours as single axes."""

  theirs: tuple[tuple[str | Slot, ...], ...]
  ours: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Row:
  """One parameter of ours: its names on both sides, its shape without L and E, and the pattern."""

  ours: str
  theirs: str
  pattern: Pattern
  shape: tuple[int, ...]
  stack: tuple[int, ...] = ()  # (), (L,) or (L, E)
  offset: int = 0  # where it begins in the first axis of their tensor
  layers: tuple[int, ...] = ()  # the numbers of a stack's layers; (): 0, 1, ...

  def names(self) -> list[str]:
    """Their tensors, in the order of the layers (and in each that of the experts)."""
    return [self.name(index) for index in np.ndindex(*self.stack)]

  def name(self, index: Sequence[int]) -> str:
    """Their tensor that holds ours[index], of the leading axes."""
    numbers = dict(zip(("layer", "expert"), index, strict=False))
    if self.layers:
      numbers["layer"] = self.layers[index[0]]
    return self.theirs.format(**numbers)

  @property
  def full_shape(self) -> tuple[int, ...]:
    """The parameter's, with the leading axes."""
    return self.stack + self.shape

  @property
  def their_shape(self) -> tuple[int, ...]:
    """Of their tensor, or of this row's part of it if several follow each other."""
    sizes = self._sizes()
    return tuple(math.prod(_size(a, sizes) for a in group) for group in self.pattern.theirs)

  def _sizes(self) -> dict[str, int]:
    return dict(zip(self.pattern.ours, self.shape, strict=True))

  def flat_axes(self) -> list[str]:
    """Their axes one by one, without the slots."""
    return [axis for group in self.pattern.theirs for axis in group if isinstance(axis, str)]


@dataclasses.dataclass(frozen=True)
class Theirs:
  """One tensor of theirs: its shape, and the slices of our parameters that it holds."""

  shape: tuple[int, ...]
  parts: tuple[tuple[Row, tuple[int, ...]], ...]  # a row and the index of its leading axes


def rows(cfg: DecoderConfig, prefix: str | None = None) -> list[Row]:
  """The rows that a decoder of this config needs, in the table's order; `prefix` as in names.py."""
  specs = flatten(param_specs(cfg))
  table = [row for named in their_names.of_family(cfg) for row in _in_stacks(cfg, *named)]
  unnamed = set(specs) - {ours for ours, *_ in table}
  assert not unnamed, f"no row in weights/names.py for {sorted(unnamed)}"
  out: list[Row] = []
  ends: dict[tuple, int] = {}
  for ours, theirs, text, layers in table:
    if ours not in specs:
      continue
    shape, pattern = specs[ours].shape, parse(text)
    depth = ("{layer}" in theirs) + ("{expert}" in theirs)
    letters = re.search(r"(?:_([A-Z]+))?$", ours)[1] or ""
    assert "".join(pattern.ours) == letters[max(depth - 1, 0) :], (ours, text)
    theirs = their_names.spell(cfg, theirs, prefix)
    tensor = (theirs, layers)
    row = Row(ours, theirs, pattern, shape[depth:], shape[:depth], ends.get(tensor, 0), layers)
    slots = any(isinstance(axis, tuple) for group in pattern.theirs for axis in group)
    if pattern.theirs and not slots:
      ends[tensor] = row.offset + row.their_shape[0]
    out.append(row)
  return out


def _in_stacks(cfg: DecoderConfig, ours: str, theirs: str, text: str) -> list[tuple]:
  """A row of names.py with the numbers of its layers; one under blocks/ for each stack of layers."""
  first, _, rest = ours.partition("/")
  if first != "blocks":
    return [(ours, theirs, text, ())]
  return [(f"{kind.stack}/{rest}", theirs, text, kind.layers) for kind in kinds(cfg)]


def tensors_of(cfg: DecoderConfig, prefix: str | None = None) -> dict[str, Theirs]:
  """Every tensor of theirs by name, layer by layer as a forward pass reads them."""
  parts: dict[str, list] = {}
  for row in rows(cfg, prefix):
    for index in np.ndindex(*row.stack):
      parts.setdefault(row.name(index), []).append((row, index))

  def place(item):
    row, index = item[1][0]
    if index:
      return (1, row.layers[index[0]])
    return (0 if row.ours.startswith(("embed", "layer_inputs")) else 2, 0)

  out = {}
  for name, found in sorted(parts.items(), key=place):
    shape, last = found[0][0].their_shape, found[-1][0]
    if shape:
      shape = (max(shape[0], last.offset + last.their_shape[0]), *shape[1:])
    out[name] = Theirs(shape, tuple(found))
  return out


def embedding_name(cfg: DecoderConfig, prefix: str | None = None) -> str:
  """Their name of the embedding, which a tied head spells a second time."""
  return next(row.theirs for row in rows(cfg, prefix) if row.ours == EMBEDDING)


def read_slice(theirs, row: Row, index: Sequence[slice]) -> np.ndarray:
  """ours[index] of one layer, as a view of `theirs`."""
  return turn(rows_read(theirs, row, index), row, index)


def rows_read(theirs, row: Row, index: Sequence[slice]):
  """The run of `theirs` along its first axis that holds ours[index] of one layer.

  Inside parentheses only the first axis is cut: (N H) with N cut is one run of rows; with H cut it would be
  many, so those are read whole and cut afterwards.
  """
  return theirs[_run(row, 0, _bounds(row, index))] if row.pattern.theirs else theirs


def turn(run, row: Row, index: Sequence[slice]) -> np.ndarray:
  """ours[index] of one layer, as a view of the run that rows_read finds."""
  bounds = _bounds(row, index)
  array = _part(run, row, bounds, whole=False)
  axes = row.flat_axes()
  array = array.transpose([axes.index(axis) for axis in row.pattern.ours])
  firsts = {group[0] for group in row.pattern.theirs}
  cut = [slice(None) if axis in firsts else slice(*bounds[axis]) for axis in row.pattern.ours]
  return array[tuple(cut)]


def pieces(row: Row, index: Sequence[slice], num_values: int) -> Iterator[tuple[list, tuple]]:
  """`index` in pieces whose runs hold about `num_values` values, each with its place in ours[index]."""
  first = row.pattern.theirs[0][0] if row.pattern.theirs else None
  if not isinstance(first, str):
    yield list(index), (slice(None),) * len(index)
    return
  at, sizes = row.pattern.ours.index(first), row._sizes()
  start, stop, _ = index[at].indices(sizes[first])
  step = max(1, num_values * sizes[first] // math.prod(row.their_shape) // 8) * 8  # whole strips
  for begin in range(start, stop, step):
    end = min(begin + step, stop)
    piece, place = list(index), [slice(None)] * len(index)
    piece[at], place[at] = slice(begin, end), slice(begin - start, end - start)
    yield piece, tuple(place)


def to_theirs(arrays: Sequence[np.ndarray], theirs: Theirs) -> np.ndarray:
  """Their tensor from the arrays of its parts, each one layer of ours."""
  out = np.empty(theirs.shape, arrays[0].dtype)
  for array, (row, _) in zip(arrays, theirs.parts, strict=True):
    put(out, row, (slice(None),) * array.ndim, array)
  return out


def put(out: np.ndarray, row: Row, index: Sequence[slice], values: np.ndarray) -> None:
  """Their tensor `out` takes values = ours[index] of one layer of the row."""
  whole = {axis: (0, size) for axis, size in zip(row.pattern.ours, row.shape, strict=True)}
  order = [row.pattern.ours.index(axis) for axis in row.flat_axes()]
  target = _part(out, row, whole)[(*(index[i] for i in order), ...)]  # ...: a view of a scalar too
  copy(target, values.transpose(order))


def fill(out: np.ndarray, values: np.ndarray) -> None:
  """copy(out, values), where `out` holds zeros.

  bfloat16 becomes float32 as the upper half of each value; the lower half, zero, is not touched.
  """
  widen = (values.dtype.name, out.dtype.name) == ("bfloat16", "float32")
  if widen and out.ndim and out.strides[-1] == out.itemsize and sys.byteorder == "little":
    out, values = out.view(np.uint16)[..., 1::2], values.view(np.uint16)
  copy(out, values)


def copy(out: np.ndarray, values: np.ndarray) -> None:
  """out[...] = values, whose axes may lie in another order: in strips that fit the cache.

  3 to 4 times as fast as numpy's own.
  """
  if out.dtype == values.dtype and out.itemsize == 2:  # numpy moves its own types faster
    out, values = out.view(np.uint16), values.view(np.uint16)
  if values.ndim < 2 or values.strides[-1] == min(values.strides):
    out[...] = values
    return
  step = max(1, _STRIP // out.strides[-1])
  for start in range(0, values.shape[-1], step):
    strip = slice(start, start + step)
    out[..., strip] = values[..., strip]


def _bounds(row: Row, index: Sequence[slice]) -> dict[str, tuple[int, int]]:
  return {
    axis: part.indices(size)[:2]
    for axis, part, size in zip(row.pattern.ours, index, row.shape, strict=True)
  }


def _part(theirs, row: Row, bounds: dict[str, tuple[int, int]], whole: bool = True) -> np.ndarray:
  """A view of the row's part of `theirs`, an axis for each of row.flat_axes(), cut as `bounds` says.

  Not `whole`: `theirs` is cut along its first axis already.
  """
  sizes = row._sizes()
  read, flat_shape, slots = [], [], []
  for number, group in enumerate(row.pattern.theirs):
    run = _run(row, number, bounds)
    read.append(run if whole or number else slice(None))
    rest = [_size(axis, sizes) for axis in group[1:]]
    flat_shape += [(run.stop - run.start) // math.prod(rest), *rest]
    slots += [axis[0] if isinstance(axis, tuple) else slice(None) for axis in group]
  return theirs[(*read, ...)].reshape(flat_shape)[(*slots, ...)]  # ...: a view of a scalar too


def _run(row: Row, number: int, bounds: dict[str, tuple[int, int]]) -> slice:
  """Where `bounds` of the group's first axis lie along that axis of their tensor."""
  first, *rest = row.pattern.theirs[number]
  start, stop = bounds[first] if isinstance(first, str) else (0, first[1])
  inner = math.prod(_size(axis, row._sizes()) for axis in rest)
  offset = row.offset if number == 0 else 0
  return slice(offset + start * inner, offset + stop * inner)


def _size(axis: str | Slot, sizes: dict[str, int]) -> int:
  return axis[1] if isinstance(axis, tuple) else sizes[axis]


@functools.cache
def parse(text: str) -> Pattern:
  """Pattern of its text."""
  left, right = text.split(" -> ")
  groups = []
  for part in re.findall(r"\([^)]+\)|[A-Z]", left):
    items = part.strip("()").split()
    groups.append(tuple(tuple(map(int, i.split("/"))) if "/" in i else i for i in items))
  ours = tuple(right.split())
  assert sorted(a for group in groups for a in group if isinstance(a, str)) == sorted(ours), text
  return Pattern(tuple(groups), ours)


def flatten(tree: dict, prefix: str = "") -> dict:
  """{"a": {"b": x}} -> {"a/b": x}."""
  out = {}
  for key, value in tree.items():
    out |= flatten(value, f"{prefix}{key}/") if isinstance(value, dict) else {prefix + key: value}
  return out


def unflatten(flat: dict) -> dict:
  """{"a/b": x} -> {"a": {"b": x}}."""
  tree: dict = {}
  for path, value in flat.items():
    *parents, last = path.split("/")
    node = tree
    for parent in parents:
      node = node.setdefault(parent, {})
    node[last] = value
  return tree
