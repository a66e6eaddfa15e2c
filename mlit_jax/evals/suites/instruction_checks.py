"""Was it done? One function for each kind of instruction that can be checked without a judge.

The definitions are those of IFEval (Zhou et al. 2023), for any script. Each takes the answer, never an
empty one, the usage of the language that the instruction is in, and what the instruction names.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import unicodedata

import regex

from mlit_jax.data.foreign import scripts_of
from mlit_jax.detect import LETTER, LanguageDetector, lingua_names
from mlit_jax.evals.fidelity import judge
from mlit_jax.evals.suites.counting import IS_UNSPACED, capital_words, sentences, words

# Relations, in the words of the data.
LESS = ("less than", "moins de", "未満")
AT_LEAST = ("at least", "al menos", "au moins", "以上")
AT_MOST = ("at most", "como máximo")
RELATIONS = (*LESS, *AT_LEAST, *AT_MOST)

COMMAS = regex.compile(r"[,،、，﹐﹑､՝߸፣᠂᠈꓾꘍꛵]")
DOUBLE_QUOTES = ('""', "“”", "„“", "„”", "””", "«»", "»«", "「」", "『』", "＂＂")
QUOTE_MARKS = "\"'“”„‟‘’‚«»‹›「」『』＂"
TITLE = regex.compile(r"<<[^\n]*?[^\s<>][^\n]*?>>")
MARKDOWN_BULLET = regex.compile(r"^[ \t]*[*+-][ \t]+\S", regex.MULTILINE)
RULER = regex.compile(
  r"^[ \t]*(?:(?:\*[ \t]*){3,}|(?:-[ \t]*){3,}|(?:_[ \t]*){3,})$", regex.MULTILINE
)
EMPHASIS = regex.compile(r"(?<!\*)(\*{1,3})(?![\s*])[^\n*]*(?<![\s*])\1(?!\*)")


@dataclasses.dataclass(frozen=True)
class Usage:
  """What differs between the languages in which the published instructions are."""

  lang: str = "en"
  options: tuple[str, ...] = ("My answer is yes.", "My answer is no.", "My answer is maybe.")
  commas: regex.Pattern = COMMAS
  quotes: tuple[str, ...] = DOUBLE_QUOTES
  title: regex.Pattern = TITLE
  bullet: regex.Pattern = MARKDOWN_BULLET
  section: str = r"{name}\s?\d+"
  line_ends_sentence: bool = False
  numbers_in_lists_count: bool = True  # as words
  ends_with_point: bool = False  # a point may follow the phrase at the end


# --- keywords


def existence(response, usage, *, keywords):
  return all(_occurrences(word, response) for word in keywords)


def frequency(response, usage, *, keyword, frequency, relation):
  return compare(_occurrences(keyword, response), relation, frequency)


def forbidden_words(response, usage, *, forbidden_words):
  """As whole words, anywhere in scripts that put no spaces."""
  text = fold(response)
  return not any(_whole_word(fold(word.strip())).search(text) for word in forbidden_words)


def letter_frequency(response, usage, *, letter, let_frequency, let_relation):
  return compare(fold(response).count(fold(letter.strip())), let_relation, let_frequency)


def _occurrences(word: str, text: str) -> int:
  return fold(text).count(fold(word.strip()))


@functools.lru_cache(maxsize=1024)
def _whole_word(word: str) -> regex.Pattern:
  def bound(ch: str, look: str) -> str:
    return look if regex.match(r"[\w\p{M}]", ch) and not IS_UNSPACED.match(ch) else ""

  left, right = bound(word[0], r"(?<![\w\p{M}])"), bound(word[-1], r"(?![\w\p{M}])")
  return regex.compile(left + regex.escape(word) + right)


# --- language and letter case


def response_language(response, usage, *, language):
  return is_in_language(response, language)


def english_capital(response, usage):
  return response.isupper() and is_in_language(response.lower(), usage.lang)


def english_lowercase(response, usage):
  return response.islower() and is_in_language(response, usage.lang)


def capital_word_frequency(response, usage, *, capital_frequency, capital_relation):
  return compare(len(capital_words(response)), capital_relation, capital_frequency)


SURE = 0.5  # of the probability must be the language's own; with less nobody can tell
# What the benchmarks ask for; of these, those in the same script are told apart from the one asked for.
ASKED_FOR = "en es pt ar hi fr ru de ja it bn uk th ur ta te bg ko pl he fa vi sw mr gu pa fi"


def is_in_language(text: str, lang: str) -> bool:
  """Strictly, as fidelity is: all of it, enough of it, and surely."""
  detector, text = detector_of(lang), _without_titles(text)
  verdict = judge([text], [lang], detector)[0]
  accepted = detector.accepted(lang)
  if not verdict.right or not accepted:
    return verdict.right
  return sum(p for tag, p in detector.probabilities([text])[0] if tag in accepted) >= SURE


def _without_titles(text: str) -> str:
  """Without short quotations and what stands in brackets: prompts ask for titles and headings in English.

  Not where half of the letters stand in them.
  """
  rest = TITLE_OR_HEADING.sub(" ", text)
  return rest if 2 * len(LETTER.findall(rest)) > len(LETTER.findall(text)) else text


TITLE_OR_HEADING = regex.compile(
  r"\"[^\"\n]{1,80}\"|“[^“”\n]{1,80}”|«[^«»\n]{1,80}»|\[[^\[\]\n]{1,80}\]"
)


@functools.lru_cache(maxsize=128)
def detector_of(lang: str) -> LanguageDetector:
  """Tells this language from those it could be taken for. UserError where neither detector nor script can."""
  scripts = set(scripts_of(lang))
  peers = (
    [tag for tag in ASKED_FOR.split() if scripts & set(scripts_of(tag))]
    if lingua_names(lang)
    else []
  )
  return LanguageDetector({lang, *peers})


# --- length


def number_sentences(response, usage, *, num_sentences, relation):
  found = sentences(_without_list_numbers(response, usage), usage.line_ends_sentence)
  return compare(len(found), relation, num_sentences)


def number_words(response, usage, *, num_words, relation):
  return compare(len(words(_without_list_numbers(response, usage))), relation, num_words)


def number_paragraphs(response, usage, *, num_paragraphs):
  """Parted by ***, none of them empty."""
  parts = [part.strip() for part in response.split("***")]
  inner = parts[bool(not parts[0]) : len(parts) - bool(not parts[-1])]
  return all(inner) and len(inner) == num_paragraphs


def nth_paragraph_first_word(response, usage, *, num_paragraphs, nth_paragraph, first_word):
  """Parted by blank lines; the n-th begins with the word, quotes before it left out."""
  paragraphs = [p.strip() for p in regex.split(r"\n[^\S\n]*\n", response) if p.strip()]
  if len(paragraphs) != num_paragraphs or nth_paragraph > num_paragraphs:
    return False
  text = fold(paragraphs[nth_paragraph - 1].lstrip(QUOTE_MARKS + "¿¡"))
  first, rest = fold(first_word.strip()), None
  if text.startswith(first):
    rest = text[len(first) :]
  goes_on = (
    rest is not None and not IS_UNSPACED.match(first[-1]) and regex.match(r"[\w\p{M}\p{Pd}]", rest)
  )
  return rest is not None and not goes_on


def _without_list_numbers(response: str, usage: Usage) -> str:
  if usage.numbers_in_lists_count:
    return response
  return regex.sub(r"^\s*(?:\d+\.|[-*])\s*", "", response, flags=regex.MULTILINE)


# --- content and format


def number_placeholders(response, usage, *, num_placeholders, relation="at least"):
  """[address], or in full-width brackets."""
  found = regex.findall(r"\[[^\n]*?\]|［[^\n]*?］", response)
  return compare(len(found), relation, num_placeholders)


def postscript(response, usage, *, postscript_marker):
  """The marker as a word of its own, spaces allowed after its points."""
  marker = fold(postscript_marker.strip())
  pattern = r"\s?".join(regex.escape(part) for part in regex.findall(r"[^.]*\.|[^.]+$", marker))
  end = "" if marker.endswith(".") or IS_UNSPACED.match(marker[-1]) else r"(?!\w)"
  return regex.search(rf"(?<!\w){pattern}{end}", fold(response)) is not None


def number_bullet_lists(response, usage, *, num_bullets):
  """Lines with a bullet and something behind it; lines that only part sections have none."""
  return len(usage.bullet.findall(RULER.sub("", response))) == num_bullets


def constrained_response(response, usage):
  return any(option in response for option in usage.options)


def number_highlighted_sections(response, usage, *, num_highlights, relation="at least"):
  """*one* or **one**; a bullet is no asterisk of these."""
  found = EMPHASIS.findall(response)
  return compare(len(found), relation, num_highlights)


def multiple_sections(response, usage, *, section_spliter, num_sections, relation="at least"):
  name = regex.escape(section_spliter.strip())
  found = regex.findall(usage.section.format(name=name), response)
  return compare(len(found), relation, num_sections)


def json_format(response, usage):
  """All of it, a fence around it left out."""
  text = regex.sub(r"^```(?:json)?|```$", "", response.strip(), flags=regex.IGNORECASE).strip()
  try:
    json.loads(text)
  except (ValueError, RecursionError):
    return False
  return True


def title(response, usage):
  return usage.title.search(response) is not None


# --- combinations, beginnings and ends


def two_responses(response, usage):
  """Two that differ, parted by ******."""
  parts = [part.strip() for part in response.split("******")]
  inner = parts[bool(not parts[0]) : len(parts) - bool(not parts[-1])]
  return len(inner) == 2 and all(inner) and inner[0] != inner[1]


def repeat_prompt(response, usage, *, prompt_to_repeat):
  return fold(response.strip()).startswith(fold(prompt_to_repeat.strip()))


def end_checker(response, usage, *, end_phrase):
  text, phrase = _bare_end(response), _bare_end(end_phrase)
  return text.endswith(phrase) or (
    usage.ends_with_point and text.removesuffix(".").endswith(phrase)
  )


def quotation(response, usage):
  text = response.strip()
  return len(text) > 1 and text[0] + text[-1] in usage.quotes


def no_comma(response, usage):
  return usage.commas.search(response) is None


def _bare_end(text: str) -> str:
  """Without quotes around it; any white space is a space, as before "?" in French."""
  return fold(regex.sub(r"\s+", " ", text).strip().strip(QUOTE_MARKS + " "))


# --- for all


def compare(found: int, relation: str, wanted: int) -> bool:
  if relation in LESS:
    return found < wanted
  return found <= wanted if relation in AT_MOST else found >= wanted


def fold(text: str) -> str:
  """Without case, composed: e and a combining accent are é."""
  return unicodedata.normalize("NFC", unicodedata.normalize("NFC", text).casefold())
