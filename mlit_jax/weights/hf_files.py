"""Safetensors folders: headers, memory-mapped tensors, and a writer that streams shards.

A shard is 8 bytes (length of the header, little endian), the header as JSON, then the tensors end to
end.
"""

import contextlib
import dataclasses
import json
import math
import mmap
import os
import pathlib
import re
import struct
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping

import ml_dtypes
import numpy as np

from mlit_jax.errors import UserError

SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
MAX_SHARD_BYTES = 5_000_000_000
# The format's own limit; a longer "header" means that the file is something else.
MAX_HEADER_BYTES = 100_000_000
MOST_AXES = 16  # of a tensor; numpy knows 64
_PLAIN_NAME = re.compile(r"[^/\\\0.][^/\\\0]{0,239}\.safetensors")

# Names in headers, and what numpy calls them.
DTYPES = {
  "F64": np.dtype(np.float64),
  "F32": np.dtype(np.float32),
  "F16": np.dtype(np.float16),
  "BF16": np.dtype(ml_dtypes.bfloat16),
  "F8_E4M3": np.dtype(ml_dtypes.float8_e4m3fn),
  "F8_E5M2": np.dtype(ml_dtypes.float8_e5m2),
  "I64": np.dtype(np.int64),
  "I32": np.dtype(np.int32),
  "I16": np.dtype(np.int16),
  "I8": np.dtype(np.int8),
  "U64": np.dtype(np.uint64),
  "U32": np.dtype(np.uint32),
  "U16": np.dtype(np.uint16),
  "U8": np.dtype(np.uint8),
  "BOOL": np.dtype(np.bool_),
}
_of_thread = threading.local()
CODES = {dtype.name: code for code, dtype in DTYPES.items()}


@dataclasses.dataclass(frozen=True)
class Tensor:
  """Where one tensor lies: bytes [start, end) after the header of `file`."""

  name: str
  file: str
  dtype: str  # numpy's name: "bfloat16"
  shape: tuple[int, ...]
  start: int
  end: int


@dataclasses.dataclass(frozen=True)
class Layout:
  """Headers of the shards, letter by letter as they stand in the files, and the index if any.

  Enough to write a folder again byte for byte, given the values.
  """

  headers: Mapping[str, str]  # shard file -> JSON text
  index: str | None

  def tensors(self) -> dict[str, Tensor]:
    return {
      tensor.name: tensor
      for file, text in self.headers.items()
      for tensor in parse_header(text, file)
    }


def read_layout(folder) -> Layout:
  """Headers of every shard that the folder's index names, checked against the index."""
  folder = pathlib.Path(folder)
  has_single = (folder / SINGLE_FILE).exists()
  has_index = (folder / INDEX_FILE).exists()
  if has_single and has_index:
    raise UserError(
      f"{folder}: holds both {SINGLE_FILE} and {INDEX_FILE}, so one of them is left from another "
      "export. Remove the stale one."
    )
  if has_single:
    return Layout({SINGLE_FILE: read_header(folder / SINGLE_FILE)}, None)
  if has_index:
    return _read_sharded(folder)
  _refuse_other_formats(folder)


def map_tensors(folder, layout: Layout) -> dict[str, np.ndarray]:
  """Every tensor as a read-only view of its memory-mapped file: bytes are read when touched."""
  folder = pathlib.Path(folder)
  arrays = {}
  for file, text in layout.headers.items():
    data_start = 8 + len(text.encode())
    bytes_of_file = np.memmap(folder / file, dtype=np.uint8, mode="r")
    for tensor in parse_header(text, file):
      flat = bytes_of_file[data_start + tensor.start : data_start + tensor.end]
      arrays[tensor.name] = flat.view(_numpy_dtype(tensor.dtype)).reshape(tensor.shape)
  return arrays


def read(array: np.ndarray) -> np.ndarray:
  """The values of a mapped tensor, or of a run of its rows, in a buffer of this thread: good until the next call.

  Through the map each page would be a fault, and the process's own until it is released.
  """
  if len(getattr(_of_thread, "buffer", "")) < array.nbytes:
    _of_thread.buffer = np.empty(array.nbytes, np.uint8)
  target = _of_thread.buffer[: array.nbytes]
  with open(array.filename, "rb", buffering=0) as f:
    f.seek(_start(array))
    done = 0
    while done < array.nbytes:
      got = f.readinto(target[done:])
      if not got:
        raise UserError(f"{array.filename}: became shorter while it was read. Fetch it again.")
      done += got
  return target.view(array.dtype).reshape(array.shape)


def release(array: np.ndarray) -> None:
  """Lets go of the memory of a mapped tensor; the kernel reads it again when it is touched.

  Pages of a map count as the process's own: an import would end with the whole checkpoint beside it.
  """
  start = _start(array)
  first = start // mmap.PAGESIZE * mmap.PAGESIZE
  array._mmap.madvise(mmap.MADV_DONTNEED, first, start + array.nbytes - first)


def _start(array: np.ndarray) -> int:
  """Where a mapped tensor, or a run of its rows, begins in its file."""
  return array.ctypes.data - np.frombuffer(array._mmap, np.uint8).ctypes.data


def read_header(path) -> str:
  """The header's JSON text, after checking that it accounts for every byte of the file."""
  path = pathlib.Path(path)
  if not path.is_file():
    raise UserError(f"{path}: not a file. Fetch the folder again.")
  try:
    return _read_header(path)
  except OSError as e:
    raise UserError(f"{path}: cannot be read ({e.strerror or e}).") from e


def _read_header(path: pathlib.Path) -> str:
  size = path.stat().st_size
  with path.open("rb") as f:
    first = f.read(8)
    if first == b"version ":
      raise UserError(
        f"{path}: is a git-lfs pointer, not the weights. Fetch them with `git lfs pull`."
      )
    if len(first) < 8:
      raise UserError(
        f"{path}: truncated: {size} bytes, too few for a header. Fetch the file again."
      )
    (length,) = struct.unpack("<Q", first)
    if length > MAX_HEADER_BYTES:
      raise UserError(f"{path}: not a safetensors file (its header would have {length:,} bytes).")
    raw = f.read(length)
  if len(raw) < length:
    raise UserError(f"{path}: truncated inside the header ({size:,} bytes). Fetch the file again.")
  try:
    text = raw.decode()
  except UnicodeDecodeError as e:
    raise UserError(f"{path}: not a safetensors file (its header is not text).") from e
  tensors = parse_header(text, path)
  data_bytes = size - 8 - length
  expected = tensors[-1].end if tensors else 0
  if data_bytes < expected:
    raise UserError(
      f"{path}: truncated: the header describes {expected:,} bytes of tensors, the file holds "
      f"{data_bytes:,}. Fetch the file again."
    )
  if data_bytes > expected:
    raise UserError(
      f"{path}: {data_bytes - expected:,} bytes follow the last tensor of the header. The file is "
      "damaged; fetch it again."
    )
  return text


def parse_header(text: str, file) -> list[Tensor]:
  """The header's tensors in the order of their bytes."""
  name = pathlib.Path(file).name
  try:
    header = json.loads(text, object_pairs_hook=_unique_keys)
  except (ValueError, RecursionError) as e:
    raise UserError(f"{file}: not a safetensors file (header: {few([e])}).") from e
  if not isinstance(header, dict):
    raise UserError(f"{file}: not a safetensors file (its header is not an object).")
  tensors = [
    _tensor(key, entry, name, file) for key, entry in header.items() if key != "__metadata__"
  ]
  tensors.sort(key=lambda tensor: (tensor.start, tensor.end))
  position = 0
  for tensor in tensors:
    if tensor.start != position:
      raise UserError(
        f"{file}: tensor {tensor.name} starts at byte {tensor.start:,}, the one before it ends at "
        f"{position:,}. The header is damaged; fetch the file again."
      )
    position = tensor.end
  return tensors


def plan_layout(
  tensors: Iterable[tuple[str, str, tuple[int, ...]]], max_shard_bytes: int = MAX_SHARD_BYTES
) -> Layout:
  """A layout for (name, dtype, shape) tensors: filled in the order given, one file if they fit."""
  shards, sizes, total = [[]], [0], 0
  for name, dtype, shape in tensors:
    size = math.prod(shape) * _numpy_dtype(dtype).itemsize
    if shards[-1] and sizes[-1] + size > max_shard_bytes:
      shards.append([])
      sizes.append(0)
    shards[-1].append((name, dtype, shape))
    sizes[-1] += size
    total += size
  if len(shards) == 1:
    return Layout({SINGLE_FILE: _header_text(shards[0])}, None)
  names = [f"model-{i + 1:05d}-of-{len(shards):05d}.safetensors" for i in range(len(shards))]
  weight_map = {t[0]: file for file, shard in zip(names, shards, strict=True) for t in shard}
  index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
  headers = {file: _header_text(shard) for file, shard in zip(names, shards, strict=True)}
  return Layout(headers, json.dumps(index, indent=2) + "\n")


@contextlib.contextmanager
def open_shard(path, header: str) -> Iterator[Callable[[Tensor, np.ndarray], None]]:
  """Writes the header, hands out `write(tensor, array)`, and syncs the file to disk at the end.

  Tensors must come in the order of `parse_header`.
  """
  path = pathlib.Path(path)
  pending = parse_header(header, path)[::-1]
  raw = header.encode()
  with path.open("xb") as f:
    f.write(struct.pack("<Q", len(raw)) + raw)

    def write(tensor: Tensor, array: np.ndarray) -> None:
      expected = pending.pop()
      assert tensor == expected, (tensor, expected)
      assert array.dtype.name == tensor.dtype and array.shape == tensor.shape, (tensor, array.shape)
      # Viewed as bytes because bfloat16 has no buffer format that files accept.
      f.write(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)

    yield write
    assert not pending, f"{path}: not written: {[t.name for t in pending]}"
    f.flush()
    os.fsync(f.fileno())


def sync_folder(path) -> None:
  """Makes names created in the folder durable."""
  descriptor = os.open(path, os.O_RDONLY)
  try:
    os.fsync(descriptor)
  finally:
    os.close(descriptor)


def _read_sharded(folder: pathlib.Path) -> Layout:
  path = folder / INDEX_FILE
  try:
    if path.stat().st_size > MAX_HEADER_BYTES:
      raise ValueError(f"it is longer than {MAX_HEADER_BYTES:,} bytes")
    index = path.read_text(encoding="utf-8")
    weight_map = json.loads(index)["weight_map"]
    files = sorted(set(weight_map.values()))
  except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as e:
    raise UserError(
      f"{path}: not an index of shards (no readable weight_map). Fetch it again."
    ) from e
  for file in files:
    if not isinstance(file, str) or not _PLAIN_NAME.fullmatch(file):
      raise UserError(
        f"{path}: shard {few([repr(file)])} is not the plain name of a file here, as model-00001-of-00002.safetensors "
        "is. Fetch the index again."
      )
  missing = [file for file in files if not (folder / file).is_file()]
  if missing:
    raise UserError(
      f"{path}: {len(missing)} of {len(files)} shards are missing: {few(missing)}. Fetch them into "
      f"{folder}."
    )
  layout = Layout({file: read_header(folder / file) for file in files}, index)
  found = [
    (t.name, file) for file, text in layout.headers.items() for t in parse_header(text, file)
  ]
  wrong = sorted(set(found).symmetric_difference(weight_map.items()))
  if wrong:
    raise UserError(
      f"{path}: the index and the shards disagree on {len(wrong)} entries: "
      f"{few([f'{name} in {file}' for name, file in wrong])}. Shards of different exports are "
      "mixed; fetch the folder again."
    )
  return layout


def _refuse_other_formats(folder: pathlib.Path):
  pickles = sorted(p.name for p in folder.glob("*.bin")) + sorted(
    p.name for p in folder.glob("*.pth")
  )
  if pickles:
    raise UserError(
      f"{folder}: holds pickled weights ({few(pickles)}), which can run code when read and are "
      'refused. Convert them once, where you trust them: python -c "from transformers import '
      f"AutoModelForCausalLM as M; M.from_pretrained('{folder}').save_pretrained('{folder}-safetensors')"
      '" and copy the tokenizer files beside them.'
    )
  raise UserError(f"{folder}: no weights here: looked for {SINGLE_FILE} and {INDEX_FILE}.")


def _tensor(key: str, entry, name: str, file) -> Tensor:
  shown = few([key])
  try:
    code, shape, (start, end) = entry["dtype"], entry["shape"], entry["data_offsets"]
    numbers = [*shape, start, end]
  except (TypeError, KeyError, ValueError):
    numbers = [None]
  if len(numbers) > MOST_AXES + 2 or not all(type(n) is int and 0 <= n < 1 << 63 for n in numbers):
    raise UserError(f"{file}: tensor {shown}: unreadable header entry {few([repr(entry)])}.")
  if not isinstance(code, str) or code not in DTYPES:
    raise UserError(
      f"{file}: tensor {shown}: unknown dtype {few([repr(code)])}; known are {', '.join(DTYPES)}."
    )
  size = math.prod(shape) * DTYPES[code].itemsize
  if end - start != size:
    raise UserError(
      f"{file}: tensor {shown}: {code} of shape {shape} takes {size:,} bytes, the header gives it "
      f"{end - start:,}. The header is damaged; fetch the file again."
    )
  return Tensor(key, name, DTYPES[code].name, tuple(shape), start, end)


def _header_text(tensors) -> str:
  # The order of the safetensors library (widest dtype first, then by name) keeps tensors aligned.
  tensors = sorted(tensors, key=lambda t: (-_numpy_dtype(t[1]).itemsize, t[0]))
  header, position = {"__metadata__": {"format": "pt"}}, 0
  for name, dtype, shape in tensors:
    end = position + math.prod(shape) * _numpy_dtype(dtype).itemsize
    header[name] = {"dtype": CODES[dtype], "shape": list(shape), "data_offsets": [position, end]}
    position = end
  text = json.dumps(header, separators=(",", ":"), ensure_ascii=False)
  return text + " " * (-len(text.encode()) % 8)


def _numpy_dtype(name: str) -> np.dtype:
  return DTYPES[CODES[name]]


def _unique_keys(pairs):
  found = {}
  for key, value in pairs:
    if key in found:
      raise ValueError(f"{key!r} stands in it twice")
    found[key] = value
  return found


def few(items, limit: int = 4) -> str:
  """The first items, each shortened, and how many more."""
  texts = map(str, items[:limit])
  shown = ", ".join(text if len(text) <= 200 else f"{text[:200]}..." for text in texts)
  return shown if len(items) <= limit else f"{shown} and {len(items) - limit} more"
