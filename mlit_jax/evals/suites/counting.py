"""Words and sentences of a text in any script, as instructions count them."""

from __future__ import annotations

import regex

# No spaces between words: each character, with its marks, is one word.
UNSPACED = r"\p{Han}\p{Hiragana}\p{Katakana}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}ーｰ"
WORD = regex.compile(
  rf"(?V1)[[{UNSPACED}]&&\w--\p{{M}}--\p{{Nd}}]\p{{M}}*|[\w--[{UNSPACED}]][[\w--[{UNSPACED}]]\p{{M}}\u200c\u200d]*|\p{{Nd}}+"
)
IS_UNSPACED = regex.compile(rf"[{UNSPACED}]")
# One word with what is joined to it: NASA's, well-known, U.S, A/B.
JOINED_WORD = regex.compile(r"\w[\w\u200c\u200d]*(?:[-./'’]\w[\w\u200c\u200d]*)*")
# Not of the word: NASA's, I'm; but C'est is one word, and no capital one.
ENDING = regex.compile(r"['’](?:s|m|d|re|ve|ll)$")

CLOSERS = r"[\"'”’»›)\]}」』）】*_]*"
# After these a sentence ends where no space follows, too.
UNSPACED_END = "。！？｡।॥။។៕．"
SPACED_END = ".!?…‥؟۔։።፧"
SENTENCE_END = regex.compile(
  rf"(?P<marks>[{UNSPACED_END}{SPACED_END}]+)(?P<closers>{CLOSERS})"
  rf"(?:(?<=[{UNSPACED_END}]{CLOSERS})|(?=\s|$)|(?<=[!?]{CLOSERS})(?=[{UNSPACED}]))"
)
LAST_TOKEN = regex.compile(r"\S+$")
NEXT_WORD = regex.compile(r"[\s\p{P}]*(\w+(?:['’]\w+)?)")

# A point after one of these ends no sentence...
TITLES = """
mr mrs ms dr prof st sr sra srta dra mme mlle hr fr dn dña messrs gen col capt lt sgt rev hon gov sen rep pres jr
vs eg ie cf ca bzw zb usw ej aprox av approx dept mt ft jan feb mar apr jun jul aug sep sept oct nov dec
"""
# ... after these only where a usual first word follows with a capital ...
OFTEN_LAST = "etc inc ltd co corp bros uu ee ave blvd am pm usd"
# ... and after these where a number follows.
BEFORE_NUMBERS = "no nr nos núm num art fig vol p pp ch sec chap cap pág págs"
FIRST_WORDS = """
the this that these those there here it it's he she we they you i i'm a an in on at to for from with by but and or
so if when while as after before since because then however also although what who how why where which my our your
his her its their let some many most all one no not
"""
ABBREVIATIONS, MAYBE_LAST, NUMBERED, OPENERS = (
  frozenset(text.split()) for text in (TITLES, OFTEN_LAST, BEFORE_NUMBERS, FIRST_WORDS)
)


def words(text: str) -> list[str]:
  """Runs of letters, marks and digits; characters where no spaces are written: "don't 北京 2008" -> don t 北 京 2008"""
  return WORD.findall(text)


def capital_words(text: str) -> list[str]:
  """Words all of whose letters are capitals, joined ones whole: "NASA's UTF-8 и США" -> NASA UTF-8 США"""
  found = (ENDING.sub("", word) for word in JOINED_WORD.findall(text))
  return [word for word in found if word.isupper()]


def sentences(text: str, lines: bool = False) -> list[str]:
  """What stands between ends of sentences and has a letter or digit: "Dr. No came. 好！好。" -> 3 of them.

  Ends of lines end no sentence (the published count is so), unless `lines` says so or the text is in a
  script without marks for ends (Thai, Lao).
  """
  if lines or is_without_marks(text):
    return [s for line in text.split("\n") for s in _split(line)]
  return _split(text)


def fold_word(word: str) -> str:
  return word.casefold().replace("’", "'")


def is_without_marks(text: str) -> bool:
  letters = regex.findall(r"\p{L}", text)
  without = regex.findall(r"[\p{Thai}\p{Lao}]", text)
  return 2 * len(without) > len(letters) > 0


def _split(text: str) -> list[str]:
  out, start = [], 0
  for end in SENTENCE_END.finditer(text):
    if _ends(text[start : end.start()], end["marks"], text[end.end() :]):
      out.append(text[start : end.end()].strip())
      start = end.end()
  out.append(text[start:].strip())
  return [s for s in out if regex.search(r"\w", s)]


def _ends(before: str, marks: str, after: str) -> bool:
  """Whether these marks end a sentence; points may belong to an abbreviation, a number or a pause."""
  if not after.strip() or set(marks) - set(".…‥"):
    return True
  found = NEXT_WORD.match(after)
  following = found[1] if found else ""
  is_lower = following[:1].islower()
  if marks != ".":
    return not is_lower
  last = LAST_TOKEN.search(before)
  token = last[0].lstrip("\"'“‘«([{*_¿¡").casefold() if last else ""
  if not token or regex.fullmatch(r"[\p{Nd}.,:]+", token):
    return not is_lower
  shouted = len(following) > 1 and following.isupper()  # then a capital says nothing
  is_first = following[:1].isupper() and not shouted and fold_word(following) in OPENERS
  if token in NUMBERED:
    return not following[:1].isdigit()
  if token in ABBREVIATIONS:
    return False
  if token in MAYBE_LAST or regex.fullmatch(r"\p{L}\p{M}*(?:\.\p{L}\p{M}*)*|ph\.d", token):
    return is_first
  return True
