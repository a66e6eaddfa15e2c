"""Rows of the sources -> conversations: one canonical record, or one clear error, for each row."""

import collections
import dataclasses
import functools
import hashlib
import json
from collections.abc import Mapping, Sequence

from mlit_jax import detect
from mlit_jax.data import trees
from mlit_jax.data.files import MAX_LINE_BYTES, BadRow, parse_json, shorten, too_long
from mlit_jax.data.languages import normalise_tag
from mlit_jax.data.sources import FORMATS, LANGUAGE_COLUMNS, Source, open_sources
from mlit_jax.errors import UserError

__all__ = [
  "BadRow", "Conversation", "Dropped", "Message", "RowSet", "parse_row", "read_row", "read_sources",
]  # fmt: skip

ROLES = {
  "system": "system",
  "user": "user", "human": "user", "prompter": "user",
  **dict.fromkeys(trees.ASSISTANT, "assistant"),
}  # fmt: skip
SHAPES = (
  "messages; conversations; prompt and completion; instruction, input and output; "
  "inputs and targets; trees of messages"
)
# To be said of a bad row where a config has that key.
OR_DROP = " Or set data.bad_rows = 'drop': such rows are then left out and counted."
DETECT_FROM = 4000  # characters of a conversation are enough to tell its language


@dataclasses.dataclass(frozen=True, slots=True)
class Message:
  role: str  # system, user or assistant
  content: str


@dataclasses.dataclass(frozen=True, slots=True)
class Conversation:
  messages: tuple[Message, ...]
  lang: str
  example_id: str  # hash of language and messages: the same example has the same id in any file
  group_id: str | None  # the same example in other languages
  source: str  # name of the source
  place: str  # "file:line"
  confidence: float | None = None  # of a detected language, from 0 to 1


@dataclasses.dataclass(frozen=True, slots=True)
class Dropped:
  """A row that cannot be used."""

  lang: str  # "?" where nothing says it
  reason: str


@dataclasses.dataclass(frozen=True)
class RowSet:
  conversations: list[Conversation]
  dropped: dict[tuple[str, str], int]  # (language or "?", reason) -> rows


def read_sources(
  train: Mapping[str, object] | Sequence[object],
  *,
  where: str = "data.train",
  language_field: str | None = None,
  detect_language: bool | Sequence[str] = False,
  drop_bad: bool = False,
  way_out: str = "",
) -> RowSet:
  """Every conversation of the sources, in the order of the config, files and lines, in memory.

  `train` is {language: entry or entries}, or entries whose rows name their language; `language_field`
  is the column that names it (default: lang, language_code or language). A bad row raises, or is
  counted if `drop_bad`. Exact duplicates within a language are dropped and counted. `way_out`: see read_row.
  """
  conversations, dropped, seen = [], collections.Counter(), set()
  sources = open_sources(
    train, where=where, language_field=language_field, detect_language=detect_language
  )
  for source in sources:
    for number, raw in source.rows():
      row = read_row(raw, source, number, drop_bad=drop_bad, way_out=way_out)
      if isinstance(row, Dropped):
        dropped[row.lang, row.reason] += 1
      elif row.example_id in seen:
        dropped[row.lang, "duplicate"] += 1
      else:
        seen.add(row.example_id)
        conversations.append(row)
  return RowSet(conversations, dict(dropped))


def read_row(
  raw, source: Source, number: int, *, drop_bad: bool, way_out: str = ""
) -> Conversation | Dropped:
  """A row as `source.rows()` gave it; one that cannot be used raises UserError, or is Dropped if `drop_bad`.

  way_out: what else the error says, besides how to mend the row.
  """
  try:
    return parse_row(raw, source, number)
  except BadRow as bad:
    if not drop_bad:
      raise UserError(f"{source.path}:{number}: {bad.detail} {bad.remedy}{way_out}") from None
    return Dropped(bad.lang or source.lang or "?", bad.reason)


def parse_row(raw: bytes | dict | BadRow, source: Source, number: int) -> Conversation:
  """The conversation of one row as `source.rows()` gave it; BadRow where it cannot be used."""
  if isinstance(raw, BadRow):
    raw.lang = _known(raw.lang)
    raise raw
  row = parse_json(raw) if isinstance(raw, bytes) else raw
  if not isinstance(row, dict):
    raise BadRow(
      "unknown shape", f"the row is {shorten(row)}, not an object.", f"Accepted: {SHAPES}."
    )
  if not isinstance(row, trees.Picked):
    row = _untangle(source.rename(row), source)
  lang, confidence = _language(row, source), None
  try:
    messages = _messages(row, source)
    _check_roles(messages)
    if sum(len(content) for _, content in messages) > MAX_LINE_BYTES:
      raise too_long("the row")
    for text in (*(content for _, content in messages), group := _group(row)):
      (text or "").encode("utf-8")
    if lang is None:
      lang, confidence = _detected(messages, source)
    text = json.dumps([lang, messages], ensure_ascii=False, separators=(",", ":"))
    example_id = hashlib.blake2b(text.encode("utf-8"), digest_size=16).hexdigest()
  except UnicodeEncodeError as error:
    raise BadRow(
      "lone surrogate",
      f"the text holds the lone surrogate {error.object[error.start]!r}, which no tokenizer can "
      f"read.",
      "Write the whole character, or remove it.",
      lang,
    ) from None
  except BadRow as bad:
    bad.lang = bad.lang or lang
    raise
  return Conversation(
    tuple(Message(role, content) for role, content in messages),
    lang,
    example_id,
    group,
    source.name,
    f"{source.path}:{number}",
    confidence,
  )


def _untangle(row: dict, source: Source) -> dict:
  """The row, or the conversation picked from it where it is a tree."""
  named = source.format == "tree"
  if trees.is_tree(row) and (named or not _shape(row)):
    try:
      picked = trees.pick_nested(row)
    except BadRow as bad:
      bad.lang = _known(bad.lang)
      raise
    own = source.language_column(row)
    return picked if own is None else trees.Picked(picked, lang=row[own])
  if named or (trees.is_message(row) and not _shape(row)):
    raise BadRow(
      "unknown shape",
      f"the row is no tree of messages, with keys {_keys(row)}.",
      'Messages that are rows of their own need the format: {"path": ..., "format": "tree"}.',
    )
  return row


# --- language


def _language(row: dict, source: Source) -> str | None:
  """The language that the row or its place in the config states; None where it is to be detected."""
  picked = isinstance(row, trees.Picked)
  column = ("lang" if row.get("lang") else None) if picked else source.language_column(row)
  if column is None:
    if source.lang is None and not source.detect:
      names = (source.language_field,) if source.language_field else LANGUAGE_COLUMNS
      raise BadRow(
        "no language",
        f"the row has no language: none of {', '.join(names)} is set; its keys are {_keys(row)}.",
        'Add "lang" to the row, list the file under its language: {"sw": ["file.jsonl"]}, or set '
        "data.detect_language.",
      )
    return source.lang
  value = row[column]
  own, error = _tag(value) if isinstance(value, str) else (None, f"{shorten(value)} is not text.")
  if own is None:
    raise BadRow("unknown language", f"{column}: {error}", "Correct the tag.", source.lang)
  if source.lang is not None and own != source.lang:
    raise BadRow(
      "other language",
      f"the row says {column} = {value!r} ({own}), but its file is listed under {source.lang!r}.",
      f"List the file under {own!r}, or correct the row.",
      source.lang,
    )
  return own


@functools.lru_cache(maxsize=4096)
def _tag(text: str) -> tuple[str | None, str]:
  """(normal tag, "") or (None, what is wrong): errors are kept too, since finding a near name takes 50 ms."""
  if len(text) > 64:
    return None, f"{shorten(text)} is not a language tag."
  try:
    return normalise_tag(text), ""
  except UserError as error:
    return None, str(error)


def _known(tag) -> str | None:
  return _tag(tag)[0] if isinstance(tag, str) else None


def _detected(messages: list[tuple[str, str]], source: Source) -> tuple[str, float]:
  text = "\n".join(content for role, content in messages if role != "system")[:DETECT_FROM]
  if source.detect_among:
    found, confidence = _detector(source.detect_among).guess(text)
  else:
    found, confidence = detect.guess_language(text)
  lang = _tag(found)[0] if found else None
  if lang is None or confidence < source.min_confidence:
    raise BadRow(
      "unsure language",
      f"the language of the row cannot be told: {lang} with confidence {confidence:.2f}, below "
      f"{source.min_confidence:g}.",
      'Add "lang" to the row, or list its file under its language.',
    )
  if source.detect_among and lang not in source.detect_among:
    raise BadRow(
      "other language",
      f"the row is in {lang} (confidence {confidence:.2f}), which is not among the languages to detect, "
      f"{', '.join(source.detect_among)}.",
      "Add the language to data.detect_language, or remove the row.",
    )
  return lang, confidence


@functools.cache
def _detector(languages: tuple[str, ...]) -> detect.LanguageDetector:
  return detect.LanguageDetector(languages)


def _group(row: dict) -> str | None:
  group = row.get("group_id")
  if group is None or group != group:  # a table of numbers has NaN where there is none
    return None
  if not isinstance(group, str | int | float):
    raise BadRow(
      "not text", f"group_id is {shorten(group)}, not text.", "Give a string or a number."
    )
  return str(group)


# --- shapes


def _shape(row: dict) -> str | None:
  """The format that a row shows by its keys; sharegpt for LIMA too."""
  if row.get("messages") is not None:
    return "messages"
  if row.get("conversations") is not None:
    return "sharegpt"
  rest = ("prompt_completion", "instruction", "inputs_targets")
  return next((form for form in rest if all(key in row for key in FORMATS[form])), None)


def _messages(row: dict, source: Source) -> list[tuple[str, str]]:
  """(role, content) of every turn, whatever the shape of the row."""
  form, keys = _shape(row), source.turn_keys()
  if isinstance(row, trees.Picked):
    form, keys = "messages", {}
  elif source.format is not None:
    form = source.format
    missing = [key for key in FORMATS[form] if key not in row]
    if missing:
      raise BadRow(
        "unknown shape",
        f"the row has no {' and no '.join(missing)}, which the format {form!r} needs; its keys are "
        f"{_keys(row)}.",
        "Correct format or fields of the source.",
      )
  if form in ("messages", "sharegpt", "lima"):
    key = FORMATS[form][0]
    messages = _turns(row[key], key, keys, source.format)
  elif form == "prompt_completion":
    messages = _side(row["prompt"], "prompt", "user", keys)
    messages += _side(row["completion"], "completion", "assistant", keys)
  elif form == "instruction":
    question = _text(row["instruction"], "instruction")
    extra = _text(row.get("input") or "", "input")
    messages = [("user", f"{question}\n\n{extra}" if extra else question)]
    messages.append(("assistant", _text(row["output"], "output")))
  elif form == "inputs_targets":
    messages = [
      ("user", _text(row["inputs"], "inputs")),
      ("assistant", _text(row["targets"], "targets")),
    ]
  else:
    raise BadRow("unknown shape", f"unknown shape, with keys {_keys(row)}.", f"Accepted: {SHAPES}.")
  if row.get("system"):
    if messages and messages[0][0] == "system":
      raise BadRow("roles", "the row has a `system` column and a system turn.", "Keep one of them.")
    messages.insert(0, ("system", _text(row["system"], "system")))
  return messages


def _turns(
  turns, key: str, names: dict[str, str], form: str | None = None
) -> list[tuple[str, str]]:
  if isinstance(turns, dict):
    turns = _rows_of_columns(turns)
  if not isinstance(turns, list) or not turns:
    raise BadRow(
      "unknown shape", f"{key} is {shorten(turns)}.", "Give a list with at least two turns."
    )
  texts = all(isinstance(turn, str) for turn in turns)
  if form is not None and texts != (form == "lima"):
    raise BadRow(
      "unknown shape",
      f"{key} is {shorten(turns)}, which the format {form!r} does not have.",
      "lima has plain strings, messages and sharegpt have objects: correct format.",
    )
  if texts:  # LIMA: plain strings, user and assistant in turn
    return [(("user", "assistant")[i % 2], turn) for i, turn in enumerate(turns)]
  messages = []
  for i, turn in enumerate(turns):
    if not isinstance(turn, dict):
      raise BadRow(
        "unknown shape", f"{key}[{i}] is {shorten(turn)}.", 'Give {"role": ..., "content": ...}.'
      )
    role = _first(turn, names.get("role"), "role", "from")
    content = _first(turn, names.get("content"), "content", "value")
    known = ROLES.get(role.strip().lower()) if isinstance(role, str) else None
    if known is None:
      raise BadRow(
        "unknown role",
        f"{key}[{i}] has the role {shorten(role)}.",
        f"Roles are {', '.join(ROLES)}: rename or remove it.",
      )
    if turn.get("tool_calls"):
      raise BadRow(
        "tool calls", f"{key}[{i}] calls tools.", "Tool calls are not supported: remove the row."
      )
    messages.append((known, _text(content, f"{key}[{i}] content")))
  return messages


def _rows_of_columns(columns: dict) -> object:
  """A list of objects from an object of equally long lists, as tables keep it; else what was given."""
  lists = list(columns.values())
  if not lists or not all(isinstance(c, list) and len(c) == len(lists[0]) for c in lists):
    return columns
  return [dict(zip(columns, row, strict=True)) for row in zip(*lists, strict=True)]


def _first(turn: dict, *names: str | None):
  """What the turn has under the first of the names that it has."""
  if names[0] is not None:
    return turn.get(names[0])
  return next((turn[name] for name in names[1:] if turn.get(name) is not None), None)


def _side(value, key: str, role: str, names: dict[str, str]) -> list[tuple[str, str]]:
  if isinstance(value, list | dict):
    return _turns(value, key, names)
  return [(role, _text(value, key))]


def _text(value, key: str) -> str:
  if not isinstance(value, str):
    raise BadRow("not text", f"{key} is {shorten(value)}, not text.", "Give a string.")
  return value


def _check_roles(messages: list[tuple[str, str]]) -> None:
  start = 1 if messages[0][0] == "system" else 0
  for i, (role, content) in enumerate(messages):
    expected = "system" if i < start else ("user", "assistant")[(i - start) % 2]
    if role != expected:
      raise BadRow(
        "roles",
        f"turn {i} has the role {role!r}; expected {expected!r} (turns are "
        f"{', '.join(r for r, _ in messages[:20])}).",
        "After an optional system turn, user and assistant alternate: merge or remove turns.",
      )
    if role != "system" and not content.strip():
      what = "answer" if role == "assistant" else "question"
      raise BadRow(
        f"empty {what}",
        f"turn {i} ({role}) is empty: {shorten(content)}.",
        "Fill it in, or remove the row.",
      )
  if len(messages) <= start or messages[-1][0] != "assistant":
    raise BadRow(
      "roles",
      f"the last turn is {messages[-1][0]!r}, so there is no answer to train on.",
      "End the conversation with an assistant turn.",
    )


def _keys(row: dict) -> str:
  return shorten(sorted(map(str, row)), 500)
