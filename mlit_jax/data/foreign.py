"""Is an answer in the script and in the language of its row? Only what is plain counts.

Answers to translate, and rows that mix languages on purpose, are flagged as well: these are reports
first.
"""

import functools
from collections.abc import Iterable

import langcodes
import numpy as np
import regex
from langcodes.data_dicts import LIKELY_SUBTAGS
from language_data.population_data import LANGUAGE_WRITING_POPULATION

from mlit_jax.data.ngrams import UNSPACED_LETTER, character_kinds, code_points, having, unit_starts
from mlit_jax.detect import GUARDS, UNICODE_SCRIPTS, lingua_detector, lingua_names, prose

# --- scripts

FOREIGN_SHARE = 0.5  # of the words (characters where none are spaced) of an answer
FEW_LETTERS = 10  # an answer with fewer is not judged
FEW_WRITERS = 0.01  # a script that fewer of a language's writers use needs saying: hi-Latn

# Scripts that the table of writers lacks.
MORE_SCRIPTS = {"cnr": ("Cyrl", "Latn"), "tk": ("Cyrl",), "lad": ("Latn",)}


def in_other_script(text: str, lang: str) -> bool:
  """Whether most of the words are in scripts that the language is not written in.

  Words and not letters, since one Latin name is as long as a Chinese sentence.
  """
  scripts = scripts_of(lang)
  if not scripts:
    return False
  text = prose(text)
  return num_letters(text) >= FEW_LETTERS and foreign_share(text, scripts) > FOREIGN_SHARE


def num_letters(text: str) -> int:
  return int(np.count_nonzero(_letters_of(())[code_points(text)]))


def foreign_share(text: str, scripts: tuple[str, ...]) -> float:
  """Share of the words (characters where none are spaced) that are not in these scripts."""
  codes = code_points(text)
  letters = _letters_of(())[codes]
  fitting = _letters_of(scripts)[codes]
  if not (letters & ~fitting).any():
    return 0.0
  firsts = unit_starts(character_kinds()[codes]) & letters
  return np.count_nonzero(firsts & ~fitting) / max(1, np.count_nonzero(firsts))


@functools.cache
def scripts_of(lang: str) -> tuple[str, ...]:
  """Unicode's scripts of a language: sr -> (Cyrl, Latn), sr-Latn -> (Latn,); none: not known."""
  parsed = langcodes.Language.get(lang)
  if parsed.script:
    written = {parsed.script}
  else:
    written = {*MORE_SCRIPTS.get(parsed.language, ()), *_writing().get(parsed.language, ())}
    if parsed.language in LIKELY_SUBTAGS:  # of others langcodes thinks that they are English
      written.add(parsed.maximize().script)
  names = {name for script in written for name in UNICODE_SCRIPTS.get(script, (script,))}
  return tuple(sorted(name for name in names if _is_script(name)))


@functools.cache
def _writing() -> dict[str, set[str]]:
  """{"sr": {"Cyrl", "Latn"}} of every language that CLDR counts writers of."""
  writers = {}
  for tag, number in LANGUAGE_WRITING_POPULATION.items():
    parts = tag.split("-")
    if len(parts) == 2 and len(parts[1]) == 4:
      writers.setdefault(parts[0], {})[parts[1]] = number
  return {
    lang: {s for s, number in scripts.items() if number >= FEW_WRITERS * sum(scripts.values())}
    for lang, scripts in writers.items()
  }


def _is_script(name: str) -> bool:
  try:
    return bool(regex.compile(rf"\p{{Script={name}}}"))
  except regex.error:
    return False


@functools.cache
def _letters_of(scripts: tuple[str, ...]) -> np.ndarray:
  """bool [0x110000], letters that are of these scripts, or of all that belong to any."""
  if not scripts:
    return having(r"[\p{L}--\p{Script=Zyyy}--\p{Script=Zinh}]")
  found = np.zeros(0x110000, bool)
  for name in scripts:
    found |= _letters_of_script(name)
  return found


@functools.cache
def _letters_of_script(name: str) -> np.ndarray:
  return having(rf"[\p{{L}}&&\p{{Script={name}}}]")


# --- languages

UNSURE = 0.1  # an answer whose own language has this much of the probability is not judged
SURE = 0.5  # nor one where no other language has as much
SHORT = 20  # nor one with fewer letters, those of unspaced scripts counted twice
READ = 200  # characters that are looked at
PLENTY = 16  # languages among which telling costs little beside tokenising


def in_other_language(text: str, lang: str, others: Iterable[str]) -> bool | None:
  """Whether the text is plainly in another of the languages `others`, or in one of GUARDS.

  None where that is not judged: too few letters, or a language that lingua does not know. Most texts are settled by lingua's short models;
  only one that they find foreign is looked at with all of them.
  """
  own = lingua_names(lang)
  if not own:
    return None
  text = prose(text)[:READ]
  if length(text) < SHORT:
    return None
  languages = _candidates(lang, tuple(others))
  if lingua_detector(languages, low_accuracy=True).detect_language_of(text) in own:
    return False
  values = lingua_detector(languages).compute_language_confidence_values(text)
  return (
    sum(v.value for v in values if v.language in own) < UNSURE
    and max(v.value for v in values if v.language not in own) > SURE
  )


def length(text: str) -> int:
  """Number of letters, those of unspaced scripts counted twice: a character says as much as two."""
  codes = code_points(text)
  letters = _letters_of(())[codes]
  unspaced = letters & (character_kinds()[codes] == UNSPACED_LETTER)
  return int(np.count_nonzero(letters) + np.count_nonzero(unspaced))


def cost_of_languages(others: Iterable[str]) -> int:
  """Every how many rows can be judged for about a sixth of the time that tokenising takes."""
  every = 1
  while len(_candidates("en", tuple(others))) > PLENTY * every:
    every *= 2
  return every


@functools.cache
def _candidates(lang: str, others: tuple[str, ...]) -> frozenset:
  return lingua_names(lang).union(*(lingua_names(tag) for tag in (*others, *GUARDS)))
