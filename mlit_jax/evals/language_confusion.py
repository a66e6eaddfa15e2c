"""Line and word pass rates as the Language Confusion Benchmark publishes them, traps included.

Marchisio et al. 2024, arXiv 2406.20052; the harmonic mean (LCPR) is of later use. An answer without
a line of five tokens is skipped: empty answers score 1.0, and so does unsegmented Thai. Our own
score, which skips nothing, is in fidelity.py; show this one with its skipped share.
"""

from __future__ import annotations

import functools
import string
from collections import defaultdict
from collections.abc import Callable, Iterable

from mlit_jax.detect import Detector
from mlit_jax.errors import UserError
from mlit_jax.evals.segmenting import reference_tokens

MIN_TOKENS = 5  # of a line that counts
MIN_SCORE = 0.3  # a label must have more
UNKNOWN = "unknown"
WITH_WORDS = ("ar", "hi", "ja", "ko", "ru", "zh")  # where English words are looked for
MIN_WORD = 4  # letters of a word that does
AVERAGED = ("acc", "lpr", "wpr")
ALL = "all"

CLEANED = str.maketrans({c: None for c in string.punctuation + "،"} | {"—": " "})

# Lines -> (language, score) of each.
Lid = Callable[[list[str]], list[tuple[str | None, float]]]


def pass_rates(completions: Iterable[str], lang: str, lid: Lid, words: frozenset[str]) -> dict:
  """{"acc", "lpr", "wpr", "lcpr", "n", "skipped"} of answers in one language.

  acc: mean share of right lines. lpr: share of the answers that were not skipped without a wrong
  line. wpr: of those, share without an English word; only for WITH_WORDS. lcpr: harmonic mean of
  both. n: all answers. skipped: the share that no figure counts.
  """
  answers = [counted_lines(completion, lang) for completion in completions]
  kept = [lines for lines in answers if lines]
  found = iter(lid([line for lines in kept for line, _ in lines]))
  right_shares, wrong_lines, wrong_words = [], 0, 0
  for lines in kept:
    labels = [_accepted(*next(found)) for _ in lines]
    wrong = sum(label != lang for label in labels)
    if wrong:
      wrong_lines += 1
    elif any(token.strip() in words for _, tokens in lines for token in tokens):
      wrong_words += 1
    right_shares.append(1 - wrong / len(lines))
  rates = {
    "acc": sum(right_shares) / len(kept) if kept else 1.0,
    "lpr": 1 - wrong_lines / max(1, len(kept)),
  }
  if lang in WITH_WORDS:
    rates["wpr"] = 1 - wrong_words / max(1, len(kept) - wrong_lines)
  n = len(answers)
  return _with_lcpr(rates) | {"n": n, "skipped": (n - len(kept)) / n if n else 0.0}


def all_pass_rates(answers: Iterable[tuple[str, str, str]], lid: Lid, words) -> dict:
  """{(source, language): rates} of (source, language, completion), "all" for the averages.

  Averages weigh the same whatever they are of: a language that of its sources, a source that of its
  languages, and the whole that of the languages.
  """
  groups = defaultdict(list)
  for source, lang, completion in answers:
    groups[source, lang].append(completion)
  single = {key: pass_rates(groups[key], key[1], lid, words) for key in sorted(groups)}
  by_source, by_lang = defaultdict(list), defaultdict(list)
  for (source, lang), rates in single.items():
    by_source[source].append(rates)
    by_lang[lang].append(rates)
  sources = {(source, ALL): _average(rates) for source, rates in by_source.items()}
  langs = {(ALL, lang): _average(rates) for lang, rates in by_lang.items()}
  return single | sources | langs | {(ALL, ALL): _average(list(langs.values()))}


def counted_lines(completion: str, lang: str) -> list[tuple[str, list[str]]]:
  """(line, tokens) of the lines that are looked at.

  "Yes — it is, really.\\nNo.\\nQ: Why?" -> [("Yes   it is really", [Yes, it, is, really])] had it 5 tokens
  """
  text = completion.split("\nQ:")[0].strip().translate(CLEANED)
  lines = [(line, reference_tokens(line, lang)) for line in text.split("\n")]
  return [(line, tokens) for line, tokens in lines if len(tokens) >= MIN_TOKENS]


def detector_lid(detector: Detector) -> Lid:
  """The most likely language and its probability."""

  def lid(lines):
    return [found[0] if found else (None, 0.0) for found in detector.probabilities(lines)]

  return lid


@functools.lru_cache(maxsize=4)
def english_words(path: str = "") -> frozenset[str]:
  """Entirely lower-case words of more than three letters: of a file, one a line, or of Webster's second.

  That list, in the public domain, comes with the package english-words. The published figures used
  another file of words: give it to get them.
  """
  if path:
    try:
      with open(path, encoding="utf-8") as file:
        words = [line.strip() for line in file]
    except (OSError, UnicodeDecodeError) as e:
      raise UserError(f"--words {path}: cannot be read as a list of words, one a line: {e}.") from e
  else:
    try:
      from english_words import get_english_words_set
    except ImportError as e:
      raise UserError(
        "Word pass rates need a list of English words: pip install 'mlit_jax[fidelity]', or name a "
        "file with one word a line as --words."
      ) from e
    words = get_english_words_set(["web2"])
  return frozenset(w for w in words if w.islower() and len(w) >= MIN_WORD)


def _accepted(label: str | None, score: float) -> str:
  return label if label is not None and score > MIN_SCORE else UNKNOWN


def _average(rates: list[dict]) -> dict:
  out = {}
  for key in AVERAGED:
    values = [r[key] for r in rates if key in r]
    if values:
      out[key] = sum(values) / len(values)
  n = sum(r["n"] for r in rates)
  skipped = sum(r["n"] * r["skipped"] for r in rates)
  return _with_lcpr(out) | {"n": n, "skipped": skipped / n if n else 0.0}


def _with_lcpr(rates: dict) -> dict:
  if "wpr" not in rates:
    return rates
  total = rates["lpr"] + rates["wpr"]
  return rates | {"lcpr": 2 * rates["lpr"] * rates["wpr"] / total if total else 0.0}
