"""Conversations to tokens, once; kept as flat arrays that a run maps into memory."""

from __future__ import annotations

import collections
import dataclasses
import functools
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from mlit_jax.data.chat import trained_mask
from mlit_jax.data.rows import Conversation
from mlit_jax.data.tokenizer import Tokenizer
from mlit_jax.errors import UserError

VERSION = 1  # raise it when the same rows would give other arrays
OVER_LONG = ("drop", "truncate_answer", "error")
CHUNK = 1024  # conversations per call of the tokenizer


@dataclasses.dataclass(frozen=True)
class Encoded:
  """Tokenised examples. Example i has tokens[offsets[i]:offsets[i + 1]]."""

  tokens: np.ndarray  # uint32 [total]
  trained: np.ndarray  # uint8 [total], 1 where the token is trained on
  offsets: np.ndarray  # int64 [examples + 1]
  language: np.ndarray  # int32 [examples], numbers into `languages`
  answer_bytes: np.ndarray  # int32 [examples], UTF-8 bytes of what the assistant says
  text_bytes: np.ndarray  # int32 [examples], UTF-8 bytes of the rendered text that the tokens spell
  truncated: np.ndarray  # uint8 [examples]
  languages: tuple[str, ...]
  example_ids: list[str]
  group_ids: list[str | None]
  dropped: dict[str, dict[str, int]]  # language -> reason -> rows
  fingerprint: str

  def __len__(self) -> int:
    return len(self.language)

  @functools.cached_property
  def lengths(self) -> np.ndarray:
    return np.diff(self.offsets)

  @functools.cached_property
  def trained_counts(self) -> np.ndarray:
    """Trained tokens of each example."""
    ends = np.concatenate([[0], np.cumsum(self.trained, dtype=np.int64)])
    return ends[self.offsets[1:]] - ends[self.offsets[:-1]]


def encode_conversations(
  conversations: Sequence[Conversation],
  tokenizer: Tokenizer,
  *,
  max_length: int,
  over_long: str = "drop",
  languages: Sequence[str] = (),
  cache_dir: Path | None = None,
  progress: Callable[[int], None] | None = None,
) -> Encoded:
  """Render and tokenise every conversation once; read from `cache_dir` if the same was done before.

  A row longer than `max_length` is dropped and counted (`drop`), cut at its end (`truncate_answer`; dropped
  and counted when no trained token is left), or refused (`error`). `languages` fixes the numbers of the
  languages; by default they are sorted.
  """
  if over_long not in OVER_LONG:
    raise UserError(f"data.over_long is {over_long!r}; it must be one of {', '.join(OVER_LONG)}")
  languages = tuple(languages) or tuple(sorted({c.lang for c in conversations}))
  fingerprint = _fingerprint(conversations, tokenizer, max_length, over_long, languages)
  if cache_dir is not None and (cached := load_cache(Path(cache_dir) / fingerprint)) is not None:
    return cached
  encoded = _encode(
    conversations, tokenizer, max_length, over_long, languages, fingerprint, progress
  )
  if cache_dir is not None:
    save_cache(encoded, Path(cache_dir) / fingerprint)
  return encoded


def _encode(conversations, tokenizer, max_length, over_long, languages, fingerprint, progress):
  number = {lang: i for i, lang in enumerate(languages)}
  dropped: dict = collections.defaultdict(collections.Counter)
  tokens, trained, kept, rows = [], [], [], []
  for start in range(0, len(conversations), CHUNK):
    chunk = conversations[start : start + CHUNK]
    rendered = [_render(c, tokenizer) for c in chunk]
    encodings = tokenizer.encode_with_offsets([r.text for r in rendered])
    for c, r, (ids, starts, ends) in zip(chunk, rendered, encodings, strict=True):
      mask = trained_mask(r, starts, ends)
      cut = len(ids) > max_length
      if cut and over_long == "error":
        raise UserError(
          f"{c.place}: the row has {len(ids)} tokens, batch.max_length allows {max_length}. "
          "Raise batch.max_length, or set data.over_long to drop or truncate_answer."
        )
      if cut and over_long == "drop":
        dropped[c.lang]["over_long"] += 1
        continue
      ids, mask = ids[:max_length], mask[:max_length]
      # The first token is never predicted, so it does not count as trained.
      if not mask[1:].any():
        dropped[c.lang]["nothing_left_to_train"] += 1
        continue
      mask[0] = False
      answer = sum(len(m.content.encode()) for m in c.messages if m.role == "assistant")
      share = 1.0 if not cut else mask.sum() / max(1, trained_mask(r, starts, ends)[1:].sum())
      tokens.append(ids.astype(np.uint32))
      trained.append(mask.astype(np.uint8))
      kept.append(c)
      text = r.text[: ends[len(ids) - 1]] if cut else r.text
      rows.append((len(ids), round(answer * share), len(text.encode()), cut))
    if progress:
      progress(len(chunk))
  lengths, answer_bytes, text_bytes, truncated = zip(*rows, strict=True) if rows else ((),) * 4
  return Encoded(
    tokens=np.concatenate(tokens) if tokens else np.zeros(0, np.uint32),
    trained=np.concatenate(trained) if trained else np.zeros(0, np.uint8),
    offsets=np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)]).astype(np.int64),
    language=np.array([number[c.lang] for c in kept], np.int32),
    answer_bytes=np.array(answer_bytes, np.int32),
    text_bytes=np.array(text_bytes, np.int32),
    truncated=np.array(truncated, np.uint8),
    languages=languages,
    example_ids=[c.example_id for c in kept],
    group_ids=[c.group_id for c in kept],
    dropped={lang: dict(reasons) for lang, reasons in dropped.items()},
    fingerprint=fingerprint,
  )


def _render(c: Conversation, tokenizer: Tokenizer):
  try:
    return tokenizer.template.render([dataclasses.asdict(m) for m in c.messages])
  except UserError as e:
    raise UserError(f"{c.place}: {e}") from e


def _fingerprint(conversations, tokenizer, max_length, over_long, languages) -> str:
  digest = hashlib.blake2b(digest_size=16)
  for c in conversations:
    # JSON, since no group is not the group "None".
    digest.update(json.dumps([c.example_id, c.group_id]).encode())
  digest.update(
    json.dumps([VERSION, tokenizer.fingerprint, max_length, over_long, languages]).encode()
  )
  return digest.hexdigest()


ARRAYS = ("tokens", "trained", "offsets", "language", "answer_bytes", "text_bytes", "truncated")


def save_cache(encoded: Encoded, folder: Path) -> None:
  """Written beside its place and renamed, so that a killed build leaves nothing that looks whole."""
  try:
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=".building-", dir=folder.parent))
  except OSError as e:
    raise UserError(f"cannot write the token cache {folder}: {e}. Set data.cache_dir.") from e
  try:
    for name in ARRAYS:
      np.save(temporary / f"{name}.npy", getattr(encoded, name))
    rest = {
      k: getattr(encoded, k)
      for k in ("languages", "example_ids", "group_ids", "dropped", "fingerprint")
    }
    (temporary / "rest.json").write_text(json.dumps(rest), encoding="utf-8")
    os.rename(temporary, folder)
  except OSError as e:
    shutil.rmtree(temporary, ignore_errors=True)
    if not folder.is_dir():  # else another process was faster
      raise UserError(f"cannot write the token cache {folder}: {e}. Set data.cache_dir.") from e


def load_cache(folder: Path) -> Encoded | None:
  if not folder.is_dir():
    return None
  arrays = {name: np.load(folder / f"{name}.npy", mmap_mode="r") for name in ARRAYS}
  rest = json.loads((folder / "rest.json").read_text(encoding="utf-8"))
  return Encoded(**arrays, **rest | {"languages": tuple(rest["languages"])})
