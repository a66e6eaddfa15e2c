"""Hugging Face tensors straight into the shards of our parameters."""

import itertools
import math
import pathlib
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from mlit_jax.errors import UserError
from mlit_jax.model.config import DecoderConfig
from mlit_jax.weights import hf_files, names, table
from mlit_jax.weights.hf_files import few

# float64 would not survive a float32 parameter; the rest are quantised weights.
READABLE = ("float32", "bfloat16", "float16")
_CHUNK_BYTES = 1 << 26


def load_params(
  folder,
  cfg: DecoderConfig,
  shardings=None,
  *,
  dtype=jnp.float32,
  progress: Callable[[int, int], None] | None = None,
) -> dict:
  """Parameters of the model in `folder`; each process reads the slices that its devices hold.

  Without `shardings` they lie on the default device. `progress` is told (bytes of the files read, of
  how many that this process reads).
  """
  layout = check_names(folder, cfg)
  arrays = hf_files.map_tensors(folder, layout)
  prefix = names.prefix_of(cfg, arrays)
  _check_tied_head(folder, cfg, arrays, table.embedding_name(cfg, prefix))
  if shardings is not None:
    shardings = table.flatten(shardings)
  rows = table.rows(cfg, prefix)
  params = {}
  done, total = 0, _bytes_to_read(rows, arrays, shardings) if progress else 0

  def count(array: np.ndarray) -> None:
    nonlocal done
    done += array.nbytes
    if progress:
      progress(done, total)

  for row in rows:
    read = _reader(arrays, row, np.dtype(dtype), count)
    if shardings is None:
      params[row.ours] = jax.device_put(read(tuple((0, size) for size in row.full_shape)))
    else:
      params[row.ours] = _place(read, row.full_shape, shardings[row.ours])
  return table.unflatten(params)


def check_names(folder, cfg: DecoderConfig) -> hf_files.Layout:
  """The folder's layout, if its tensors are exactly those of the config; else one UserError."""
  folder = pathlib.Path(folder)
  layout = hf_files.read_layout(folder)
  found = layout.tensors()
  prefix = names.prefix_of(cfg, found)
  expected = {name: theirs.shape for name, theirs in table.tensors_of(cfg, prefix).items()}
  optional = {names.HEAD: expected[table.embedding_name(cfg, prefix)]} if cfg.tied else {}
  known = expected | optional
  faults = {
    "missing": sorted(set(expected) - set(found)),
    "unknown": sorted(n for n in found if n not in known and not names.is_skipped(n)),
    "of the wrong shape": [
      f"{n} is {list(t.shape)}, config.json says {list(known[n])}"
      for n, t in found.items()
      if n in known and t.shape != known[n]
    ],
    "of a dtype that cannot be tuned": [
      f"{n} is {t.dtype}" for n, t in found.items() if n in known and t.dtype not in READABLE
    ],
  }
  if any(faults.values()):
    lines = [f"{len(listed)} {what}: {few(listed)}" for what, listed in faults.items() if listed]
    raise UserError(
      f"{folder}: the weights do not match config.json (family {cfg.family}). "
      + "; ".join(lines)
      + ". Use a folder whose config.json belongs to its weights"
      + (
        f", in one of {', '.join(READABLE)}." if faults["of a dtype that cannot be tuned"] else "."
      )
    )
  return layout


def _bytes_to_read(rows, arrays, shardings) -> int:
  """The bytes of the files behind the slices that this process's devices hold, each slice once."""
  total = 0
  for row in rows:
    shape, depth = row.full_shape, len(row.stack)
    indices = {tuple((0, size) for size in shape)}
    if shardings is not None:
      held = shardings[row.ours].addressable_devices_indices_map(shape).values()
      indices = {_bounds(index, shape) for index in held}
    for bounds in indices:
      num_values = math.prod(stop - start for start, stop in bounds[depth:])
      leading = itertools.product(*(range(*pair) for pair in bounds[:depth]))
      total += num_values * sum(arrays[row.name(index)].itemsize for index in leading)
  return total


def _bounds(index, shape) -> tuple[tuple[int, int], ...]:
  return tuple(part.indices(size)[:2] for part, size in zip(index, shape, strict=True))


def _place(read: Callable, shape, sharding) -> jax.Array:
  """The parameter on its devices. Slice by slice, so that the host holds one at a time."""
  holders: dict[tuple, list] = {}
  for device, index in sharding.addressable_devices_indices_map(shape).items():
    holders.setdefault(_bounds(index, shape), []).append(device)
  shards = []
  for bounds, devices in holders.items():  # replicas are read once
    host = read(bounds)
    shards += jax.block_until_ready([jax.device_put(host, device) for device in devices])
    del host
  return jax.make_array_from_single_device_arrays(shape, sharding, shards)


def _reader(arrays, row: table.Row, dtype: np.dtype, count: Callable):
  """read(bounds) -> that slice of the parameter; what was read of the files is let go again."""

  def read(bounds) -> np.ndarray:
    depth = len(row.stack)
    cut = tuple(slice(*pair) for pair in bounds[depth:])
    out = np.empty([stop - start for start, stop in bounds], dtype)
    for here in np.ndindex(out.shape[:depth]):
      index = tuple(i + start for i, (start, _) in zip(here, bounds[:depth], strict=True))
      fill(out[(*here, ...)], arrays[row.name(index)], cut)
    return out

  def fill(out, source, index) -> None:
    array = table.read_slice(source, row, index)
    out[...] = array
    count(array)
    hf_files.release(source)

  return read


def _check_tied_head(folder, cfg: DecoderConfig, arrays, embedding_name: str) -> None:
  """A tied model may carry its head a second time; then the two must be one."""
  if not cfg.tied or names.HEAD not in arrays:
    return
  head, embedding = arrays[names.HEAD], arrays[embedding_name]
  rows = max(1, _CHUNK_BYTES // max(1, embedding[:1].nbytes))
  for start in range(0, len(embedding), rows):
    a, b = head[start : start + rows], embedding[start : start + rows]
    same = (a.astype(np.float32) == b.astype(np.float32)).all(axis=1)
    if not same.all():
      raise UserError(
        f"{folder}: config.json says tie_word_embeddings, but {names.HEAD} differs from "
        f"{embedding_name} (first in row {start + int(np.argmin(same)):,}). Set tie_word_embeddings "
        f"to false to tune the two apart, or remove {names.HEAD}."
      )
