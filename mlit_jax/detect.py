"""Which language is a text in? And which languages count as the one that was asked for?

A Detector gives the languages of texts with their probabilities. The bundled one is lingua with the
models it ships; mlit_jax/detectors opens the others. lingua chooses among the languages in play and
a few that models drift to (GUARDS): among Finnish and English alone, a German answer would pass for
one of the two. On the first 300 lines of NTREX-128 in twelve languages the guards cost no language
more than 0.4 points.

Pairs that no detector tells apart in a sentence or two count as right within their group (GROUPS).
So a Danish answer to a Norwegian prompt passes. Simplified and traditional Chinese are not told
apart.
"""

import functools
from importlib.metadata import version
from typing import Protocol

import langcodes
import lingua
import regex

from mlit_jax.errors import UserError

GUARDS = ("en", "es", "fr", "de", "pt", "ru", "ar", "zh")

GROUPS = (
  ("hr", "bs", "sr", "sh", "cnr"),
  ("id", "ms"),
  ("no", "nb", "nn", "da"),
  ("zh", "yue", "wuu"),
)

# Tags that detectors know by another name, or by several.
ALIASES = {
  "no": ("nb", "nn"),
  "nb": ("no",),
  "nn": ("no",),
  "fil": ("tl",),
  "tl": ("fil",),
  "sh": ("hr", "bs", "sr"),
  "yue": ("zh",),
}

# ISO 15924 names sets of scripts that Unicode's property does not know.
UNICODE_SCRIPTS = {
  "Hans": ("Hani", "Bopo"),
  "Hant": ("Hani", "Bopo"),
  "Hanb": ("Hani", "Bopo"),
  "Jpan": ("Hani", "Hira", "Kana"),
  "Hrkt": ("Hira", "Kana"),
  "Kore": ("Hang", "Hani"),
}

LETTER = regex.compile(r"\p{L}")
# Code and addresses are in no language and no script, and there is often more of them than of prose.
NOT_PROSE = regex.compile(r"```.*?(?:```|\Z)|`[^`\n]*`|https?://\S+|www\.\S+", regex.DOTALL)


class Detector(Protocol):
  """What the score of language fidelity needs to know of a detector."""

  name: str  # with its version
  languages: tuple[str, ...]  # in play: those that may be asked for

  def probabilities(self, texts: list[str]) -> list[list[tuple[str, float]]]:
    """(language, probability) of each text, best first; [] where nothing can be told."""

  def accepted(self, tag: str) -> frozenset[str]:
    """What counts as the language; empty: the detector does not know it, and its script decides."""


class LanguageDetector:
  """lingua among the languages in play; the models load once for each set of languages."""

  def __init__(self, languages, *, guards=GUARDS):
    """languages: tags such as en, zh or sr-Latn; UserError for one that cannot be told."""
    self.languages = tuple(sorted(set(languages)))
    self.name = f"lingua {version('lingua-language-detector')}"
    self._accepted = accepted_languages(self.languages, frozenset(_lingua_languages()), guards)
    # The whole group of each: lingua's Serbian is Cyrillic, in Latin letters it finds Croatian.
    known = set().union(
      *(_by_codes(codes) for codes in self._accepted.values()),
      *(_by_codes(own_names(tag)) for tag in guards),
    )
    if len(known) == 1:  # lingua needs a choice
      known.add(
        lingua.Language.SPANISH if lingua.Language.ENGLISH in known else lingua.Language.ENGLISH
      )
    self._known = frozenset(known)

  def detect(self, texts: list[str]) -> list[str | None]:
    """The tag of each text's language; None without letters or without a clear winner."""
    texts = [prose_or_all(t) for t in texts]
    return [
      _tag(found) for found in lingua_detector(self._known).detect_languages_in_parallel_of(texts)
    ]

  def guess(self, text: str) -> tuple[str | None, float]:
    """(tag, confidence from 0 to 1) of one text; (None, 0.0) without letters."""
    return _most_likely(text, self._known)

  def probabilities(self, texts: list[str]) -> list[list[tuple[str, float]]]:
    found = lingua_detector(self._known).compute_language_confidence_values_in_parallel(texts)
    return [[(_tag(v.language), v.value) for v in values if v.value > 0] for values in found]

  def accepted(self, tag: str) -> frozenset[str]:
    return accepted_in(self._accepted, tag)


def accepted_languages(languages, known: frozenset[str], guards=GUARDS) -> dict[str, frozenset]:
  """{tag: what counts as it} of the languages in play, for a detector that names those `known`.

  Empty where the script of the language decides; UserError where it cannot.
  """
  out = {}
  for tag in languages:
    accepted = with_group(own_names(tag))
    out[tag] = accepted if accepted & known else frozenset()
  if not out:
    raise UserError("Language fidelity: no language was given; name at least one, such as 'en'.")
  for tag in languages:
    if not out[tag]:
      _check_script_decides(tag, {*guards, *languages} - {tag})
  return out


def accepted_in(accepted: dict[str, frozenset], tag: str) -> frozenset[str]:
  if tag not in accepted:
    raise UserError(
      f"Language fidelity: asked about {tag!r}, but the detector was made for "
      f"{sorted(accepted)}. Make it with every language of the set."
    )
  return accepted[tag]


@functools.cache
def own_names(tag: str) -> frozenset[str]:
  """What detectors call the language itself: nb -> {nb, no}, arb -> {arb, ar}, sr-Latn -> {sr}."""
  parsed = _parse(tag)
  codes = {c for c in (parsed.language, parsed.prefer_macrolanguage().language) if c}
  return frozenset(codes.union(*(ALIASES.get(code, ()) for code in codes)))


def with_group(names: frozenset[str]) -> frozenset[str]:
  return names.union(*(group for group in GROUPS if names & set(group)))


def prose(text: str) -> str:
  """The text without code and addresses."""
  return NOT_PROSE.sub(" ", text) if "`" in text or "http" in text or "www." in text else text


def prose_or_all(text: str) -> str:
  """The text without code and addresses, unless nothing else has letters."""
  rest = prose(text)
  return rest if LETTER.search(rest) else text


def guess_language(text: str) -> tuple[str | None, float]:
  """(tag, confidence from 0 to 1) among all languages that lingua knows; (None, 0.0) without letters.

  The models of all of them take 0.9 GB: where the languages are known, LanguageDetector(them).guess is smaller and surer.
  """
  return _most_likely(text, frozenset(lingua.Language.all()))


def lingua_names(tag: str) -> frozenset:
  """What lingua calls the language and those of its group, which count as it; empty where it knows none."""
  return _by_codes(with_group(own_names(tag)))


@functools.cache
def lingua_detector(languages: frozenset, low_accuracy: bool = False):
  """The detector among lingua's `languages`; with `low_accuracy`, by its short models alone."""
  # Models load at first use and are shared by all detectors of the process: 1 s and 0.5 GB for 20
  # languages.
  builder = lingua.LanguageDetectorBuilder.from_languages(
    *sorted(languages, key=lambda language: language.name)
  )
  return (builder.with_low_accuracy_mode() if low_accuracy else builder).build()


def _most_likely(text: str, known: frozenset) -> tuple[str | None, float]:
  rest = prose_or_all(text)
  if not LETTER.search(rest):
    return None, 0.0
  best = lingua_detector(known).compute_language_confidence_values(rest)[0]
  return (_tag(best.language), best.value) if best.value else (None, 0.0)


def _by_codes(codes) -> frozenset:
  return frozenset(_lingua_languages()[c] for c in codes if c in _lingua_languages())


@functools.cache
def _lingua_languages() -> dict:
  return {language.iso_code_639_1.name.lower(): language for language in lingua.Language.all()}


def _tag(language) -> str | None:
  return None if language is None else language.iso_code_639_1.name.lower()


@functools.cache
def _parse(tag: str):
  try:
    return langcodes.Language.get(tag)
  except langcodes.tag_parser.LanguageTagError as e:
    raise UserError(
      f"Language fidelity: {tag!r} is not a language tag; write one such as 'en' or 'sr-Latn'."
    ) from e


# Every other language is written in its likely script, or states the script in its tag.
SCRIPTS_OF_SEVERAL = {"sr": ("Cyrl", "Latn"), "sh": ("Cyrl", "Latn")}


def _likely_scripts(tag: str) -> tuple[str, ...]:
  parsed = _parse(tag)
  written = (parsed.script,) if parsed.script else SCRIPTS_OF_SEVERAL.get(parsed.language)
  written = written or tuple(filter(None, [parsed.maximize().script]))
  return tuple(name for script in written for name in UNICODE_SCRIPTS.get(script, (script,)))


def _check_script_decides(tag, others):
  scripts = set(_likely_scripts(tag))
  sharing = [other for other in sorted(others) if scripts & set(_likely_scripts(other))]
  if not scripts or sharing:
    shared = (
      f"its script is also that of {', '.join(sharing)}"
      if sharing
      else "it has no script of its own"
    )
    raise UserError(
      f"Language fidelity: the detector does not know {tag!r}, and {shared}, so the script cannot "
      f"decide. Leave {tag!r} out of the languages whose fidelity is measured."
    )
