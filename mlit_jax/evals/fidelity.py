"""Is an answer in the language it was asked for? The strict score: nothing is skipped.

An answer is right if there is enough of it to tell, if the detector finds its language (or one of
its group) most likely, most of its words are in a script of the language, no sentence is plainly in
another language, no stretch of a text in another script is in Latin letters, and it does not repeat
the prompt. Everything else is a failure, and says which.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from mlit_jax.data.foreign import foreign_share, scripts_of
from mlit_jax.data.ngrams import normalise
from mlit_jax.detect import LETTER, Detector, prose_or_all
from mlit_jax.evals.segmenting import (
  PIECE,
  Piece,
  is_unsegmentable,
  latin_stretches,
  latin_words,
  pieces,
  size,
)

# Why an answer fails.
EMPTY = "empty"  # no letters
TOO_SHORT = "too short"
UNSEGMENTABLE = "unsegmentable"
REPEATS_PROMPT = "repeats the prompt"
WRONG_SCRIPT = "wrong script"
WRONG_LANGUAGE = "wrong language"
MIXED_LINES = "mixed lines"
LATIN_WORDS = "Latin words"
NOT_JUDGED = (EMPTY, TOO_SHORT, UNSEGMENTABLE)

# Letters of an answer, see segmenting.size. Of beginnings of NTREX-128's lines with 4 to 7 letters
# lingua tells 62 % (es) to 82 % (sw) right in Latin letters, with 8 to 11 72 % (fi) to 89 % (sw).
SMALLEST = 8
FOREIGN_SHARE = 0.5  # of the words; an answer with more is in another script
UNSURE = 0.1  # a sentence whose own language has this much of the probability is not foreign
SURE = 0.5  # nor one where no other language has more
STRETCH = 4  # lower-case Latin words in a row that are no name or term
REPEATED_LETTERS = (
  40  # of the prompt, or all of it: an answer that begins with so many and ends repeats it
)


@dataclasses.dataclass(frozen=True)
class Verdict:
  """What is known of one answer.

  language, confidence: what the detector finds in the whole of it. why: the reason of a failure, ""
  if right. line: where the first foreign sentence begins, counted from 1. quote: that sentence, or
  that stretch. words: entirely lower-case Latin words of more than three letters in an answer in
  another script; a few of them are reported, and only a stretch fails.
  """

  right: bool
  language: str | None = None
  confidence: float = 0.0
  why: str = ""
  line: int | None = None
  quote: str = ""
  words: tuple[str, ...] = ()
  is_latin: bool = False  # the language is written in Latin letters, too: words are not looked for

  @property
  def reason(self) -> str:
    """why, and which language was found where that is the reason: "wrong language en"."""
    return f"{self.why} {self.language}" if self.why == WRONG_LANGUAGE else self.why

  def row(self) -> dict:
    """As it is written beside the answer; what there is nothing to say of is left out."""
    row = {"right": self.right, "language": self.language, "confidence": round(self.confidence, 4)}
    more = {"why": self.why, "line": self.line, "quote": self.quote, "words": list(self.words)}
    return row | {key: value for key, value in more.items() if value}

  @property
  def judged(self) -> bool:
    """Whether there was enough text."""
    return self.why not in NOT_JUDGED

  @property
  def lines_right(self) -> bool | None:
    """Whether all of it is in the language, line by line; None if not judged."""
    return self.why in ("", REPEATS_PROMPT, LATIN_WORDS) if self.judged else None

  @property
  def words_right(self) -> bool | None:
    """Whether no Latin word stands in it; None where lines are wrong or the language is a Latin one."""
    return not self.words if self.lines_right and not self.is_latin else None


def judge(
  responses: Sequence[str],
  langs: Sequence[str],
  detector: Detector,
  prompts: Sequence[object] | None = None,
) -> list[Verdict]:
  """A verdict on each answer; `prompts`, text or messages, show which answers only repeat them."""
  texts = [prose_or_all(response) for response in responses]
  prompts = [None] * len(texts) if prompts is None else prompts
  verdicts: dict[int, Verdict] = {}
  for i, text in enumerate(texts):
    if reason := _too_little(text):
      verdicts[i] = Verdict(False, why=reason)
  rest = [i for i in range(len(texts)) if i not in verdicts]
  for i, found in zip(rest, detector.probabilities([texts[i] for i in rest]), strict=True):
    verdicts[i] = _whole(texts[i], langs[i], found, detector)
  rest = [i for i in rest if verdicts[i].right]
  for i, foreign in zip(rest, _foreign_pieces(texts, langs, rest, detector), strict=True):
    verdicts[i] = _parts(verdicts[i], texts[i], responses[i], foreign, prompts[i])
  return [verdicts[i] for i in range(len(texts))]


def repeats(response: str, prompt: object) -> bool:
  """Whether an answer is its prompt again, once or more often, from its beginning, or cut short.

  "How are you?" -> "How are you? How are you?" and "how are y", but not "You?", nor the prompt with
  an answer behind it.
  """
  asked, said = _letters(prompt_text(prompt)), _letters(response)
  if not asked or not said:
    return False
  times = -(-len(said) // len(asked))
  again = (asked * times).startswith(said)
  return again and len(said) >= min(len(asked), max(REPEATED_LETTERS, len(asked) // 2))


def prompt_text(prompt: object) -> str:
  """A prompt as text: of messages, what was said last."""
  if isinstance(prompt, str):
    return prompt
  if isinstance(prompt, Sequence) and prompt and isinstance(prompt[-1], dict):
    content = prompt[-1].get("content")
    return content if isinstance(content, str) else ""
  return ""


def _too_little(text: str) -> str:
  if not LETTER.search(text):
    return EMPTY
  if is_unsegmentable(text):
    return UNSEGMENTABLE
  return TOO_SHORT if size(text) < SMALLEST else ""


def _whole(text, lang, found, detector) -> Verdict:
  accepted, scripts = detector.accepted(lang), scripts_of(lang)
  language, confidence = found[0] if found else (None, 0.0)
  off_script = bool(scripts) and foreign_share(text, scripts) > FOREIGN_SHARE
  why = ""
  if not accepted:  # the detector does not know the language: its script decides
    why = WRONG_SCRIPT if off_script else ""
    language, confidence = (language, confidence) if off_script else (lang.split("-")[0], 1.0)
  elif language not in accepted:
    why = WRONG_LANGUAGE
  elif off_script:
    why = WRONG_SCRIPT
  is_latin = not scripts or "Latn" in scripts
  words = () if is_latin else latin_words(text)
  return Verdict(not why, language, confidence, why, words=words, is_latin=is_latin)


def _foreign_pieces(texts, langs, rest, detector) -> list[Piece | None]:
  """The first piece of each of these texts that is plainly in another language, if any."""
  parts = [
    (i, piece) for i in rest for piece in _several(pieces(texts[i])) if size(piece.text) >= PIECE
  ]
  first: dict[int, Piece] = {}
  found = detector.probabilities([piece.text for _, piece in parts])
  for (i, piece), likely in zip(parts, found, strict=True):
    if i not in first and _is_foreign(piece.text, langs[i], likely, detector):
      first[i] = piece
  return [first.get(i) for i in rest]


def _several(parts: list[Piece]) -> list[Piece]:
  return parts if len(parts) > 1 else []  # one was judged as the whole


def _is_foreign(text, lang, likely, detector) -> bool:
  scripts, accepted = scripts_of(lang), detector.accepted(lang)
  if scripts and foreign_share(text, scripts) > FOREIGN_SHARE:
    return True
  if not accepted:
    return False
  own = sum(p for language, p in likely if language in accepted)
  other = max((p for language, p in likely if language not in accepted), default=0.0)
  return own < UNSURE and other > SURE


def _parts(verdict, text, response, foreign, prompt) -> Verdict:
  if foreign:
    return dataclasses.replace(
      verdict, right=False, why=MIXED_LINES, line=foreign.line, quote=foreign.text
    )
  if not verdict.is_latin:
    for stretch in latin_stretches(text):
      if len(latin_words(stretch)) >= STRETCH:
        return dataclasses.replace(verdict, right=False, why=LATIN_WORDS, quote=stretch)
  if repeats(response, prompt):
    return dataclasses.replace(verdict, right=False, why=REPEATS_PROMPT)
  return verdict


def _letters(text: str) -> str:
  return "".join(c for c in normalise(text) if c.isalnum())
