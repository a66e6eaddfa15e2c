"""Parameters out to a Hugging Face folder: streamed, verified, renamed into place."""

import functools
import json
import os
import pathlib
import shutil
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from mlit_jax import checksums
from mlit_jax.errors import UserError
from mlit_jax.model.config import DecoderConfig, text_config
from mlit_jax.weights import hf_files, names, table, transfer
from mlit_jax.weights.load import READABLE
from mlit_jax.weights.writer import FolderWriter, check_new, not_written, on_first


def save_folder(
  params: dict,
  cfg: DecoderConfig,
  out,
  *,
  files: Mapping[str, bytes],
  dtypes: Mapping[str, str] | str,
  layout: hf_files.Layout | None = None,
  carried: Mapping[str, np.ndarray] | None = None,
  max_shard_bytes: int = hf_files.MAX_SHARD_BYTES,
  progress: Callable[[int, int], None] | None = None,
) -> pathlib.Path:
  """Writes `params` and `files` to the new folder `out`.

  `dtypes` is one dtype for all or one per tensor of theirs (of the source). With the source's
  `layout` and dtypes the shards get the source's names, headers and order, so an untouched model comes out
  byte for byte. `carried` are the source's tensors beside the decoder's, written as they are whatever
  `dtypes` says. Under several processes all must call this; the first one writes, and a few tensors of
  theirs at a time are whole in memory. `progress` is told (bytes written, of how many).
  """
  leaves, carried = table.flatten(params), carried or {}
  _check_leaves(leaves, carried, cfg)
  spelled = layout.tensors() if layout else () if isinstance(dtypes, str) else dtypes
  prefix = names.prefix_of(cfg, spelled)
  sources = table.tensors_of(cfg, prefix)
  if cfg.tied and names.head(prefix) in spelled:  # spelled out: the embedding once more
    sources[names.head(prefix)] = sources[table.embedding_name(cfg, prefix)]
  layout = _target_layout(sources, dtypes, carried, layout, max_shard_bytes)
  total = sum(tensor.end - tensor.start for tensor in layout.tensors().values())
  out = pathlib.Path(out).resolve()
  done = 0

  def complete(folder):
    _write_files(folder, files, layout)
    _verify(folder, files, layout)
    checksums.write(folder)

  with FolderWriter(out, total) as writer:
    for file, header in layout.headers.items():
      writer.begin(file, header)
      for tensor in hf_files.parse_header(header, file):
        if tensor.name in carried:
          writer.write(tensor, functools.partial(carried.get, tensor.name))
        else:
          theirs = sources[tensor.name]
          parts = [transfer.take(leaves[row.ours], i, tensor.dtype) for row, i in theirs.parts]
          writer.write(tensor, functools.partial(_values, parts, theirs, leaves, tensor))
          del parts
        done += tensor.end - tensor.start
        if progress:
          progress(done, total)
      writer.agree()
    writer.finish(complete)
  return out


def check_free(out) -> None:
  """Refuses a folder that holds something; under several processes all must call this."""
  out = pathlib.Path(out).resolve()
  on_first(lambda: check_new(out), not_written(out))


def remove_folder(folder) -> bool:
  """Whether there was one; under several processes all must call this, and the first says so."""
  folder = pathlib.Path(folder).resolve()

  def remove():
    if not folder.is_dir():
      return False
    try:
      shutil.rmtree(folder)
    except OSError as e:
      raise UserError(f"{folder}: cannot be removed: {e}.") from e
    return True

  return bool(on_first(remove, not_written(folder)))


def rename_folder(folder, out) -> None:
  """Gives a whole folder its name, durably; under several processes all must call this."""
  folder, out = pathlib.Path(folder).resolve(), pathlib.Path(out).resolve()

  def rename():
    try:
      os.rename(folder, out)  # replaces an empty folder, never a full one
      hf_files.sync_folder(out.parent)
    except OSError as e:
      raise UserError(
        f"{out}: cannot rename {folder} to it: {e}. The export lies in {folder}."
      ) from e

  on_first(rename, not_written(out))


def with_stop_ids(files: Mapping[str, bytes], stop_ids: Sequence[int]) -> dict[str, bytes]:
  """`files` whose configs stop at `stop_ids` too; untouched where they do already.

  Tuning teaches the end-of-turn token; a base model's configs name only its end-of-text token, and
  generation reads one file or the other depending on the server.
  """
  out = dict(files)
  for name in ("config.json", "generation_config.json"):
    if name not in files:
      continue
    content = _json(name, files[name])
    text = text_config(content)
    changed = content | _eos(content.get("eos_token_id", text.get("eos_token_id")), stop_ids)
    if text is not content and "eos_token_id" in text:
      changed["text_config"] = text | _eos(text["eos_token_id"], stop_ids)
    if changed != content:
      out[name] = _dump(changed, files[name])
  return out


def _eos(present: int | list | None, stop_ids: Sequence[int]) -> dict:
  """The entry that stops at `present` and then at `stop_ids`; none where it does already."""
  present = [] if present is None else present if isinstance(present, list) else [present]
  absent = [int(i) for i in stop_ids if i not in present]
  ids = present + absent
  return {"eos_token_id": ids if len(ids) > 1 else ids[0]} if absent else {}


def with_dtype(files: Mapping[str, bytes], dtype: str) -> dict[str, bytes]:
  """`files` whose config.json names the dtype of the exported weights."""
  content = _json("config.json", files["config.json"])
  # transformers 5 writes dtype and reads both; older ones know only torch_dtype.
  keys = [key for key in ("dtype", "torch_dtype") if key in content] or ["torch_dtype"]
  changed = content | {key: dtype for key in keys}
  text = text_config(content)
  if text is not content:  # that of the other parts stays: their tensors are not cast
    inner = {key: dtype for key in ("dtype", "torch_dtype") if key in text}
    changed["text_config"] = text | inner
  if changed == content:
    return dict(files)
  return dict(files) | {"config.json": _dump(changed, files["config.json"])}


def _check_leaves(leaves: dict, carried, cfg: DecoderConfig) -> None:
  shapes = {row.ours: row.full_shape for row in table.rows(cfg)}
  wrong = set(shapes).symmetric_difference(leaves) or {
    name for name, shape in shapes.items() if leaves[name].shape != shape
  }
  if wrong:
    raise ValueError(f"parameters do not belong to this config: {sorted(wrong)}")
  strange = [name for name in carried if not names.is_carried(cfg, name)]
  if strange or (cfg.family in names.CARRIED and not carried):
    raise ValueError(f"not what family {cfg.family} carries: {strange or 'nothing'}")


def _target_layout(sources, dtypes, carried, source_layout, max_shard_bytes) -> hf_files.Layout:
  shapes = {name: theirs.shape for name, theirs in sources.items()}
  of_source = source_layout.tensors() if source_layout else {}
  if isinstance(dtypes, str):
    dtypes = dict.fromkeys(shapes, dtypes)
  for name in shapes:
    if dtypes[name] not in READABLE:
      raise UserError(
        f"dtype {dtypes[name]!r} of {name}: one of {', '.join(READABLE)} is expected."
      )
  wanted = {name: (shape, dtypes[name]) for name, shape in shapes.items()}
  wanted |= {name: (array.shape, array.dtype.name) for name, array in carried.items()}
  if wanted == {name: (t.shape, t.dtype) for name, t in of_source.items()}:
    return source_layout
  return hf_files.plan_layout(
    [(name, dtype, shape) for name, (shape, dtype) in wanted.items()], max_shard_bytes
  )


def _values(parts, theirs: table.Theirs, leaves, tensor: hf_files.Tensor) -> np.ndarray:
  """Their tensor, if all its values are finite."""
  out = np.empty(tensor.shape, hf_files.DTYPES[hf_files.CODES[tensor.dtype]])
  for part, (row, i) in zip(parts, theirs.parts, strict=True):
    for index, values in transfer.on_host(part):
      if not transfer.is_finite(values):
        raise UserError(f"{tensor.name} {_fault(leaves[row.ours], i, tensor.dtype)}")
      table.put(out, row, index, values)
  return out


def _fault(leaf, index, dtype: str) -> str:
  """Why a tensor has values that are not finite in `dtype`."""
  if (
    not isinstance(leaf, np.ndarray) and not leaf.is_fully_addressable
  ):  # the others do not join in
    return (
      f"holds values that {dtype} cannot: the run diverged, or they are beyond its range. Export an "
      "earlier step, or with --dtype bfloat16."
    )
  wide = np.asarray(transfer.take(leaf, index, "float32"))
  if transfer.is_finite(wide):
    return (
      f"holds {np.abs(wide).max():.3g}, beyond the range of {dtype}. Export with --dtype bfloat16."
    )
  return "holds NaN or infinity: the run diverged. Export an earlier step."


def _write_files(folder: pathlib.Path, files: Mapping[str, bytes], layout: hf_files.Layout) -> None:
  for name, content in _all_files(files, layout).items():
    parts = pathlib.PurePosixPath(name).parts
    assert ".." not in parts and not name.startswith("/"), name
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("xb") as f:
      f.write(content)
      f.flush()
      os.fsync(f.fileno())


def _verify(folder: pathlib.Path, files: Mapping[str, bytes], layout: hf_files.Layout) -> None:
  """What stands on disk is what was meant: headers, index, sizes, and no file besides."""
  written = hf_files.read_layout(folder)
  assert written == layout, f"{folder}: the shards read back differ from what was written"
  found = {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()}
  assert found == {*layout.headers, *_all_files(files, layout)}, found
  for name, content in _all_files(files, layout).items():
    assert (folder / name).read_bytes() == content, f"{folder / name} differs from what was written"


def _all_files(files, layout) -> dict[str, bytes]:
  index = {} if layout.index is None else {hf_files.INDEX_FILE: layout.index.encode()}
  return {**files, **index}


def _json(name: str, content: bytes) -> dict:
  try:
    return json.loads(content)
  except ValueError as e:
    raise UserError(f"{name}: not readable as JSON: {e}.") from e


def _dump(content: dict, like: bytes) -> bytes:
  text = json.dumps(content, indent=2, ensure_ascii=False)
  return (text + ("\n" if like.endswith(b"\n") else "")).encode()
