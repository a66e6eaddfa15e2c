"""Entries of the config -> sources: where rows come from, what they are called and how they are read.

An entry is text (a file, a glob, the folder of a saved data set or folder:split, "tfds:name/config:split",
"hf:name/config:split") or a mapping with "path" and any of KEYS. Languages map to an entry or a list of
them; without languages there is a list of entries, whose rows say their language or are detected.
"""

import dataclasses
import difflib
import glob
import hashlib
import itertools
import json
import os
from collections.abc import Iterator, Mapping, Sequence

from mlit_jax.data import files, prepared, trees
from mlit_jax.data.files import BadRow
from mlit_jax.data.languages import normalise_tag
from mlit_jax.errors import UserError

KEYS = ("path", "name", "format", "fields", "language_field", "data_dir", "config")
# What each format needs of a row, and what else it reads.
FORMATS = {
  "messages": ("messages",),
  "prompt_completion": ("prompt", "completion"),
  "instruction": ("instruction", "output"),
  "inputs_targets": ("inputs", "targets"),
  "sharegpt": ("conversations",),
  "lima": ("conversations",),
  "tree": trees.MESSAGE_KEYS,
}
OPTIONAL = {"instruction": ("input",), "tree": ("parent_id", "rank", "deleted", "replies")}
COMMON = ("lang", "group_id", "system")
LANGUAGE_COLUMNS = ("lang", "language_code", "language")
TURN = ("role", "content")  # of each turn, not of the row
TURN_FORMATS = ("messages", "sharegpt")
MIN_CONFIDENCE = 0.5
LOOK_AT = 1000  # rows, until a column that the config names is found


@dataclasses.dataclass(frozen=True)
class Source:
  """One file, or one split of a prepared data set. Small, and it pickles: workers get it by value."""

  name: str  # what mixture and ledger call it: the entry's name, else its text in the config
  lang: str | None  # from its place in the config
  path: str  # the file, or the text of the entry
  kind: str  # json, parquet, arrow, tfds or hub
  format: str | None = None  # None: recognised row by row
  fields: tuple[tuple[str, str], ...] = ()  # (our name, their column)
  language_field: str | None = None  # None: lang, language_code or language
  detect: bool = False  # the language of rows that have none
  detect_among: tuple[str, ...] = ()  # (): all languages that the detector knows
  min_confidence: float = MIN_CONFIDENCE  # of a detected language
  folder: str = ""  # tfds: of the prepared version
  split: str = ""  # tfds
  config: str | None = None  # hub

  def rows(self) -> Iterator[tuple[int, bytes | dict | BadRow]]:
    """(row or line number from 1, the raw row), as a stream; lines of JSON are not parsed yet.

    Messages that are rows of their own are put together here: one row for each tree, at its root.
    """
    rows = self.raw_rows()
    if self.format in (None, "tree"):
      first = next(rows, None)
      if first is None:
        return
      rows = itertools.chain([first], rows)
      row = _parsed(first[1])
      if isinstance(row, dict) and trees.is_message(self.rename(row)):
        rows = trees.pick_trees(rows, self._rename_message)
    yield from rows

  def language_column(self, row: dict) -> str | None:
    """The column that says the language of a row (already renamed), None where none does."""
    columns = (self.language_field,) if self.language_field else LANGUAGE_COLUMNS
    return next((name for name in columns if row.get(name) not in (None, "")), None)

  def raw_rows(self) -> Iterator[tuple[int, bytes | dict | BadRow]]:
    """Rows as they stand in the file."""
    if self.kind == "tfds":
      return prepared.tfds_rows(self.folder, self.split)
    if self.kind == "hub":
      return prepared.hub_rows(self.path, self.config)
    return files.read_rows(self.path)

  def rename(self, row: dict) -> dict:
    """The row with our names for its columns."""
    columns = self._columns()
    if not columns:
      return row
    mapped = {ours: row[theirs] for ours, theirs in columns if theirs in row}
    return {k: v for k, v in row.items() if k not in dict(columns)} | mapped

  def _rename_message(self, row: dict) -> dict:
    row = self.rename(row)
    column = self.language_column(row)
    return row | {"lang": None if column is None else row[column]}

  def _columns(self) -> list[tuple[str, str]]:
    in_turns = TURN if self.format != "tree" else ()
    return [(ours, theirs) for ours, theirs in self.fields if ours not in in_turns]

  def turn_keys(self) -> dict[str, str]:
    """{"role" or "content": the name that the turns of this source give it}, as far as configured."""
    return {} if self.format == "tree" else {o: t for o, t in self.fields if o in TURN}

  def digest(self) -> str:
    """Changes with any byte of the contents and with whatever changes what a row becomes."""
    settings = dataclasses.asdict(self)
    for key in ("name", "path", "folder"):  # a file that is moved or renamed is the same
      settings.pop(key)
    digest = hashlib.blake2b(json.dumps(settings, sort_keys=True).encode(), digest_size=16)
    paths = [self.path]
    if self.kind == "tfds":
      paths = prepared.folder_files(self.folder)
    elif self.kind == "hub":
      paths = [entry["filename"] for entry in prepared.load_hub(self.path, self.config).cache_files]
    for path in paths:
      _digest_file(path, digest)
    return digest.hexdigest()


def open_sources(
  train: Mapping[str, object] | Sequence[object],
  *,
  where: str = "data.train",
  language_field: str | None = None,
  detect_language: bool | Sequence[str] = False,
  min_confidence: float = MIN_CONFIDENCE,
) -> list[Source]:
  """The sources that `train` names, in the order of the config, globs expanded and sorted.

  `train` is {language: entry or entries}, or a list of entries. `detect_language`: rows that say no
  language, in entries listed under none, are given the one that the detector finds, among all or among
  those listed here. Formats and columns that the config names are looked for in the first rows.
  """
  among = _detect_among(detect_language, where)
  sources = []
  for lang, entry, place in _entries(train, where):
    settings = _settings(entry, place)
    for source in _open(settings, place):
      source = dataclasses.replace(
        source,
        lang=lang,
        language_field=settings.get("language_field") or language_field or None,
        detect=lang is None and among is not None,
        detect_among=(among or ()) if lang is None else (),
        min_confidence=min_confidence,
      )
      if source.format or source.fields:
        _check_first_rows(source, place)
      sources.append(source)
  return sources


# --- the config


def _entries(train, where: str) -> list[tuple[str | None, object, str]]:
  """(language or None, entry, its place in the config)."""
  if isinstance(train, str) or not isinstance(train, Mapping | Sequence) or not train:
    raise UserError(
      f"{where} is {train!r}; expected {{language: [files]}} or a list of files, for example "
      f'{where} = {{"sw": ["data/sw.jsonl"]}}.'
    )
  if not isinstance(train, Mapping):
    return [(None, entry, where) for entry in train]
  if "path" in train:
    raise UserError(f"{where} is one entry, {train!r}. Put it in a list, or under its language.")
  found, spelt = [], {}
  for tag, entries in train.items():
    try:
      lang = normalise_tag(tag)
    except UserError as error:
      raise UserError(f"{where}: {error}") from None
    if lang in spelt:
      raise UserError(
        f"{where} names the language {lang!r} twice, as {spelt[lang]!r} and {tag!r}. Put their "
        f"files in one list."
      )
    spelt[lang] = tag
    entries = entries if isinstance(entries, list | tuple) else [entries]
    if not entries:
      raise UserError(f"{where}[{tag!r}] lists no file. Name one, or remove the language.")
    found += [(lang, entry, f"{where}[{tag!r}]") for entry in entries]
  return found


def _settings(entry, place: str) -> dict:
  """The entry as a mapping, checked."""
  if isinstance(entry, str | os.PathLike):
    return {"path": os.fspath(entry)}
  if not isinstance(entry, Mapping):
    raise UserError(f"{place} has {entry!r} where the name of a file is expected.")
  for key in entry:
    if key not in KEYS:
      raise UserError(f"{place}: {key!r} in {dict(entry)!r} is unknown. {_nearest(key, KEYS)}")
  settings = {key: value for key, value in entry.items() if value not in (None, "", {})}
  if "path" not in settings:
    raise UserError(f'{place}: {dict(entry)!r} has no "path". Name its file or data set.')
  if isinstance(settings["path"], os.PathLike):
    settings["path"] = os.fspath(settings["path"])
  for key in KEYS:
    if key != "fields" and not isinstance(settings.get(key, ""), str):
      raise UserError(f"{place}: {key} is {settings[key]!r}, not text.")
  form = settings.get("format")
  if form is not None and form not in FORMATS:
    raise UserError(f"{place}: the format {form!r} is unknown. {_nearest(form, FORMATS)}")
  settings["fields"] = _fields(settings.get("fields", {}), form, place)
  settings["format"] = form or _format_of(settings["fields"])
  return settings


def _fields(fields, form: str | None, place: str) -> tuple[tuple[str, str], ...]:
  forms = [form] if form else list(FORMATS)
  known = {name for f in forms for name in FORMATS[f] + OPTIONAL.get(f, ())} | set(COMMON)
  if any(f in TURN_FORMATS for f in forms):
    known |= set(TURN)
  if not isinstance(fields, Mapping):
    raise UserError(
      f'{place}: fields is {fields!r}; expected our names and theirs, {{"prompt": "question"}}.'
    )
  for ours, theirs in fields.items():
    if ours not in known:
      of = f" of the format {form!r}" if form else ""
      raise UserError(f"{place}: fields: {ours!r} is no column{of}. {_nearest(ours, known)}")
    if not isinstance(theirs, str) or not theirs:
      raise UserError(f"{place}: fields[{ours!r}] is {theirs!r}; expected the name of a column.")
  return tuple(sorted(fields.items()))


def _format_of(fields) -> str | None:
  """The format that the columns named in the config belong to, if it is one: a row may have others too."""
  names = {ours for ours, _ in fields} - set(COMMON) - set(TURN)
  fitting = [f for f in FORMATS if names & {*FORMATS[f], *OPTIONAL.get(f, ())}]
  return fitting[0] if len(fitting) == 1 else None


def _detect_among(detect_language, where: str) -> tuple[str, ...] | None:
  """The languages to choose among, () for all, None for no detection."""
  if isinstance(detect_language, bool) or detect_language is None:
    return () if detect_language else None
  if isinstance(detect_language, str) or not isinstance(detect_language, Sequence):
    raise UserError(
      f"{where}: detect_language is {detect_language!r}; expected True, False or a list of languages."
    )
  try:
    return tuple(sorted({normalise_tag(tag) for tag in detect_language})) or None
  except UserError as error:
    raise UserError(f"{where}: detect_language: {error}") from None


def _nearest(word, known) -> str:
  close = difflib.get_close_matches(str(word), [str(k) for k in known], n=1, cutoff=0.5)
  mean = f"Did you mean {close[0]!r}? " if close else ""
  return f"{mean}Known: {', '.join(sorted(known))}."


# --- files and data sets


def _open(settings: dict, place: str) -> list[Source]:
  """The sources of one entry, without their language."""
  text = settings["path"]
  if "data_dir" in settings and not text.startswith("tfds:"):
    raise UserError(f"{place}: data_dir is for tfds: entries; {text!r} is none. Remove it.")
  if "config" in settings and not text.startswith("hf:"):
    raise UserError(f"{place}: config is for hf: entries; {text!r} is none. Remove it.")
  common = {"format": settings.get("format"), "fields": settings.get("fields", ())}
  make = lambda path, kind, **more: Source(  # noqa: E731
    settings.get("name", text), None, path, kind, **common, **more
  )
  if text.startswith("tfds:"):
    folder, split = prepared.find_tfds(text, settings.get("data_dir"), place)
    return [make(text, "tfds", folder=folder, split=split)]
  if text.startswith("hf:"):
    prepared.check_hub(text, place)
    return [make(text, "hub", config=settings.get("config"))]
  path = os.path.expanduser(text)
  folder, split = _folder_and_split(path)
  if folder and not prepared.is_saved(folder):
    raise UserError(f"{place}: {text!r} is a folder. Name its files, for example '{text}/*.jsonl'.")
  if folder:
    try:
      if prepared.is_tfds_folder(folder):
        split = prepared.check_tfds_folder(folder, split, place)
        return [make(text, "tfds", folder=folder, split=split)]
      found = prepared.saved_files(folder, split, f"{place}: {text!r}")
    except (TypeError, ValueError, LookupError, AttributeError) as error:
      raise UserError(
        f"{place}: {text!r}: its JSON files hold a value that cannot be ({type(error).__name__}: {error}). Save the "
        "data set again."
      ) from error
    return [make(path, "arrow") for path in found]
  return [make(path, _kind(path)) for path in _expand(path, text, place)]


def _folder_and_split(path: str) -> tuple[str | None, str | None]:
  """("folder", "split") of "folder:split"; (None, None) where there is no such folder."""
  if os.path.isdir(path):
    return path, None
  if not os.path.exists(path):
    for at in (i for i, letter in enumerate(path) if letter == ":"):  # a slice has one too
      if os.path.isdir(path[:at]) and prepared.is_saved(path[:at]):
        return path[:at], path[at + 1 :]
  return None, None


def _expand(path: str, text: str, place: str) -> list[str]:
  if os.path.isfile(path):
    return [path]  # first, since a file's name may itself hold brackets
  found = sorted(f for f in glob.glob(path, recursive=True) if os.path.isfile(f))
  if not found:
    kind = "matches no file" if glob.has_magic(path) else "does not exist"
    raise UserError(f"{place}: {text!r} {kind} (looked in {os.getcwd()}). Correct the path.")
  return found


def _kind(path: str) -> str:
  kind = files.file_kind(path)
  if kind is None:
    raise UserError(
      f"{path}: unknown kind of file. Use .jsonl, .json or .ndjson (also .gz, .zst), .parquet or .arrow."
    )
  return kind


def _check_first_rows(source: Source, place: str) -> None:
  """UserError where the first rows have nothing of what the config names."""
  wanted = {theirs for _, theirs in source._columns()}
  seen: set[str] = set()
  fits, found_row = source.format is None, False
  for _, raw in itertools.islice(source.raw_rows(), LOOK_AT):
    row = _parsed(raw)
    if not isinstance(row, dict):
      continue
    found_row = True
    seen |= row.keys()
    fits = fits or _fits(source.rename(row), source.format)
    if fits and wanted <= seen:
      return
  if not found_row:
    return  # no row can be read: reading says why
  seen |= set(files.column_names(source.path))  # the first rows may leave a column empty
  keys = ", ".join(sorted(seen))[:500]
  for ours, theirs in source.fields:
    if theirs in wanted - seen:
      raise UserError(
        f"{place}: {source.path}: fields[{ours!r}] is {theirs!r}, which none of the first {LOOK_AT} rows "
        f"has. {_nearest(theirs, seen)}"
      )
  if not fits:
    raise UserError(
      f"{place}: {source.path}: none of the first {LOOK_AT} rows is of the format {source.format!r}, "
      f"which needs {' and '.join(FORMATS[source.format])}. Their keys are {keys}. Correct format, or "
      "name the columns in fields."
    )


def _fits(row: dict, form: str) -> bool:
  if form == "tree":
    return trees.is_message(row) or trees.is_tree(row)
  return all(key in row for key in FORMATS[form])


def _parsed(raw):
  try:
    return files.parse_json(raw) if isinstance(raw, bytes) else raw
  except BadRow as bad:
    return bad


def _digest_file(path: str, digest) -> None:
  try:
    with open(path, "rb", buffering=0) as file:
      digest.update(os.fstat(file.fileno()).st_size.to_bytes(8, "little"))
      while piece := file.read(1 << 20):
        digest.update(piece)
  except OSError as error:
    raise UserError(f"{path}: cannot be read ({error}).") from None
