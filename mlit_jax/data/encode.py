"""Conversations to tokens, once: one chunk of rows -> flat arrays and counts by language and reason."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Sequence

import numpy as np
import regex

from mlit_jax.data.encoded import COLUMNS, Encoded
from mlit_jax.data.hashing import stable_hash
from mlit_jax.data.rows import Conversation, Message
from mlit_jax.data.tokenizer import Tokenizer
from mlit_jax.errors import UserError

VERSION = 2  # raise it when the same rows would give other arrays
OVER_LONG = ("drop", "truncate_prompt", "truncate_answer", "error")
MOST_TURNS = 1000  # finding the answers of more turns takes time in proportion to their square
CHUNK = 1024  # conversations per call of the tokenizer
ATTEMPTS = 8  # at cutting a prompt down to what fits

Counts = dict[str, dict[str, int]]  # language -> reason or source -> rows


@dataclasses.dataclass
class Chunk:
  """Some rows, tokenised. `columns` are those of Encoded; languages are numbers into `languages`."""

  tokens: np.ndarray
  trained: np.ndarray
  ids: np.ndarray  # uint64 [n, 2]
  columns: dict[str, np.ndarray]
  languages: list[str]
  dropped: Counts
  kept: list[int]  # which of the conversations


def encode_chunk(
  conversations: Sequence[Conversation], tokenizer: Tokenizer, *, max_length: int, over_long: str
) -> Chunk:
  """Render and tokenise every conversation once.

  A row longer than `max_length` is dropped and counted (`drop`), loses the beginning of its longest
  question (`truncate_prompt`), is cut at its end (`truncate_answer`; dropped and counted when no trained
  token is left), or refused (`error`). One of more than MOST_TURNS turns is dropped and counted, or refused.
  """
  numbers: dict[str, int] = {}
  dropped: Counts = {}
  tokens, trained, kept, rows = [], [], [], []
  within = [i for i, c in enumerate(conversations) if _has_few_turns(c, over_long, dropped)]
  rendered = [_render(conversations[i], tokenizer) for i in within]
  marked = tokenizer.encode_marked([r.text for r in rendered], [r.spans for r in rendered])
  for i, r, (ids, mask) in zip(within, rendered, marked, strict=True):
    c = conversations[i]
    cut = len(ids) > max_length
    answer, text = _answer_bytes(c), len(r.text.encode())
    if cut:
      if over_long == "error":
        raise _too_long(c, len(ids), max_length)
      shortened = _SHORTEN[over_long](c, r, ids, mask, tokenizer, max_length)
      if shortened is None:
        add_counts(dropped, {c.lang: {"over_long": 1}})
        continue
      ids, mask, answer, text = shortened
    # The first token is never predicted, so it does not count as trained.
    mask[0] = False
    count = int(np.count_nonzero(mask))
    if not count:
      add_counts(dropped, {c.lang: {"nothing_left_to_train": 1}})
      continue
    tokens.append(ids)
    trained.append(mask)
    kept.append(i)
    number = numbers.setdefault(c.lang, len(numbers))
    group = 0 if c.group_id is None else stable_hash("group", c.group_id) or 1
    rows.append((len(ids), count, number, group, answer, text, cut))
  names = (
    "lengths", "trained_counts", "language", "groups", "answer_bytes", "text_bytes", "truncated",
  )  # fmt: skip
  values = zip(*rows, strict=True) if rows else [()] * len(names)
  columns = {k: np.array(v, COLUMNS[k]) for k, v in zip(names, values, strict=True)}
  return Chunk(
    tokens=np.concatenate([*tokens, np.zeros(0, np.uint32)]).astype(np.uint32),
    trained=np.concatenate([*trained, np.zeros(0, bool)]).astype(np.uint8),
    ids=id_numbers([conversations[i].example_id for i in kept]),
    columns=columns
    | {"row": np.array([_row_number(conversations[i]) for i in kept], COLUMNS["row"])},
    languages=list(numbers),
    dropped=dropped,
    kept=kept,
  )


def encode_conversations(
  conversations: Sequence[Conversation],
  tokenizer: Tokenizer,
  *,
  max_length: int,
  over_long: str = "drop",
  languages: Sequence[str] = (),
) -> Encoded:
  """A few conversations, such as an evaluation set, encoded in memory.

  `languages` fixes the numbers of the languages; by default they are sorted.
  """
  check_over_long(over_long)
  languages = tuple(languages) or tuple(sorted({c.lang for c in conversations}))
  sources = tuple(dict.fromkeys(c.source for c in conversations))
  files = tuple(dict.fromkeys(_file(c) for c in conversations))
  chunks, rows, dropped = [], [], {}
  for start in range(0, len(conversations), CHUNK):
    part = conversations[start : start + CHUNK]
    chunk = encode_chunk(part, tokenizer, max_length=max_length, over_long=over_long)
    chunk.columns["language"] = renumbered(chunk, languages)
    chunks.append(chunk)
    rows += [part[i] for i in chunk.kept]
    add_counts(dropped, chunk.dropped)
  columns = {
    name: np.concatenate([np.zeros(0, dtype), *(c.columns[name] for c in chunks)]).astype(dtype)
    for name, dtype in COLUMNS.items()
    if name not in ("starts", "source", "file")
  }
  read: Counts = {}
  for c in conversations:
    add_counts(read, {c.lang: {c.source: 1}})
  return Encoded(
    tokens=np.concatenate([np.zeros(0, np.uint32), *(c.tokens for c in chunks)]),
    trained=np.concatenate([np.zeros(0, np.uint8), *(c.trained for c in chunks)]),
    starts=(np.cumsum(columns["lengths"], dtype=np.int64) - columns["lengths"]),
    source=np.array([sources.index(c.source) for c in rows], np.int32),
    file=np.array([files.index(_file(c)) for c in rows], np.int32),
    ids=np.concatenate([np.zeros((0, 2), np.uint64), *(c.ids for c in chunks)]),
    **columns,
    languages=languages,
    sources=sources,
    files=files,
    rows_read=read,
    dropped=dropped,
    flagged={},
    language_judged={},
    language_judged_every=0,
    fingerprint=_fingerprint(conversations, tokenizer, max_length, over_long, languages),
  )


def check_over_long(over_long: str) -> None:
  if over_long not in OVER_LONG:
    raise UserError(f"data.over_long is {over_long!r}; it must be one of {', '.join(OVER_LONG)}")


def add_counts(total: Counts, more: Counts) -> None:
  for lang, reasons in more.items():
    mine = total.setdefault(lang, {})
    for reason, count in reasons.items():
      mine[reason] = mine.get(reason, 0) + count


def renumbered(chunk: Chunk, languages: Sequence[str]) -> np.ndarray:
  """The language column of a chunk as numbers into `languages`."""
  to = np.array([languages.index(lang) for lang in chunk.languages], np.int32)
  return to[chunk.columns["language"]] if len(to) else chunk.columns["language"]


def id_numbers(example_ids: Sequence[str]) -> np.ndarray:
  """uint64 [n, 2] of hexadecimal ids of 128 bits."""
  data = b"".join(map(bytes.fromhex, example_ids))
  return np.frombuffer(data, ">u8").reshape(-1, 2).astype(np.uint64)


# --- rows too long


def _has_few_turns(c: Conversation, over_long: str, dropped: Counts) -> bool:
  if len(c.messages) <= MOST_TURNS:
    return True
  if over_long == "error":
    raise UserError(
      f"{c.place}: the row has {len(c.messages):,} turns; {MOST_TURNS:,} is the most. Divide it, or set "
      "data.over_long to drop."
    )
  add_counts(dropped, {c.lang: {"over_long": 1}})
  return False


def _too_long(c: Conversation, length: int, max_length: int) -> UserError:
  return UserError(
    f"{c.place}: the row has {length} tokens, batch.max_length allows {max_length}. "
    "Raise batch.max_length, or set data.over_long to drop, truncate_prompt or truncate_answer."
  )


def _drop(*_):
  return None


def _truncate_answer(c, rendered, ids, mask, tokenizer, max_length):
  """The row up to `max_length`, with the bytes of answer and text that are left."""
  *_, ends = tokenizer.encode_with_offsets([rendered.text])[0]
  whole = mask[1:].sum()
  ids, mask = ids[:max_length], mask[:max_length].copy()
  answer = round(_answer_bytes(c) * mask[1:].sum() / max(1, whole))
  return ids, mask, answer, len(rendered.text[: ends[max_length - 1]].encode())


def _truncate_prompt(c, rendered, ids, mask, tokenizer, max_length):
  """The row without the beginning of its longest question, rendered again; None if that is not enough.

  Cutting text, not tokens, keeps the header, the system text and the form of the template. What
  is asked stands at the end of a long question more often than at its beginning.
  """
  turns = list(c.messages)
  over = len(ids) - max_length
  for _ in range(ATTEMPTS):
    at = max(
      (i for i, m in enumerate(turns) if m.role == "user"),
      key=lambda i: len(turns[i].content),
      default=None,
    )
    if at is None:
      return None
    _, starts, _ = tokenizer.encode_with_offsets([turns[at].content])[0]
    if over >= len(starts):
      return None  # nothing would be left of the question
    text = _from_a_word(turns[at].content[int(starts[over]) :])
    if not text:
      return None
    turns[at] = Message("user", text)
    rendered = _render(dataclasses.replace(c, messages=tuple(turns)), tokenizer)
    (ids, mask) = tokenizer.encode_marked([rendered.text], [rendered.spans])[0]
    if len(ids) <= max_length:
      return ids, mask, _answer_bytes(c), len(rendered.text.encode())
    over = len(ids) - max_length
  return None


def _from_a_word(text: str) -> str:
  """Without the rest of a word that it begins in; where no space is near, without loose marks."""
  return _WORD_REST.sub("", text, count=1)


_WORD_REST = regex.compile(r"\A(?:\S{0,30}\s+|[\p{M}\u200c\u200d]+)")
_SHORTEN = {
  "drop": _drop,
  "truncate_prompt": _truncate_prompt,
  "truncate_answer": _truncate_answer,
}


# --- parts of a row


def _render(c: Conversation, tokenizer: Tokenizer):
  try:
    return tokenizer.template.render(c.messages)
  except UserError as e:
    raise UserError(f"{c.place}: {e}") from e


def _answer_bytes(c: Conversation) -> int:
  return sum(len(m.content.encode()) for m in c.messages if m.role == "assistant")


def _file(c: Conversation) -> str:
  return c.place.rpartition(":")[0]


def _row_number(c: Conversation) -> int:
  number = c.place.rpartition(":")[2]
  return int(number) if number.isdigit() else 0


def _fingerprint(conversations, tokenizer, max_length, over_long, languages) -> str:
  digest = hashlib.blake2b(digest_size=16)
  for c in conversations:
    # JSON, since no group is not the group "None".
    digest.update(json.dumps([c.example_id, c.group_id]).encode())
  digest.update(
    json.dumps([VERSION, tokenizer.fingerprint, max_length, over_long, languages]).encode()
  )
  return digest.hexdigest()
