"""Tokenised examples as flat arrays, in memory or mapped from the token cache."""

from __future__ import annotations

import dataclasses
import functools

import numpy as np

UNITS = ("examples", "tokens", "trained_tokens")
# Column -> dtype, one value per example.
COLUMNS = {
  "starts": "<i8",
  "lengths": "<i4",
  "trained_counts": "<i4",
  "language": "<i4",
  "source": "<i4",
  "file": "<i4",
  "row": "<i8",
  "groups": "<u8",
  "answer_bytes": "<i4",
  "text_bytes": "<i4",
  "truncated": "u1",
}


@dataclasses.dataclass(frozen=True)
class Encoded:
  """Example i has tokens[starts[i] : starts[i] + lengths[i]]."""

  tokens: np.ndarray  # uint32 [total]
  trained: np.ndarray  # uint8 [total], 1 where the token is trained on
  starts: np.ndarray  # int64 [n]
  lengths: np.ndarray  # int32 [n]
  trained_counts: np.ndarray  # int32 [n], trained tokens
  language: np.ndarray  # int32 [n], numbers into `languages`
  source: np.ndarray  # int32 [n], numbers into `sources`
  file: np.ndarray  # int32 [n], numbers into `files`
  row: np.ndarray  # int64 [n], row of the file, from 1
  ids: np.ndarray  # uint64 [n, 2], hash of language and messages
  groups: np.ndarray  # uint64 [n], hash of the parallel group, 0 where there is none
  answer_bytes: np.ndarray  # int32 [n], UTF-8 bytes of what the assistant says
  text_bytes: np.ndarray  # int32 [n], UTF-8 bytes of the rendered text that the tokens spell
  truncated: np.ndarray  # uint8 [n]
  languages: tuple[str, ...]
  sources: tuple[str, ...]
  files: tuple[str, ...]
  rows_read: dict[str, dict[str, int]]  # language -> source -> rows
  dropped: dict[str, dict[str, int]]  # language -> reason -> rows
  flagged: dict[str, dict[str, int]]  # the same, of rows that stay
  language_judged: dict[str, int]  # rows that stay and whose answer's language was judged
  language_judged_every: int  # one row in so many was to be judged by its language; 0: none
  fingerprint: str

  def __len__(self) -> int:
    return len(self.language)

  def example_id(self, i: int) -> str:
    high, low = self.ids[i].tolist()
    return f"{high:016x}{low:016x}"

  def sizes(self, unit: str, rows=slice(None)) -> np.ndarray:
    """int32, what each of the rows counts for in a unit of UNITS; an example counts 1."""
    if unit == "examples":
      return np.ones(len(self.language[rows]), np.int32)
    return {"tokens": self.lengths, "trained_tokens": self.trained_counts}[unit][rows]

  def place(self, i: int) -> str:
    """ "file:row" of an example."""
    return f"{self.files[self.file[i]]}:{self.row[i]}"

  def tokens_of(self, i: int) -> np.ndarray:
    return self.tokens[self.starts[i] : self.starts[i] + self.lengths[i]]

  def trained_of(self, i: int) -> np.ndarray:
    return self.trained[self.starts[i] : self.starts[i] + self.lengths[i]]

  @functools.cached_property
  def strata(self) -> list[tuple[str, str]]:
    """The (language, source) pairs that have examples."""
    width = len(self.sources)
    return [(self.languages[p // width], self.sources[p % width]) for p in self._pairs.tolist()]

  @functools.cached_property
  def stratum(self) -> np.ndarray:
    """int32 [n], numbers into `strata`."""
    return np.searchsorted(self._pairs, self._pair()).astype(np.int32)

  @functools.cached_property
  def _pairs(self) -> np.ndarray:
    return np.flatnonzero(np.bincount(self._pair()))

  def _pair(self) -> np.ndarray:
    return self.language.astype(np.int64) * len(self.sources) + self.source
