"""Files of rows, read as a stream: JSON lines (plain, gzip, Zstandard), JSON arrays, Parquet, Arrow.

Memory is bounded whatever the file holds: a line longer than MAX_LINE_BYTES becomes a bad row, and a
file that expands beyond reason is refused.
"""

import codecs
import gzip
import io
import json
import os
import reprlib
import zlib
from collections.abc import Iterator

from mlit_jax.errors import UserError

MAX_LINE_BYTES = 64 << 20
# A compressed file that gives more than so many bytes, and so many times its size, is no text.
BOMB_BYTES, BOMB_RATIO = 1 << 30, 500
JSON_ENDINGS = (".jsonl", ".json", ".ndjson")


class BadRow(Exception):
  """A row that cannot be used: why, in a word for the table and in a sentence for the user."""

  def __init__(self, reason: str, detail: str, remedy: str, lang: str | None = None):
    super().__init__(reason, detail, remedy, lang)  # all of them, or it could not be pickled
    self.reason, self.detail, self.remedy, self.lang = reason, detail, remedy, lang


def file_kind(path: str) -> str | None:
  """json, parquet or arrow, from the end of the name; None for any other file."""
  for kind in ("parquet", "arrow"):
    if path.endswith("." + kind):
      return kind
  if any(path.endswith((end, end + ".gz", end + ".zst")) for end in JSON_ENDINGS):
    return "json"
  return None


def read_rows(path: str) -> Iterator[tuple[int, bytes | dict | BadRow]]:
  """(line or row number from 1, raw row) of a file; a JSON line comes as its bytes."""
  return _table_rows(path) if file_kind(path) in BATCHES else _json_rows(path)


def read_objects(path: str | os.PathLike) -> Iterator[tuple[int, dict]]:
  """(line or row number from 1, object) of a file of objects; UserError names the place of what is none."""
  path = str(path)
  for number, raw in read_rows(path):
    if isinstance(raw, BadRow):
      raise UserError(f"{path}:{number}: {raw.detail} {raw.remedy}")
    try:
      row = parse_json(raw) if isinstance(raw, bytes) else raw
    except BadRow as bad:
      raise UserError(f"{path}:{number}: {bad.detail} {bad.remedy}") from None
    if not isinstance(row, dict):
      raise UserError(
        f"{path}:{number}: {shorten(row)} is no object. Write one JSON object a line."
      )
    yield number, row


def parse_json(line: bytes) -> object:
  """One line of JSON, or BadRow."""
  try:
    return json.loads(line.decode("utf-8"))
  except UnicodeDecodeError as error:
    raise _bad_utf8(error) from None
  except (ValueError, RecursionError) as error:  # ValueError: also a number of 5,000 digits
    raise BadRow(
      "broken JSON",
      f"broken JSON ({error}): {shorten(line[:200].decode('utf-8', 'replace').strip())}.",
      "Write one JSON object a line.",
    ) from None


def shorten(value, limit: int = 60) -> str:
  """A value in a message: its first characters, however long or deep it is."""
  text = repr(value[: limit + 1]) if isinstance(value, str) else _SHORT.repr(value)
  return text if len(text) <= limit else text[: limit - 3] + "..."


def too_long(what: str) -> BadRow:
  return BadRow(
    "giant row",
    f"{what} is longer than {MAX_LINE_BYTES >> 20} MiB.",
    "Write one row a line, or remove it.",
  )


_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = _SHORT.maxlong = 60
_SHORT.maxlist = 20


# --- JSON


def _json_rows(path: str):
  try:
    with _open(path) as stream:
      number = 0
      empty = True
      while line := stream.readline(MAX_LINE_BYTES + 1):  # at \n only: U+2028 stays in its row
        number += 1
        if number == 1:
          line = line.removeprefix(codecs.BOM_UTF8)
        if empty and line.lstrip()[:1] == b"[":  # one array, as Alpaca and ShareGPT are published
          yield from _array_rows(path, line, stream)
          return
        if len(line) > MAX_LINE_BYTES and not line.endswith(b"\n"):
          _skip_line(stream)
          empty = False
          yield number, too_long("the line")
        elif line.strip():
          empty = False
          yield number, line
  except (FileNotFoundError, IsADirectoryError, PermissionError) as error:
    raise UserError(f"{path}: cannot be read: {error.strerror}.") from None
  except (EOFError, gzip.BadGzipFile, zlib.error, _zstd_error(), OSError) as error:
    raise UserError(
      f"{path}: cannot be read ({error}). Fetch or compress the file again."
    ) from None


def _skip_line(stream) -> None:
  while (piece := stream.readline(1 << 20)) and not piece.endswith(b"\n"):
    pass


def _array_rows(path: str, first: bytes, stream):
  """Rows of one JSON array, parsed element by element: the file may be larger than memory."""
  decoder = json.JSONDecoder()
  utf8 = codecs.getincrementaldecoder("utf-8")()
  text = _decode(path, utf8, first)
  at = text.index("[") + 1
  number, ended, more = 0, False, 1 << 20
  while True:
    start = _skip_space(text, at)
    if text[start : start + 1] == "]" or (number and text[start : start + 1] == ","):
      if text[start] == "]":
        break
      start = _skip_space(text, start + 1)
    elif number and start < len(text):
      _fail_array(path, number, "there is no comma between two rows")
    try:
      row, end = decoder.raw_decode(text, start)
      if end == len(text) and not ended:  # a number may go on
        raise json.JSONDecodeError("cut", text, end)
    except (ValueError, RecursionError) as error:
      if ended or isinstance(error, RecursionError):
        _fail_array(path, number + 1, str(error))
      if len(text) - at > MAX_LINE_BYTES:
        _fail_array(path, number + 1, f"it has no end within {MAX_LINE_BYTES >> 20} MiB ({error})")
      # Twice as much each time, so that a long row is not parsed from its start again and again.
      data = stream.read(more)
      ended, text, at = not data, text[at:] + _decode(path, utf8, data, final=not data), 0
      more = min(2 * more, MAX_LINE_BYTES)
      continue
    number, at, more = number + 1, end, 1 << 20
    yield number, row
  rest = text[start + 1 :] + _decode(path, utf8, stream.read(1 << 20))
  if rest.strip():
    _fail_array(path, number, f"after the array comes {shorten(rest.strip())}")


def _skip_space(text: str, at: int) -> int:
  while text[at : at + 1] in (" ", "\t", "\n", "\r"):
    at += 1
  return at


def _fail_array(path: str, number: int, why: str):
  raise UserError(
    f"{path}: broken JSON array at row {number} ({why}). Mend it, or write one JSON object a line."
  ) from None


def _decode(path: str, utf8, data: bytes, final: bool = False) -> str:
  try:
    return utf8.decode(data, final)
  except UnicodeDecodeError as error:
    byte = error.object[error.start]
    raise UserError(f"{path}: byte {byte:#04x} is not UTF-8. Save the file as UTF-8.") from None


def _bad_utf8(error: UnicodeDecodeError) -> BadRow:
  byte = error.object[error.start]
  return BadRow(
    "bad UTF-8",
    f"byte {byte:#04x} at {error.start} of the line is not UTF-8.",
    "Save the file as UTF-8.",
  )


# --- compressed files


def _open(path: str):
  if path.endswith(".gz"):
    return io.BufferedReader(_Expanding(path, gzip.open(path, "rb")), 1 << 18)
  if path.endswith(".zst"):
    return io.BufferedReader(_Expanding(path, _Zstandard(path)), 1 << 18)
  return open(path, "rb", buffering=1 << 20)


class _Expanding(io.RawIOBase):
  """What a compressed file holds, watched: 10 MB that give 10 GB are no text."""

  def __init__(self, path: str, inner):
    self._path, self._inner = path, inner
    self._size, self._given = os.path.getsize(path), 0

  def readable(self) -> bool:
    return True

  def readinto(self, buffer) -> int:
    data = self._inner.read(len(buffer))
    buffer[: len(data)] = data
    self._given += len(data)
    if self._given > BOMB_BYTES and self._given > BOMB_RATIO * self._size:
      raise UserError(
        f"{self._path}: decompression bomb: its {self._size:,} bytes give more than {self._given:,}. "
        "This is no file of rows: remove it, or write it uncompressed."
      )
    return len(data)

  def close(self) -> None:
    self._inner.close()
    super().close()


class _Zstandard:
  """A .zst file frame by frame: the library's own stream takes a file that was cut off for a whole one."""

  # 4 bytes may stand for 128 KiB, so that a larger piece of a bomb would already fill the memory.
  PIECE = 4 << 10

  def __init__(self, path: str):
    try:
      import zstandard
    except ImportError:
      raise UserError(f"{path}: reading .zst needs zstandard. Run: pip install zstandard") from None
    self._file = open(path, "rb", buffering=1 << 20)  # noqa: SIM115 - closed by close()
    self._new_frame = zstandard.ZstdDecompressor().decompressobj
    self._frame, self._waiting, self._out, self._at = None, b"", b"", 0

  def read(self, size: int) -> bytes:
    while self._at == len(self._out):
      data = self._waiting or self._file.read(self.PIECE)
      if not data:
        if self._frame is not None:
          raise EOFError("the compressed data ends too early")
        return b""
      self._frame = self._frame or self._new_frame()
      self._out, self._at, self._waiting = self._frame.decompress(data), 0, b""
      if self._frame.eof:
        self._waiting, self._frame = self._frame.unused_data, None
    piece = self._out[self._at : self._at + size]
    self._at += len(piece)
    return piece

  def close(self) -> None:
    self._file.close()


def _zstd_error() -> type[Exception]:
  try:
    import zstandard
  except ImportError:
    return EOFError
  return zstandard.ZstdError


# --- columns


def column_names(path: str) -> list[str]:
  """The columns of a table, also those that its first rows leave empty; [] for other files."""
  if file_kind(path) not in BATCHES:
    return []
  batches = BATCHES[file_kind(path)](path)
  return next((batch.schema.names for batch in batches), [])


def table_rows(table, names: dict[str, list[str]] | None = None) -> Iterator[dict]:
  """Rows of an Arrow table or batch. A column that a row leaves empty is null there: the row does not
  have it. A class label is given by its name."""
  names = _class_labels(table.schema) if names is None else names
  for start in range(0, table.num_rows, 1024):
    for row in table.slice(start, 1024).to_pylist():
      row = {key: value for key, value in row.items() if value is not None}
      for key, labels in names.items():
        if isinstance(row.get(key), int) and 0 <= row[key] < len(labels):
          row[key] = labels[row[key]]
      yield row


def _class_labels(schema) -> dict[str, list[str]]:
  """{column: names} of the ClassLabel columns that Hugging Face's `datasets` wrote."""
  try:
    features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
    return {k: f["names"] for k, f in features.items() if "names" in f}
  except (KeyError, TypeError, AttributeError, ValueError):
    return {}


def _parquet_batches(path: str):
  import pyarrow.parquet as pq

  with pq.ParquetFile(path) as file:
    yield from file.iter_batches(batch_size=1024)


def _arrow_batches(path: str):
  import pyarrow as pa

  with pa.memory_map(path) as data:
    is_file = data.read(6) == b"ARROW1"
    data.seek(0)
    if is_file:
      reader = pa.ipc.open_file(data)
      batches = (reader.get_batch(i) for i in range(reader.num_record_batches))
    else:
      _check_end(data)
      batches = pa.ipc.open_stream(data)
    for batch in batches:
      batch.validate(full=True)  # else offsets beyond the data would end the process
      yield batch


def _check_end(data) -> None:
  """pyarrow takes a stream that was cut off between two batches for a whole one."""
  data.seek(max(0, data.size() - 8))
  if data.read(8) != b"\xff\xff\xff\xff\0\0\0\0":
    raise OSError("the stream of batches ends too early")
  data.seek(0)


def _table_rows(path: str):
  """(row number, row) of a Parquet or Arrow file."""
  try:
    import pyarrow as pa
  except ImportError:
    raise UserError(f"{path}: reading it needs pyarrow. Run: pip install pyarrow") from None
  number = 0
  try:
    for batch in BATCHES[file_kind(path)](path):
      for row in table_rows(batch):
        number += 1
        yield number, row
  except (pa.ArrowException, OSError, UnicodeDecodeError, SystemError, ValueError) as error:
    raise UserError(
      f"{path}: row {number + 1} cannot be read ({error}). Write the file again."
    ) from None


BATCHES = {"parquet": _parquet_batches, "arrow": _arrow_batches}
