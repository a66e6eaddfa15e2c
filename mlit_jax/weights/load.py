"""Hugging Face tensors straight into the shards of our parameters."""

import pathlib
import threading
from collections.abc import Callable
from concurrent import futures

import jax.numpy as jnp
import numpy as np

from mlit_jax import checksums
from mlit_jax.errors import UserError
from mlit_jax.model.config import DecoderConfig
from mlit_jax.weights import hf_files, names, table, transfer
from mlit_jax.weights.hf_files import few
from mlit_jax.weights.writer import on_first

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
  how many that this process reads). Where the folder has SHA256SUMS, its shards must be what they say.
  """
  layout = check_names(folder, cfg)
  damaged = UserError(f"{folder}: damaged; the first process's message says what.")
  on_first(lambda: checksums.check(pathlib.Path(folder), only="*.safetensors"), damaged)
  arrays = hf_files.map_tensors(folder, layout)
  prefix = names.prefix_of(cfg, arrays)
  _check_tied_head(folder, cfg, arrays, prefix)
  rows = table.rows(cfg, prefix)
  lying = dict.fromkeys(row.ours for row in rows) if shardings is None else table.flatten(shardings)
  total = sum(transfer.bytes_to_read(arrays, row, lying[row.ours]) for row in rows)
  done, lock = 0, threading.Lock()

  def count(num_bytes: int) -> None:
    nonlocal done
    with lock:
      done += num_bytes
      if progress:
        progress(done, total)

  with futures.ThreadPoolExecutor(transfer.THREADS) as pool:
    params = {
      row.ours: transfer.place(arrays, row, lying[row.ours], dtype, pool, count) for row in rows
    }
  return table.unflatten(params)


def check_names(folder, cfg: DecoderConfig) -> hf_files.Layout:
  """The folder's layout, if its tensors are exactly those of the config; else one UserError."""
  folder = pathlib.Path(folder)
  layout = hf_files.read_layout(folder)
  found = layout.tensors()
  prefix = names.prefix_of(cfg, found)
  expected = {name: theirs.shape for name, theirs in table.tensors_of(cfg, prefix).items()}
  head = names.head(prefix)
  optional = {head: expected[table.embedding_name(cfg, prefix)]} if cfg.tied else {}
  known = expected | optional
  carried = {n for n in found if names.is_carried(cfg, n)}
  parts = names.CARRIED.get(cfg.family, ())
  absent = [f"{part}*" for part in parts if not any(part in n for n in carried)]
  faults = {
    "missing": sorted(set(expected) - set(found)) + absent,
    "unknown": sorted(
      n for n in found if n not in known and n not in carried and not names.is_skipped(n)
    ),
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


def _check_tied_head(folder, cfg: DecoderConfig, arrays, prefix: str) -> None:
  """A tied model may carry its head a second time; then the two must be one."""
  head_name, embedding_name = names.head(prefix), table.embedding_name(cfg, prefix)
  if not cfg.tied or head_name not in arrays:
    return
  head, embedding = arrays[head_name], arrays[embedding_name]
  rows = max(1, _CHUNK_BYTES // max(1, embedding[:1].nbytes))
  for start in range(0, len(embedding), rows):
    a, b = head[start : start + rows], embedding[start : start + rows]
    same = (a.astype(np.float32) == b.astype(np.float32)).all(axis=1)
    hf_files.release(head), hf_files.release(embedding)
    if not same.all():
      raise UserError(
        f"{folder}: config.json says tie_word_embeddings, but {head_name} differs from "
        f"{embedding_name} (first in row {start + int(np.argmin(same)):,}). Set tie_word_embeddings "
        f"to false to tune the two apart, or remove {head_name}."
      )
