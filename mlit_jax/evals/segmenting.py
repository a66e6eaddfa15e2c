"""Answers in parts: pieces that are judged one by one, words, and the tokens of the published metric."""

import dataclasses
import functools

import numpy as np
import regex

from mlit_jax.data.foreign import length
from mlit_jax.data.ngrams import WORD, character_kinds, code_points, unit_starts
from mlit_jax.errors import UserError

PIECE = 30  # size of a piece at the least
LONGEST_WORD = 60  # letters; what is longer is no word
MARK = regex.compile(r"\p{M}")
REPEATED = regex.compile(r"(\p{L}\p{M}*)\1{5,}")

# After what ends a sentence; Chinese and Japanese write no space there.
SENTENCE_END = regex.compile(r"(?<=[.!?…।॥؟۔።])\s+|(?<=[。！？])")

# In a text of another script: entirely lower-case words of more than 3 Latin letters, and stretches
# of Latin letters with what stands between their words. Names of files and addresses are no words.
LATIN_WORD = regex.compile(r"(?<![\p{Latin}\p{N}_.@/'’-])[a-z]{4,}(?![\p{Latin}\p{N}_@/'’-]|\.\w)")
LATIN_STRETCH = regex.compile(r"\p{Latin}[\p{Latin}\p{M}\p{N} \t'’\"“”,;:()&.!?/-]*")


@dataclasses.dataclass(frozen=True)
class Piece:
  """A sentence or so: `line` is the number, from 1, of the line where it begins."""

  line: int
  text: str


def size(text: str) -> int:
  """Letters and marks, the letters of unspaced scripts counted twice: "मैं ठीक" -> 6   "好的" -> 4."""
  return length(text) + len(MARK.findall(text))


def pieces(text: str) -> list[Piece]:
  """Sentences, the short ones joined to what follows; the last short one to what precedes.

  A list of short lines is one piece, since a word or two tell no language.
  """
  out, kept, start = [], [], 1
  for number, line in enumerate(text.split("\n"), 1):
    for sentence in filter(str.strip, SENTENCE_END.split(line)):
      if not kept:
        start = number
      kept.append(sentence.strip())
      if size(" ".join(kept)) >= PIECE:
        out.append(Piece(start, " ".join(kept)))
        kept = []
  if kept:
    last = out.pop() if out else Piece(start, "")
    out.append(Piece(last.line, " ".join(filter(None, [last.text, *kept]))))
  return out


def is_unsegmentable(text: str) -> bool:
  """Whether most of the letters stand in no word: one letter again and again, or hundreds without a space.

  Where no spaces are written, each character is a word.
  """
  plain = REPEATED.sub(" ", text)
  codes = code_points(plain)
  kinds = character_kinds()[codes]
  starts = np.flatnonzero(unit_starts(kinds))
  letters = np.add.reduceat((kinds == WORD).astype(int), starts) if len(starts) else starts
  in_words = length(plain) - int(letters[letters > LONGEST_WORD].sum())
  return 2 * in_words < length(text)


def latin_words(text: str) -> tuple[str, ...]:
  """Entirely lower-case words of more than three Latin letters: "这个 project 很 nice" -> (project, nice)."""
  return tuple(LATIN_WORD.findall(text))


def latin_stretches(text: str) -> list[str]:
  return [stretch.strip() for stretch in LATIN_STRETCH.findall(text)]


def reference_tokens(line: str, lang: str) -> list[str]:
  """The tokens that the published metric counts: by jieba for zh, by UniDic for ja, else by spaces."""
  if lang == "zh":
    return list(_jieba().cut(line))
  if lang == "ja":
    return _unidic().parse(line).split()
  return line.split()


@functools.cache
def _jieba():
  try:
    import jieba
  except ImportError as e:
    raise _missing("zh", "jieba") from e
  jieba.setLogLevel("WARNING")
  jieba.initialize()
  return jieba


@functools.cache
def _unidic():
  try:
    import fugashi
  except ImportError as e:
    raise _missing("ja", "fugashi and unidic-lite") from e
  return fugashi.Tagger("-O wakati -b 50000")


def _missing(lang: str, packages: str) -> UserError:
  return UserError(
    f"Line and word pass rates of {lang!r} need {packages}: pip install 'mlit_jax[fidelity]'."
  )
