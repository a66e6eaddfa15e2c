"""Overlap of an answer with its reference, in any script."""

import functools
import unicodedata

from sacrebleu.metrics import CHRF


def chrf_scores(responses: list[str], references: list[str]) -> list[float]:
  """Sentence chrF (0 to 100) of each answer; the mean of a set is the mean of these.

  chrF compares character n-grams, so it works without spaces and beyond Latin letters, where
  ROUGE's usual tokenizer leaves nothing. Both sides are brought to NFC: the same text in two
  encodings is the same text. An empty answer is 0, also to an empty reference.
  """
  return [
    _chrf(response, reference) for response, reference in zip(responses, references, strict=True)
  ]


def exact(response: str, reference: str) -> bool:
  """Equal after NFC and with runs of whitespace as one space; an empty answer is never right."""
  answer = normalise(response)
  return bool(answer) and answer == normalise(reference)


def normalise(text: str) -> str:
  """NFC, runs of whitespace as one space, none at the ends."""
  return " ".join(unicodedata.normalize("NFC", text).split())


def _chrf(response: str, reference: str) -> float:
  answer, wanted = normalise(response), normalise(reference)
  if not answer or not wanted:
    return 0.0
  return float(_metric().sentence_score(answer, [wanted]).score)


@functools.cache
def _metric() -> CHRF:
  return CHRF()  # 6 character n-grams, no word n-grams, beta 2: chrF as published
