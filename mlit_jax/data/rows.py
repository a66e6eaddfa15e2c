"""Rows of the sources -> conversations: one canonical record, or one clear error, for each row."""

import collections
import dataclasses
import glob
import gzip
import hashlib
import io
import json
import os
from collections.abc import Iterator, Mapping, Sequence

from mlit_jax.data.languages import normalise_tag
from mlit_jax.errors import UserError

ROLES = {
  "system": "system",
  "user": "user", "human": "user", "prompter": "user",
  "assistant": "assistant", "gpt": "assistant", "bot": "assistant", "model": "assistant",
  "ai": "assistant",
}  # fmt: skip
LANGUAGE_COLUMNS = ("lang", "language_code", "language")
SHAPES = (
  "messages; conversations; prompt and completion; instruction, input and output; "
  "inputs and targets"
)


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
  source: str  # the file
  place: str  # "file:line"


@dataclasses.dataclass(frozen=True)
class RowSet:
  conversations: list[Conversation]
  dropped: dict[tuple[str, str], int]  # (language or "?", reason) -> rows


def read_sources(
  train: Mapping[str, Sequence[str] | str] | Sequence[str],
  *,
  where: str = "data.train",
  field: str | None = None,
  drop_bad: bool = False,
) -> RowSet:
  """Every conversation of the sources, in the order of the config, files and lines.

  `train` is {language: [files]}, or [files] whose rows name their language; `field` is the column
  that names it (default: lang, language_code or language). A bad row raises, or is counted if
  `drop_bad`.
  Exact duplicates within a language are dropped and counted.
  """
  conversations, dropped, seen = [], collections.Counter(), set()
  for lang, path in _files(train, where):
    for place, row in _rows(path):
      try:
        if isinstance(row, _BadRow):
          raise row
        conversation = _conversation(row, lang, path, place, field)
      except _BadRow as bad:
        if not drop_bad:
          raise UserError(f"{place}: {bad.detail} {bad.remedy}") from None
        dropped[bad.lang or lang or "?", bad.reason] += 1
        continue
      if conversation.example_id in seen:
        dropped[conversation.lang, "duplicate"] += 1
        continue
      seen.add(conversation.example_id)
      conversations.append(conversation)
  return RowSet(conversations, dict(dropped))


class _BadRow(Exception):
  """A row that cannot be used: why, in a word for the table and in a sentence for the user."""

  def __init__(self, reason: str, detail: str, remedy: str, lang: str | None = None):
    super().__init__(reason)
    self.reason, self.detail, self.remedy, self.lang = reason, detail, remedy, lang


# --- files


def _files(train, where: str) -> list[tuple[str | None, str]]:
  """(language or None, path) of every file, globs expanded and sorted."""
  if isinstance(train, str) or not isinstance(train, (Mapping, Sequence)) or not train:
    raise UserError(
      f"{where} is {train!r}; expected {{language: [files]}} or a list of files, for example "
      f'{where} = {{"sw": ["data/sw.jsonl"]}}.'
    )
  if not isinstance(train, Mapping):
    return [(None, path) for pattern in train for path in _expand(pattern, where)]
  files, spelt = [], {}
  for tag, patterns in train.items():
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
    patterns = patterns if isinstance(patterns, (list, tuple)) else [patterns]
    if not patterns:
      raise UserError(f"{where}[{tag!r}] lists no file. Name one, or remove the language.")
    files += [
      (lang, path) for pattern in patterns for path in _expand(pattern, f"{where}[{tag!r}]")
    ]
  return files


def _expand(pattern: str, where: str) -> list[str]:
  if not isinstance(pattern, (str, os.PathLike)):
    raise UserError(f"{where} has {pattern!r} where the name of a file is expected.")
  path = os.path.expanduser(os.fspath(pattern))
  if os.path.isfile(path):
    return [path]  # first, since a file's name may itself hold brackets
  if os.path.isdir(path):
    raise UserError(
      f"{where}: {pattern!r} is a folder. Name its files, for example '{pattern}/*.jsonl'."
    )
  found = sorted(f for f in glob.glob(path, recursive=True) if os.path.isfile(f))
  if not found:
    kind = "matches no file" if glob.has_magic(path) else "does not exist"
    raise UserError(f"{where}: {pattern!r} {kind} (looked in {os.getcwd()}). Correct the path.")
  return found


def _rows(path: str) -> Iterator[tuple[str, dict | _BadRow]]:
  """(place, row) of every row of a file; a row that cannot be read comes as the _BadRow."""
  if path.endswith(".parquet"):
    return _parquet_rows(path)
  for ending in (".jsonl", ".json", ".ndjson"):
    if path.endswith((ending, ending + ".gz", ending + ".zst")):
      return _json_rows(path)
  raise UserError(f"{path}: unknown kind of file. Use .jsonl, .jsonl.gz, .jsonl.zst or .parquet.")


def _json_rows(path: str):
  try:
    with _open(path) as stream:
      first = True
      for number, line in enumerate(
        stream, start=1
      ):  # bytes split at \n only: U+2028 stays in its row
        if first:
          line = line.removeprefix(b"\xef\xbb\xbf")
        if not line.strip():
          continue
        if (
          first and line.lstrip()[:1] == b"["
        ):  # one JSON array, as Alpaca and ShareGPT are published
          yield from _array_rows(path, line + stream.read())
          return
        first = False
        place = f"{path}:{number}"
        try:
          yield place, json.loads(line.decode("utf-8"))
        except UnicodeDecodeError as error:
          yield place, _bad_utf8(error)
        except (json.JSONDecodeError, RecursionError) as error:
          yield (
            place,
            _BadRow(
              "broken JSON",
              f"broken JSON ({error}): {_short(line.decode('utf-8', 'replace').strip())}.",
              "Write one JSON object a line.",
            ),
          )
  except (EOFError, gzip.BadGzipFile, _zstd_error(), OSError) as error:
    raise UserError(
      f"{path}: cannot be read ({error}). Fetch or compress the file again."
    ) from None


def _array_rows(path: str, data: bytes):
  try:
    rows = json.loads(data.decode("utf-8"))
  except UnicodeDecodeError as error:
    raise UserError(f"{path}: {_bad_utf8(error).detail} Save the file as UTF-8.") from None
  except (json.JSONDecodeError, RecursionError) as error:
    raise UserError(
      f"{path}: broken JSON array ({error}). Mend it, or write one JSON object a line."
    ) from None
  for number, row in enumerate(rows, start=1):
    yield f"{path}:{number}", row


def _bad_utf8(error: UnicodeDecodeError) -> _BadRow:
  byte = error.object[error.start]
  return _BadRow(
    "bad UTF-8",
    f"byte {byte:#04x} at {error.start} of the line is not UTF-8.",
    "Save the file as UTF-8.",
  )


def _open(path: str):
  if path.endswith(".gz"):
    return gzip.open(path, "rb")
  if path.endswith(".zst"):
    try:
      import zstandard
    except ImportError:
      raise UserError(f"{path}: reading .zst needs zstandard. Run: pip install zstandard") from None
    with open(path, "rb") as file:
      data, parts = file.read(), []
    while (
      data
    ):  # frame by frame: the streaming reader takes a file that was cut off for a whole one
      frame = zstandard.ZstdDecompressor().decompressobj()
      parts.append(frame.decompress(data))
      if not frame.eof:
        raise EOFError("the compressed data ends too early")
      data = frame.unused_data
    return io.BytesIO(b"".join(parts))
  return open(path, "rb", buffering=1 << 20)


def _zstd_error() -> type[Exception]:
  try:
    import zstandard
  except ImportError:
    return EOFError
  return zstandard.ZstdError


def _parquet_rows(path: str):
  try:
    import pyarrow as pa
    import pyarrow.parquet as pq
  except ImportError:
    raise UserError(f"{path}: reading Parquet needs pyarrow. Run: pip install pyarrow") from None
  number = 0
  try:
    with pq.ParquetFile(path) as file:
      for batch in file.iter_batches(batch_size=4096):
        for row in batch.to_pylist():
          number += 1
          # A column that a row leaves empty is null there: the row does not have it.
          yield f"{path}:{number}", {key: value for key, value in row.items() if value is not None}
  except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
    raise UserError(
      f"{path}: row {number + 1} cannot be read ({error}). Write the file again."
    ) from None


# --- rows


def _conversation(row, lang: str | None, path: str, place: str, field: str | None) -> Conversation:
  if not isinstance(row, dict):
    raise _BadRow(
      "unknown shape", f"the row is {_short(row)}, not an object.", f"Accepted: {SHAPES}."
    )
  lang = _language(row, lang, field)
  try:
    messages = _messages(row)
    _check_roles(messages)
    text = json.dumps([lang, messages], ensure_ascii=False, separators=(",", ":"))
    example_id = hashlib.blake2b(text.encode("utf-8"), digest_size=16).hexdigest()
  except UnicodeEncodeError as error:
    raise _BadRow(
      "lone surrogate",
      f"the text holds the lone surrogate {error.object[error.start]!r}, which no tokenizer can "
      f"read.",
      "Write the whole character, or remove it.",
      lang,
    ) from None
  except _BadRow as bad:
    bad.lang = lang
    raise
  group = row.get("group_id")
  return Conversation(
    tuple(Message(role, content) for role, content in messages),
    lang,
    example_id,
    None if group is None else str(group),
    path,
    place,
  )


def _language(row: dict, lang: str | None, field: str | None) -> str:
  columns = LANGUAGE_COLUMNS if field is None else (field,)
  column = next((name for name in columns if row.get(name) not in (None, "")), None)
  if column is None:
    if lang is not None:
      return lang
    raise _BadRow(
      "no language",
      f"the row has no language: none of {', '.join(columns)} is set; its keys are {sorted(row)}.",
      'Add "lang" to the row, or list the file under its language: {"sw": ["file.jsonl"]}.',
    )
  try:
    own = normalise_tag(row[column])
  except (UserError, TypeError) as error:
    raise _BadRow("unknown language", f"{column}: {error}", "Correct the tag.", lang) from None
  if lang is not None and own != lang:
    raise _BadRow(
      "other language",
      f"the row says {column} = {row[column]!r} ({own}), but its file is listed under {lang!r}.",
      f"List the file under {own!r}, or correct the row.",
      lang,
    )
  return own


def _messages(row: dict) -> list[tuple[str, str]]:
  """(role, content) of every turn, whatever the shape of the row."""
  if row.get("messages") is not None:
    messages = _turns(row["messages"], "messages")
  elif row.get("conversations") is not None:
    messages = _turns(row["conversations"], "conversations")
  elif "prompt" in row and "completion" in row:
    messages = _side(row["prompt"], "prompt", "user") + _side(
      row["completion"], "completion", "assistant"
    )
  elif "instruction" in row and "output" in row:
    question, extra = (
      _text(row["instruction"], "instruction"),
      _text(row.get("input") or "", "input"),
    )
    messages = [("user", f"{question}\n\n{extra}" if extra else question)]
    messages.append(("assistant", _text(row["output"], "output")))
  elif "inputs" in row and "targets" in row:
    messages = [
      ("user", _text(row["inputs"], "inputs")),
      ("assistant", _text(row["targets"], "targets")),
    ]
  else:
    raise _BadRow(
      "unknown shape", f"unknown shape, with keys {sorted(row)}.", f"Accepted: {SHAPES}."
    )
  if row.get("system"):
    if messages and messages[0][0] == "system":
      raise _BadRow(
        "roles", "the row has a `system` column and a system turn.", "Keep one of them."
      )
    messages.insert(0, ("system", _text(row["system"], "system")))
  return messages


def _turns(turns, key: str) -> list[tuple[str, str]]:
  if not isinstance(turns, list) or not turns:
    raise _BadRow(
      "unknown shape", f"{key} is {_short(turns)}.", "Give a list with at least two turns."
    )
  if all(
    isinstance(turn, str) for turn in turns
  ):  # LIMA: plain strings, user and assistant in turn
    return [(("user", "assistant")[i % 2], turn) for i, turn in enumerate(turns)]
  messages = []
  for i, turn in enumerate(turns):
    if not isinstance(turn, dict):
      raise _BadRow(
        "unknown shape", f"{key}[{i}] is {_short(turn)}.", 'Give {"role": ..., "content": ...}.'
      )
    role = turn["role"] if "role" in turn else turn.get("from")
    content = turn["content"] if "content" in turn else turn.get("value")
    known = ROLES.get(role.strip().lower()) if isinstance(role, str) else None
    if known is None:
      raise _BadRow(
        "unknown role",
        f"{key}[{i}] has the role {_short(role)}.",
        f"Roles are {', '.join(ROLES)}: rename or remove it.",
      )
    if turn.get("tool_calls"):
      raise _BadRow(
        "tool calls", f"{key}[{i}] calls tools.", "Tool calls are not supported: remove the row."
      )
    messages.append((known, _text(content, f"{key}[{i}] content")))
  return messages


def _side(value, key: str, role: str) -> list[tuple[str, str]]:
  return _turns(value, key) if isinstance(value, list) else [(role, _text(value, key))]


def _text(value, key: str) -> str:
  if not isinstance(value, str):
    raise _BadRow("not text", f"{key} is {_short(value)}, not text.", "Give a string.")
  return value


def _check_roles(messages: list[tuple[str, str]]) -> None:
  start = 1 if messages[0][0] == "system" else 0
  for i, (role, content) in enumerate(messages):
    expected = "system" if i < start else ("user", "assistant")[(i - start) % 2]
    if role != expected:
      raise _BadRow(
        "roles",
        f"turn {i} has the role {role!r}; expected {expected!r} (turns are "
        f"{', '.join(r for r, _ in messages)}).",
        "After an optional system turn, user and assistant alternate: merge or remove turns.",
      )
    if role != "system" and not content.strip():
      what = "answer" if role == "assistant" else "question"
      raise _BadRow(
        f"empty {what}",
        f"turn {i} ({role}) is empty: {content!r}.",
        "Fill it in, or remove the row.",
      )
  if len(messages) <= start or messages[-1][0] != "assistant":
    raise _BadRow(
      "roles",
      f"the last turn is {messages[-1][0]!r}, so there is no answer to train on.",
      "End the conversation with an assistant turn.",
    )


def _short(value, limit: int = 60) -> str:
  text = repr(value)
  return text if len(text) <= limit else text[: limit - 3] + "..."
