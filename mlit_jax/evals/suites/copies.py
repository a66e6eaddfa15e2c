"""A local copy of a data set, however it was fetched: its files, their rows, and the language of each."""

from __future__ import annotations

import csv
import dataclasses
import re
from collections.abc import Iterator
from pathlib import Path

from mlit_jax.data.files import file_kind, read_objects
from mlit_jax.data.languages import normalise_tag
from mlit_jax.errors import UserError

TABLES = {".tsv": "\t", ".csv": ","}
SPLITS = {
  "test": ("test",),
  "validation": ("validation", "val", "dev"),
  "train": ("train", "training"),
}
LANGUAGE_COLUMNS = ("lang", "language_code", "language")
# Parts of file names that are also codes of (small) languages.
NO_LANGUAGE = {name for names in SPLITS.values() for name in names} | {"data", "of", "eval", "all"}


@dataclasses.dataclass(frozen=True)
class Row:
  """One row of a copy."""

  values: dict
  lang: str | None  # of its own column, else of the path of its file
  place: str  # "file:row"
  number: int  # from 1, within its file

  def __getitem__(self, column: str):
    if column not in self.values:
      raise UserError(
        f"{self.place} has no column {column!r}; it has {', '.join(map(str, self.values))}. Is this the data set that the suite is for?"
      )
    return self.values[column]

  def get(self, *columns: str):
    """The first of these columns that is there and says something, else None."""
    return next((self.values[c] for c in columns if self.values.get(c) not in (None, "")), None)

  def language(self) -> str:
    if self.lang is None:
      raise UserError(
        f"{self.place}: neither a column ({', '.join(LANGUAGE_COLUMNS)}) nor the path says the language"
      )
    return self.lang


def read_copy(path: str, *, split: str = "test", columns: tuple[str, ...] = ()) -> Iterator[Row]:
  """Rows of a file, or of the files of one split below a folder.

  Where the split is not among the names, the next of validation and train that is; where none is, all
  files. `columns` names those of tables (.tsv, .csv) that have no header.
  """
  root = Path(path).expanduser()
  files = [root] if root.is_file() else sorted(p for p in root.rglob("*") if _is_rows(p))
  if not files:
    raise UserError(
      f"{path}: no such file, or no files of rows below it (JSON, JSON lines, Parquet, Arrow, TSV, CSV)"
    )
  base = root.parent if root.is_file() else root
  for file in files if root.is_file() else _of_split(files, base, split):
    lang = language_of(file, base)
    for number, values in _rows(file, columns):
      yield Row(values, _language_column(values) or lang, f"{file}:{number}", number)


def language_of(file: Path, root: Path) -> str | None:
  """The language that the path names, the last part first: sw/test.jsonl, mgsm_sw.tsv, xquad.ar.json, swh_Latn/..."""
  relative = file.relative_to(root)
  for part in (_stem(relative), *reversed(relative.parts[:-1])):
    for name in (part, *reversed(re.split(r"[._-]", part))):
      if name.casefold() in NO_LANGUAGE or not re.fullmatch(
        r"[A-Za-z]{2,3}([_-][A-Za-z]{2,4})?", name
      ):
        continue
      try:
        return normalise_tag(name)
      except UserError:
        continue
  return None


def _stem(path: Path) -> str:
  """Without what tells the format, and without the number of a shard: test-00000-of-00001.parquet -> test"""
  name = path.name
  for end in (".gz", ".zst", ".jsonl", ".json", ".ndjson", ".parquet", ".arrow", ".tsv", ".csv"):
    name = name.removesuffix(end)
  return re.sub(r"-\d+-of-\d+$", "", name)


def _is_rows(path: Path) -> bool:
  hidden = any(part.startswith(".") for part in path.parts[1:])
  name_says = file_kind(path.name) is not None or path.suffix in TABLES
  return path.is_file() and not hidden and name_says and path.name not in NOT_ROWS


NOT_ROWS = (
  "dataset_info.json",
  "dataset_infos.json",
  "state.json",
  "dataset_dict.json",
  "MANIFEST.tsv",
)


def _of_split(files: list[Path], root: Path, split: str) -> list[Path]:
  order = [split, *(s for s in ("validation", "test", "train") if s != split)]
  for names in (SPLITS.get(s, (s,)) for s in order):
    found = [f for f in files if _words(f.relative_to(root)) & set(names)]
    if found:
      return found
  return files


def _words(path: Path) -> set[str]:
  return {
    w for part in (*path.parts[:-1], _stem(path)) for w in re.split(r"[._-]", part.casefold())
  }


def _rows(path: Path, columns: tuple[str, ...]) -> Iterator[tuple[int, dict]]:
  if path.suffix in TABLES:
    try:
      yield from _table(path, columns)
    except (OSError, csv.Error, UnicodeDecodeError) as e:
      raise UserError(f"{path}: cannot be read ({e}). Fetch it again, in UTF-8.") from e
  else:
    yield from read_objects(path)


def _table(path: Path, columns: tuple[str, ...]) -> Iterator[tuple[int, dict]]:
  tabs = path.suffix == ".tsv"  # tabs part fields there, and quotes are text
  with open(path, encoding="utf-8-sig", newline="") as file:
    lines = csv.reader(
      file, delimiter=TABLES[path.suffix], quoting=csv.QUOTE_NONE if tabs else csv.QUOTE_MINIMAL
    )
    head = list(columns) if columns else next(lines, [])
    for number, fields in enumerate(lines, 1):
      if not fields:
        continue
      if len(fields) != len(head):
        raise UserError(
          f"{path}:{number}: {len(fields)} fields, but {len(head)} columns ({', '.join(head)})"
        )
      yield number, dict(zip(head, fields, strict=True))


def _language_column(values: dict) -> str | None:
  for column in LANGUAGE_COLUMNS:
    if isinstance(values.get(column), str) and values[column].strip():
      return normalise_tag(values[column])
  return None
