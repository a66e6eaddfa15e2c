"""Hugging Face tensors straight into the shards of our parameters."""

import pathlib
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from mlit_jax.errors import UserError
from mlit_jax.model.config import DecoderConfig
from mlit_jax.weights import hf_files, table
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

  Without `shardings` they lie on the default device. `progress` is told (parameters done, of how
  many).
  """
  layout = check_names(folder, cfg)
  arrays = hf_files.map_tensors(folder, layout)
  _check_tied_head(folder, cfg, arrays)
  if shardings is not None:
    shardings = table.flatten(shardings)
  rows = table.rows(cfg)
  params = {}
  for done, row in enumerate(rows, start=1):
    sources = [arrays[name] for name in row.names()]
    stacked = row.num_layers is not None
    shape = (row.num_layers, *row.shape) if stacked else row.shape
    read = _reader(sources, row, shape, stacked, np.dtype(dtype))
    if shardings is None:
      params[row.ours] = jax.device_put(read((slice(None),) * len(shape)))
    else:
      params[row.ours] = jax.make_array_from_callback(shape, shardings[row.ours], read)
    if progress:
      progress(done, len(rows))
  return table.unflatten(params)


def check_names(folder, cfg: DecoderConfig) -> hf_files.Layout:
  """The folder's layout, if its tensors are exactly those of the config; else one UserError."""
  folder = pathlib.Path(folder)
  layout = hf_files.read_layout(folder)
  found = layout.tensors()
  expected = {name: row.their_shape for name, (row, _) in table.tensors_of(cfg).items()}
  optional = {table.HEAD: expected[table.EMBEDDING]} if cfg.tied else {}
  known = expected | optional
  faults = {
    "missing": sorted(set(expected) - set(found)),
    "unknown": sorted(n for n in found if n not in known and not table.is_skipped(n)),
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
    lines = [f"{len(names)} {what}: {few(names)}" for what, names in faults.items() if names]
    raise UserError(
      f"{folder}: the weights do not match config.json (family {cfg.family}). "
      + "; ".join(lines)
      + ". Use a folder whose config.json belongs to its weights"
      + (
        f", in one of {', '.join(READABLE)}." if faults["of a dtype that cannot be tuned"] else "."
      )
    )
  return layout


def _reader(sources, row: table.Row, shape, stacked: bool, dtype: np.dtype):
  """Callback for make_array_from_callback. Remembers shards: JAX asks again for every replica."""
  seen: dict[tuple, np.ndarray] = {}

  def read(index) -> np.ndarray:
    bounds = tuple(part.indices(size)[:2] for part, size in zip(index, shape, strict=True))
    if bounds in seen:
      return seen[bounds]
    out = np.empty([stop - start for start, stop in bounds], dtype)
    if stacked:
      for i, layer in enumerate(range(*bounds[0])):
        out[i] = table.read_slice(sources[layer], row, index[1:])
    else:
      out[...] = table.read_slice(sources[0], row, index)
    seen[bounds] = out
    return out

  return read


def _check_tied_head(folder, cfg: DecoderConfig, arrays) -> None:
  """A tied model may carry its head a second time; then the two must be one."""
  if not cfg.tied or table.HEAD not in arrays:
    return
  head, embedding = arrays[table.HEAD], arrays[table.EMBEDDING]
  rows = max(1, _CHUNK_BYTES // max(1, embedding[:1].nbytes))
  for start in range(0, len(embedding), rows):
    a, b = head[start : start + rows], embedding[start : start + rows]
    same = (a.astype(np.float32) == b.astype(np.float32)).all(axis=1)
    if not same.all():
      raise UserError(
        f"{folder}: config.json says tie_word_embeddings, but {table.HEAD} differs from "
        f"{table.EMBEDDING} (first in row {start + int(np.argmin(same)):,}). Set tie_word_embeddings "
        f"to false to tune the two apart, or remove {table.HEAD}."
      )
