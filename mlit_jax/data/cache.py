"""The token cache: rows tokenised once, in parallel, into flat files that a run maps into memory."""

from __future__ import annotations

import collections
import contextlib
import fcntl
import hashlib
import itertools
import json
import os
import secrets
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np

from mlit_jax import checksums
from mlit_jax.cores import usable_cores
from mlit_jax.data.encode import (
  CHUNK,
  VERSION,
  Counts,
  add_counts,
  check_over_long,
)
from mlit_jax.data.encoded import COLUMNS, Encoded
from mlit_jax.data.hygiene import LANGUAGE_JUDGED, NOTES, REASONS, near_duplicates
from mlit_jax.data.parts import Part, Recipe, encode_rows
from mlit_jax.data.sources import Source
from mlit_jax.data.worker import map_in_order
from mlit_jax.errors import UserError

FORMAT = 3  # of what lies in a cache; raise it, and those before are passed over. The plan stays.
ALONE = 16  # chunks that this process does by itself before it starts workers
BLOCK = 1 << 18  # rows of a column that are in memory at a time
BUILDING = ".building-"
DAMAGED = ".damaged-"
FILES = {"tokens": "<u4", "trained": "u1", "ids": "<u8", **COLUMNS}
TABLES = (
  "languages", "sources", "files", "rows_read", "dropped", "flagged", "language_judged", "language_judged_every",
  "fingerprint",
)  # fmt: skip
# What is needed of each row until duplicates are gone.
PASSING = {"signatures": "<u4", "notes": "<u2"}


def open_cache(
  sources: Sequence[Source],
  recipe: Recipe,
  folder: Path,
  *,
  num_workers: int = 0,
  progress: Callable[[Part], None] | None = None,
  waiting: Callable[[], None] | None = None,
  damaged: Callable[[str], None] | None = None,
) -> tuple[Encoded, dict[str, str]]:
  """The rows of the sources, tokenised, and what they were made from ({what: digest}).

  Read from `folder` if the same was done before, else built there: under another name and renamed
  when whole, by one process while others wait. Exact duplicates within a language are dropped and counted, and
  near ones as the recipe says. `num_workers` processes tokenise (0: as many as there are cores). A cache whose
  files are not as they were written is built again; `damaged` is told what was wrong with it.
  """
  check_over_long(recipe.over_long)
  made_from = what_it_is_made_from(sources, recipe)
  fingerprint = _digest(list(made_from.values()))  # of contents: not of names and paths
  told = [FORMAT, recipe.hygiene.fingerprint(), *([s.name, s.path] for s in sources)]
  place = folder / _digest([fingerprint, told])
  lock = folder / f".{place.name}.lock"
  if (found := _load_whole(place)) is not None:
    _remove_left(lock)
  else:
    try:
      folder.mkdir(parents=True, exist_ok=True)
      with _alone(lock, waiting):
        if (found := _load_whole(place, damaged, remove=True)) is None:
          _build(sources, recipe, place, fingerprint, num_workers or usable_cores(), progress)
          found = load(place)
    except OSError as e:
      raise UserError(f"cannot write the token cache {place}: {e}. Set data.cache_dir.") from e
  assert found is not None, place
  return found, made_from


def what_it_is_made_from(sources: Sequence[Source], recipe: Recipe) -> dict[str, str]:
  """{what: digest} of everything that shapes the tokens, so that a change can be named."""
  listed = collections.Counter()
  out: dict[str, str] = {}
  for source in sources:
    listed[source.path] += 1
    again = f" (entry {listed[source.path]} of it)" if listed[source.path] > 1 else ""
    out[source.path + again] = source.digest()
  return (
    out
    | recipe.tokenizer.parts
    | {
      "the settings of data": _digest(recipe.settings()),
      "the code that tokenises": str(VERSION),
    }
  )


def _digest(value) -> str:
  return hashlib.blake2b(json.dumps(value).encode(), digest_size=16).hexdigest()


def _load_whole(place: Path, damaged=None, *, remove: bool = False) -> Encoded | None:
  """The cache in its place; None if there is none or, then removed if so asked, a damaged one."""
  try:
    return load(place)
  except UserError as e:
    if remove:
      if damaged:
        damaged(f"the token cache is damaged and is built again: {e}")
      aside = place.with_name(f"{DAMAGED}{place.name}-{os.getpid()}")
      os.rename(place, aside)  # one that maps its files keeps them
      shutil.rmtree(aside, ignore_errors=True)
    return None


def load(folder: Path) -> Encoded | None:
  """The cache in this folder, mapped into memory; None if there is none, UserError if it is damaged."""
  if not folder.is_dir():
    return None
  if not checksums.check(folder):
    raise UserError(f"{folder / checksums.NAME}: is missing.")
  try:
    meta = json.loads((folder / "meta.json").read_text(encoding="utf-8"))
    arrays = {name: _map(folder / f"{name}.bin", dtype) for name, dtype in FILES.items()}
    arrays["ids"] = arrays["ids"].reshape(-1, 2)
    tables = {name: meta[name] for name in TABLES}
    for name in ("languages", "sources", "files"):
      tables[name] = tuple(tables[name])
    _check_numbers(arrays, tables)
  except (OSError, KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
    raise _damaged(folder) from error
  return Encoded(**arrays, **tables)


def _check_numbers(arrays: dict, tables: dict) -> None:
  """ValueError where a column points beyond what it points into."""
  if not all(
    isinstance(name, str) for key in ("languages", "sources", "files") for name in tables[key]
  ):
    raise ValueError("names that are no texts")
  rows = len(arrays["starts"])
  if any(len(arrays[name]) != rows for name in ("ids", *COLUMNS)):
    raise ValueError("columns of different lengths")
  if len(arrays["tokens"]) != len(arrays["trained"]):
    raise ValueError("tokens that are neither trained nor not")
  if not rows:
    return
  for column, table in (("language", "languages"), ("source", "sources"), ("file", "files")):
    if arrays[column].min() < 0 or arrays[column].max() >= len(tables[table]):
      raise ValueError(f"{column} beyond {table}")
  starts, lengths = arrays["starts"], arrays["lengths"]
  if starts.min() < 0 or lengths.min() < 1 or (starts + lengths).max() > len(arrays["tokens"]):
    raise ValueError("rows beyond the tokens")


def _damaged(folder: Path) -> UserError:
  return UserError(f"the token cache {folder} is damaged. Remove it, and it is built again.")


def write_meta(folder: Path, tables: dict) -> None:
  """The last files of a cache, once all columns are there: TABLES, and the digests of all."""
  meta = json.dumps(tables, ensure_ascii=False)
  (folder / "meta.json").write_text(meta, encoding="utf-8")
  checksums.write(folder)


def _map(path: Path, dtype: str) -> np.ndarray:
  if not path.exists() or not path.stat().st_size:
    return np.zeros(0, dtype)
  return np.memmap(path, dtype, mode="r")


# --- building


def _build(
  sources, recipe: Recipe, place: Path, fingerprint: str, num_workers: int, progress
) -> None:
  for left in place.parent.glob(f"{BUILDING}{place.name}-*"):  # of a build that was killed
    shutil.rmtree(left, ignore_errors=True)
  # Not tempfile's, which are for the user alone: a cache is for whom the umask lets read it.
  folder = place.with_name(f"{BUILDING}{place.name}-{secrets.token_hex(4)}")
  folder.mkdir()
  try:
    tables = _write_parts(folder, sources, recipe, num_workers, progress)
    _drop_duplicates(folder, tables, recipe)
    for name in PASSING:
      (folder / f"{name}.bin").unlink()
    write_meta(folder, tables | {"fingerprint": fingerprint})
    try:
      os.rename(folder, place)
    except OSError:
      if load(place) is None:  # else another machine was faster
        raise
  finally:
    shutil.rmtree(folder, ignore_errors=True)


def _write_parts(folder: Path, sources, recipe, num_workers, progress) -> dict:
  """Append every part to the files; return the tables of the meta file."""
  names = tuple(dict.fromkeys(s.name for s in sources))
  files = tuple(dict.fromkeys(s.path for s in sources))
  languages: dict[str, int] = {}
  counts: dict[str, Counts] = {"rows_read": {}, "dropped": {}}
  total = 0
  with contextlib.ExitStack() as stack:
    out = {
      name: stack.enter_context(open(folder / f"{name}.bin", "wb")) for name in (*FILES, *PASSING)
    }
    for part in _parts(sources, recipe, num_workers):
      chunk = part.chunk
      number = np.array([languages.setdefault(x, len(languages)) for x in chunk.languages])
      columns = dict(chunk.columns)
      lengths = columns["lengths"]
      columns["starts"] = total + np.cumsum(lengths, dtype=np.int64) - lengths
      columns["language"] = number[columns["language"]] if len(number) else columns["language"]
      columns["source"] = np.full(len(lengths), names.index(part.source.name))
      columns["file"] = np.full(len(lengths), files.index(part.source.path))
      columns |= {"tokens": chunk.tokens, "trained": chunk.trained, "ids": chunk.ids}
      for name, dtype in FILES.items():
        out[name].write(np.ascontiguousarray(columns[name], dtype).tobytes())
      if part.signatures is not None:
        out["signatures"].write(part.signatures.astype(PASSING["signatures"]).tobytes())
      out["notes"].write(part.notes.astype(PASSING["notes"]).tobytes())
      total += len(chunk.tokens)
      for name, table in counts.items():
        add_counts(table, getattr(part, name))
      if progress:
        progress(part)
  ordered = sorted({*languages, *(lang for lang in counts["rows_read"] if lang != "?")})
  _renumber(folder / "language.bin", [ordered.index(lang) for lang in languages])
  return {"languages": ordered, "sources": names, "files": files, **counts}


def _parts(sources, recipe: Recipe, num_workers: int) -> Iterator[Part]:
  """Parts in the order of the sources and their rows; here for a start, then in workers."""
  jobs = ((source, rows) for source in sources for rows in _chunks(source.rows()))
  for job in itertools.islice(jobs, ALONE if num_workers > 1 else None):
    yield encode_rows(recipe, *job)
  more = next(jobs, None)
  if more is not None:
    yield from map_in_order(encode_rows, recipe, itertools.chain([more], jobs), num_workers)


def _chunks(rows) -> Iterator[list]:
  rows = iter(rows)
  while chunk := list(itertools.islice(rows, CHUNK)):
    yield chunk


def _renumber(path: Path, to: Sequence[int]) -> None:
  column, to = _map(path, FILES["language"]), np.asarray(to, FILES["language"])
  _rewrite(path, column, lambda at: to[column[at]])


# --- duplicates


def _drop_duplicates(folder: Path, tables: dict, recipe: Recipe) -> None:
  """Take rows that repeat an earlier one out of the columns; their tokens stay where they are.

  What was noted of the rows is counted here, of those that stay.
  """
  ids = _map(folder / "ids.bin", FILES["ids"]).reshape(-1, 2)
  language = _map(folder / "language.bin", FILES["language"])
  keep = _first_of_each(ids)
  _count(tables["dropped"], "duplicate", language[~keep], tables["languages"])
  notes = np.array(_map(folder / "notes.bin", PASSING["notes"]))
  signatures = _map(folder / "signatures.bin", PASSING["signatures"])
  if len(signatures):
    again = np.zeros(len(ids), bool)
    signatures = signatures.reshape(len(ids), -1)
    for number in range(len(tables["languages"])):
      rows = np.flatnonzero(keep & (language == number))
      again[rows] = near_duplicates(signatures[rows], recipe.hygiene.near_duplicate_similarity)
    if recipe.hygiene.dropped("near duplicate"):
      _count(tables["dropped"], "near duplicate", language[again], tables["languages"])
      keep &= ~again
    else:
      notes[again] |= NOTES["near duplicate"]
  _count_notes(tables, notes[keep], language[keep])
  tables["language_judged_every"] = recipe.hygiene.language_judged_every
  if keep.all():
    return
  for name, dtype in FILES.items():
    if name in ("tokens", "trained"):
      continue
    path = folder / f"{name}.bin"
    column = _map(path, dtype)
    column = column.reshape(-1, 2) if name == "ids" else column
    _rewrite(path, column, lambda at, column=column: column[at][keep[at]])


def _first_of_each(ids: np.ndarray) -> np.ndarray:
  """bool [n]: rows whose id did not come before; an id is a hash of language and messages."""
  # Only rows whose first halves are equal can be, and those are few; sorting all ids takes five times the memory.
  halves = np.sort(ids[:, 0])
  twice = np.unique(halves[1:][halves[1:] == halves[:-1]])
  del halves
  blocks = [np.flatnonzero(np.isin(ids[at, 0], twice)) + at.start for at in _blocks(len(ids))]
  rows = np.concatenate([np.zeros(0, np.int64), *blocks])
  order = rows[
    np.lexsort((ids[rows, 1], ids[rows, 0]))
  ]  # stable: of equal ids, the first comes first
  keep = np.ones(len(ids), bool)
  keep[order[1:]] = (ids[order[1:]] != ids[order[:-1]]).any(axis=1)
  return keep


def _count_notes(tables: dict, notes: np.ndarray, language: np.ndarray) -> None:
  """Flagged rows by language and reason, and those whose language was judged."""
  tables["flagged"], judged = {}, {}
  for reason in REASONS:
    flagged = language[(notes & NOTES[reason]) > 0]
    _count(tables["flagged"], reason, flagged, tables["languages"])
  _count(
    judged, LANGUAGE_JUDGED, language[(notes & NOTES[LANGUAGE_JUDGED]) > 0], tables["languages"]
  )
  tables["language_judged"] = {lang: of[LANGUAGE_JUDGED] for lang, of in judged.items()}


def _rewrite(path: Path, column: np.ndarray, change: Callable[[slice], np.ndarray]) -> None:
  """Write change(slice) of every block of a column in its place."""
  with open(path.with_suffix(".new"), "wb") as out:
    for at in _blocks(len(column)):
      out.write(np.ascontiguousarray(change(at), column.dtype).tobytes())
  os.replace(path.with_suffix(".new"), path)


def _blocks(length: int) -> Iterator[slice]:
  for start in range(0, length, BLOCK):
    yield slice(start, min(start + BLOCK, length))


def _count(table: Counts, reason: str, language: np.ndarray, languages: Sequence[str]) -> None:
  for number, count in zip(*np.unique(language, return_counts=True), strict=True):
    add_counts(table, {languages[number]: {reason: int(count)}})


# --- one builder at a time


@contextlib.contextmanager
def _alone(path: Path, waiting: Callable[[], None] | None):
  """Hold a lock file; it goes with the process, however that dies, and is removed by the last holder."""
  while True:
    with open(path, "a+") as file:
      try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
      except BlockingIOError:
        if waiting:
          waiting()
        fcntl.flock(file, fcntl.LOCK_EX)
      except OSError:
        yield  # a file system without locks: the rename decides
        return
      if not _is_same(file, path):
        continue  # the holder before us removed it
      try:
        yield
      finally:
        path.unlink(missing_ok=True)
      return


def _remove_left(path: Path) -> None:
  """Remove the lock file of a holder that was killed after it had built."""
  with contextlib.suppress(OSError), open(path, "r+") as file:
    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    if _is_same(file, path):
      path.unlink(missing_ok=True)


def _is_same(file, path: Path) -> bool:
  try:
    return os.fstat(file.fileno()).st_ino == path.stat().st_ino
  except FileNotFoundError:
    return False
