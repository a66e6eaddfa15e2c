"""An evaluation set: every row scored, some of them answered."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence

import numpy as np

from mlit_jax.batch import Batch
from mlit_jax.data.encode import encode_conversations
from mlit_jax.data.encoded import COLUMNS, Encoded
from mlit_jax.data.hashing import stable_hash
from mlit_jax.data.loader import gather_rows
from mlit_jax.data.packing import pack
from mlit_jax.data.rows import Conversation
from mlit_jax.data.tokenizer import Tokenizer


@dataclasses.dataclass(frozen=True)
class Question:
  """A row to be answered: its prompt up to the last answer, and that answer as reference."""

  example_id: str
  group_id: str | None
  lang: str
  prompt: str
  tokens: list[int]
  reference: str


@dataclasses.dataclass(frozen=True)
class EvalSet:
  name: str
  encoded: Encoded
  rows: list[np.ndarray]  # packed rows of example numbers
  max_length: int
  questions: list[Question]
  group_ids: dict[str, str | None]  # of every example, by its id

  @property
  def num_segments(self) -> int:
    return max((len(row) for row in self.rows), default=1)

  def batches(self, rows_per_step: int, num_segments: int) -> Iterator[tuple[Batch, np.ndarray]]:
    """(Batch, example numbers [B, num_segments], -1 where there is none); the last one is padded."""
    for start in range(0, len(self.rows), rows_per_step):
      rows = self.rows[start : start + rows_per_step]
      rows = rows + [np.zeros(0, np.int64)] * (rows_per_step - len(rows))
      examples = np.full((rows_per_step, num_segments), -1, np.int64)
      for r, row in enumerate(rows):
        examples[r, : len(row)] = row
      yield gather_rows(self.encoded, rows, self.max_length), examples


def make_eval_set(
  name: str,
  conversations: Sequence[Conversation],
  tokenizer: Tokenizer,
  *,
  max_length: int,
  generate_rows: int,
  packing: bool = True,
) -> EvalSet:
  """All rows for the likelihood, and `generate_rows` of each language as questions.

  Questions are the first by hash of the parallel group, so that languages answer the same ones. A row
  too long is dropped from both and stands in encoded.dropped.
  """
  encoded = encode_conversations(conversations, tokenizer, max_length=max_length, over_long="drop")
  items = np.arange(len(encoded))
  starts = np.arange(len(encoded) + 1)
  if packing:
    items, starts = pack(encoded.lengths, max_length)
  rows = [items[a:b] for a, b in zip(starts[:-1], starts[1:], strict=True)]
  fitting = {encoded.example_id(i) for i in range(len(encoded))}
  questions = []
  for lang in encoded.languages:
    mine = [c for c in conversations if c.lang == lang and c.example_id in fitting]
    mine.sort(key=lambda c: (stable_hash("question", c.group_id or c.example_id), c.example_id))
    questions += [make_question(c, tokenizer) for c in mine[:generate_rows]]
  groups = {c.example_id: c.group_id for c in conversations}
  return EvalSet(name, encoded, rows, max_length, questions, groups)


def make_scored_set(
  name: str, rows: Sequence[tuple[np.ndarray, np.ndarray]], max_length: int
) -> EvalSet:
  """A set of bare (ids, mask) rows, whose masked tokens are to be scored; packed, row i is example i.

  The first token of a row is never predicted, so it must not be masked.
  """
  assert not any(mask[0] for _, mask in rows)
  lengths = np.array([len(ids) for ids, _ in rows], np.int32)
  columns = {column: np.zeros(len(rows), dtype) for column, dtype in COLUMNS.items()}
  columns |= {
    "starts": np.cumsum(lengths, dtype=np.int64) - lengths,
    "lengths": lengths,
    "trained_counts": np.array([mask.sum() for _, mask in rows], np.int32),
  }
  encoded = Encoded(
    tokens=np.concatenate([ids for ids, _ in rows]).astype(np.uint32),
    trained=np.concatenate([mask for _, mask in rows]).astype(np.uint8),
    ids=np.zeros((len(rows), 2), np.uint64),
    **columns,
    languages=("",),
    sources=("",),
    files=("",),
    rows_read={},
    dropped={},
    flagged={},
    language_judged={},
    language_judged_every=0,
    fingerprint="",
  )
  items, starts = pack(lengths, max_length)
  packed = [items[a:b] for a, b in zip(starts[:-1], starts[1:], strict=True)]
  return EvalSet(name, encoded, packed, max_length, [], {})


def make_question(c: Conversation, tokenizer: Tokenizer) -> Question:
  """The prompt exactly as training shows it."""
  history = [dataclasses.asdict(m) for m in c.messages[:-1]]
  tokens = tokenizer.encode_text(tokenizer.template.prompt(history))
  prompt = history[-1]["content"]
  return Question(c.example_id, c.group_id, c.lang, prompt, list(tokens), c.messages[-1].content)
