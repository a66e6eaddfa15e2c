"""Instructions by the ids of IFEval and M-IFEval, and whether an answer follows them, strictly and loosely."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Mapping, Sequence

from mlit_jax.data.languages import normalise_tag
from mlit_jax.errors import UserError
from mlit_jax.evals.suites import instruction_checks as c
from mlit_jax.evals.suites import local_instructions as local

Check = Callable[..., bool]

# In any language. Prefixed with es:, fr: or ja: they follow its usage, else that of English.
GENERAL: dict[str, Check] = {
  "keywords:existence": c.existence,
  "keywords:frequency": c.frequency,
  "keywords:forbidden_words": c.forbidden_words,
  "keywords:letter_frequency": c.letter_frequency,
  "language:response_language": c.response_language,
  "length_constraints:number_sentences": c.number_sentences,
  "length_constraints:number_paragraphs": c.number_paragraphs,
  "length_constraints:number_words": c.number_words,
  "length_constraints:nth_paragraph_first_word": c.nth_paragraph_first_word,
  "detectable_content:number_placeholders": c.number_placeholders,
  "detectable_content:postscript": c.postscript,
  "detectable_format:number_bullet_lists": c.number_bullet_lists,
  "detectable_format:constrained_response": c.constrained_response,
  "detectable_format:number_highlighted_sections": c.number_highlighted_sections,
  "detectable_format:multiple_sections": c.multiple_sections,
  "detectable_format:json_format": c.json_format,
  "detectable_format:title": c.title,
  "combination:two_responses": c.two_responses,
  "combination:repeat_prompt": c.repeat_prompt,
  "startend:end_checker": c.end_checker,
  "startend:quotation": c.quotation,
  "change_case:capital_word_frequency": c.capital_word_frequency,
  "punctuation:no_comma": c.no_comma,
}
ENGLISH: dict[str, Check] = {
  "change_case:english_capital": c.english_capital,
  "change_case:english_lowercase": c.english_lowercase,
}
LOCAL: dict[str, tuple[c.Usage, dict[str, Check]]] = {
  "en": (c.Usage(), ENGLISH),
  "es": (
    local.SPANISH,
    {
      "change_case:spanish_capital": c.english_capital,
      "change_case:spanish_lowercase": c.english_lowercase,
      "punctuation:question_marks": local.question_marks,
      "punctuation:exclamation_marks": local.exclamation_marks,
      "special_character:enie": local.enie,
      "special_character:dieresis": local.dieresis,
      "special_character:tildes": local.tildes,
    },
  ),
  "fr": (
    local.FRENCH,
    {
      "change_case:french_capital": c.english_capital,
      "change_case:french_lowercase": c.english_lowercase,
      "special_character:ethel_or_cedilla": local.ethel_or_cedilla,
      "special_character:no_accents": local.no_accents,
      "special_character:accents": local.accents,
      "detectable_content:informal_address": local.informal_address,
      "detectable_content:no_digits": local.no_digits,
    },
  ),
  "ja": (
    local.JAPANESE,
    {
      "keywords:letter_frequency": local.kana_frequency,
      "length_constraints:number_letters": local.number_letters,
      "detectable_format:number_numbered_lists": local.number_numbered_lists,
      "detectable_format:number_highlighted_sections": local.highlighted_sections,
      "detectable_format:nominal_ending": local.nominal_ending,
      "startend:sentence_unified_end": local.sentence_unified_end,
      "letters:furigana": local.furigana,
      "letters:kanji": local.kanji,
      "letters:kansuuji": local.kansuuji,
      "letters:no_katakana": local.no_katakana,
      "letters:katakana_only": local.katakana_only,
      "letters:no_hiragana": local.no_hiragana,
      "letters:hiragana_only": local.hiragana_only,
      "punctuation:no_period": local.no_period,
    },
  ),
}

# What an instruction names, by kind; which ones it needs, the checks say.
COUNTS = """
num_sentences num_paragraphs num_words num_letters num_placeholders num_bullets num_highlights num_sections num_items
nth_paragraph frequency let_frequency capital_frequency kanji_limit count
"""
RELATION_NAMES = ("relation", "let_relation", "capital_relation")
LISTS = ("keywords", "forbidden_words")


@dataclasses.dataclass(frozen=True)
class Instruction:
  """One instruction of a prompt."""

  id: str
  check: Check
  usage: c.Usage
  given: Mapping[str, object]

  def follows(self, response: str) -> bool:
    """Strictly: the answer as it is. An empty one follows nothing."""
    return bool(response.strip()) and bool(self.check(response, self.usage, **self.given))

  def follows_loosely(self, response: str) -> bool:
    return any(self.follows(variant) for variant in loose_variants(response))


def loose_variants(response: str) -> list[str]:
  """The published eight: whole, without its first line, its last, both; each also without asterisks."""
  lines = response.split("\n")
  cut = [response, *("\n".join(part).strip() for part in (lines[1:], lines[:-1], lines[1:-1]))]
  return list(dict.fromkeys([*cut, *(text.replace("*", "") for text in cut)]))


def known_ids() -> list[str]:
  """All ids, without the prefix en:."""
  prefixed = [f"{p}:{name}" for p in LOCAL if p != "en" for name in _checks_of(p)]
  return [*_checks_of("en"), *prefixed]


def prefix_of(instruction_id: str) -> str | None:
  """es of es:keywords:existence; None where there is none."""
  first = instruction_id.partition(":")[0]
  return first if first in LOCAL else None


def read_instruction(instruction_id: str, given: Mapping[str, object], place: str) -> Instruction:
  """An instruction with what it names, nulls left out; UserError where anything is unknown or missing."""
  prefix = prefix_of(instruction_id)
  name = instruction_id.removeprefix(f"{prefix}:")
  check = _checks_of(prefix or "en").get(name)
  if check is None:
    raise UserError(
      f"{place}: the instruction {instruction_id!r} is not known; known are {', '.join(known_ids())}"
    )
  wanted = inspect.signature(check).parameters.values()
  names = [p.name for p in wanted if p.kind is p.KEYWORD_ONLY]
  given = {k: v for k, v in given.items() if v is not None and v != [] and v != "" and k in names}
  missing = [p.name for p in wanted if p.kind is p.KEYWORD_ONLY and p.default is p.empty]
  missing = [name for name in missing if name not in given]
  if missing:
    raise UserError(f"{place}: the instruction {instruction_id} names no {', '.join(missing)}")
  try:
    values = {k: _value(k, v) for k, v in given.items()}
    if "language" in values:
      c.detector_of(values["language"])
    if check is local.nominal_ending:
      local.check_can_part_japanese()
  except UserError as e:
    raise UserError(f"{place}: the instruction {instruction_id}: {e}") from None
  return Instruction(instruction_id, check, LOCAL[prefix or "en"][0], values)


def _checks_of(prefix: str) -> dict[str, Check]:
  return GENERAL | LOCAL[prefix][1]


def _value(name: str, value: object) -> object:
  """Checked by kind; a count may come as 3.0, as tables have it."""
  if name in COUNTS.split():
    if isinstance(value, bool) or not isinstance(value, (int, float)) or value != int(value):
      raise UserError(f"{name} is {value!r}; it must be a whole number")
    return int(value)
  if name in RELATION_NAMES:
    return _one_of(name, value, c.RELATIONS)
  if name in LISTS:
    return _texts(name, value)
  if name == "word_to_accentuate":
    pairs = {k: v for k, v in value.items() if v} if isinstance(value, Mapping) else {}
    _texts(name, list(pairs.values()))
    return pairs
  if not isinstance(value, str) or not value.strip():
    raise UserError(f"{name} is {value!r}; it must be a text")
  return normalise_tag(value) if name == "language" else value


def _one_of(name: str, value: object, choices: Sequence[str]) -> object:
  if value not in choices:
    raise UserError(f"{name} is {value!r}; it must be one of {', '.join(choices)}")
  return value


def _texts(name: str, value: object) -> tuple[str, ...]:
  texts = tuple(value) if isinstance(value, (list, tuple)) else ()
  if not texts or not all(isinstance(t, str) and t.strip() for t in texts):
    raise UserError(f"{name} is {value!r}; it must be texts, at least one")
  return texts
