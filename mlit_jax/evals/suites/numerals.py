"""Numbers in text of any language: digits of any script, separators as the language writes them, Han numerals."""

from __future__ import annotations

import functools
import re
import unicodedata
from decimal import Decimal

import babel

# Characters that part thousands wherever they stand; points and commas go by the language.
SPACES = "\u00a0\u202f\u2009"
ARABIC_DECIMAL, ARABIC_GROUP = "\u066b", "\u066c"
HAN_DIGITS = "〇零一二三四五六七八九两兩"
HAN_UNITS = "十百千万萬亿億"
_HAN = f"{HAN_DIGITS}{HAN_UNITS}"
_DIGITS = re.compile(rf"(?<![\d.,])[-−–]?\d+(?:[.,'’{ARABIC_DECIMAL}{ARABIC_GROUP} {SPACES}]\d+)*")
_INDIAN = re.compile(r"\d{1,2}(?:,\d{2})+,\d{3}(?!\d)")  # 12,34,567
_CHINESE = re.compile(rf"负?(?:[{_HAN}]+|\d+(?:\.\d+)?[{HAN_UNITS}]+)(?:点[{HAN_DIGITS}]+)?")


def last_number(text: str, lang: str) -> Decimal | None:
  """The last number of a text, where answers to sums end up; one in digits, if there is any (一 is also a word)."""
  found = _found(text, lang)
  digits = [value for _, value, has_digits in found if has_digits]
  return (digits or [value for _, value, _ in found] or [None])[-1]


def numbers_in(text: str, lang: str) -> list[Decimal]:
  """Every number of the text, in order.

  en "1,234.5"   de "1.234,5"   fr "1 234,5"  -> 1234.5
  ar "١٢٣٤"      hi "१,२३४"     zh "一千二百三十四" -> 1234
  A point or comma is read as the language writes it, by CLDR; see _joined for what neither allows.
  """
  return [value for _, value, _ in _found(text, lang)]


def _found(text: str, lang: str) -> list[tuple[int, Decimal, bool]]:
  """(place, number, whether it has digits), in order."""
  text = "".join(_plain(ch) for ch in text)
  spans = [
    (m.start() + i / len(m[0]), m.end(), value, True)
    for m in _DIGITS.finditer(text)
    for i, value in enumerate(_western(m[0], lang))
  ]
  if lang.split("-")[0] in ("zh", "ja"):
    han = [
      (m.start(), m.end(), _han(m[0]), any(ch.isascii() for ch in m[0]))
      for m in _CHINESE.finditer(text)
    ]
    spans = [s for s in spans if not any(h[0] < s[1] and s[0] < h[1] for h in han)] + han
  return [(start, value, digits) for start, _, value, digits in sorted(spans)]


def _plain(ch: str) -> str:
  """Decimal digits of any script as 0 to 9."""
  if ch.isascii():
    return ch
  digit = unicodedata.decimal(ch, None)
  return ch if digit is None else str(digit)


def _western(text: str, lang: str) -> list[Decimal]:
  """The numbers of a run of digits and separators: one, but where a separator parts a list."""
  sign = -1 if text[0] in "-−–" else 1
  decimal, group = _symbols(lang)
  parts = re.split(r"(\D)", _INDIAN.sub(lambda m: m[0].replace(",", ""), text.lstrip("-−–")))
  numbers = [parts[0]]
  for mark, digits in zip(parts[1::2], parts[2::2], strict=True):
    how = _joined(numbers[-1], mark, digits, decimal, group)
    if how == "list":
      numbers.append(digits)
    else:
      numbers[-1] += {"group": "_", "decimal": "."}[how] + digits
  values = [Decimal(n.replace("_", "")) for n in numbers]
  return [sign * values[0], *values[1:]]


def _joined(before: str, mark: str, digits: str, decimal: str, group: str) -> str:
  """What a separator between digits is: group, decimal or list.

  Groups have three digits, and one to three stand before the first. What is no group can be a decimal point
  in any language (1.5 in Spanish), or a decimal comma where the language has it; else it parts a list.
  """
  groups = "'’" + SPACES + ARABIC_GROUP + group + (" " if group in SPACES else "")
  whole = "." not in before
  if mark in groups and len(digits) == 3 and whole and ("_" in before or len(before) <= 3):
    return "group"
  if whole and (mark in (decimal, ARABIC_DECIMAL) or mark == "."):
    return "decimal"
  return "list"


@functools.cache
def _symbols(lang: str) -> tuple[str, str]:
  """(decimal mark, group mark) of a language, of CLDR; English's where it has none."""
  for name in (lang.replace("-", "_"), lang.split("-")[0]):
    try:
      symbols = babel.Locale.parse(name).number_symbols
    except (ValueError, babel.UnknownLocaleError):
      continue
    symbols = symbols.get("latn", symbols)
    return symbols["decimal"], symbols["group"]
  return ".", ","


def _han(text: str) -> Decimal:
  """一千二百三十四 -> 1234; where no unit stands, digit by digit: 二〇二四 -> 2024."""
  sign = -1 if text.startswith("负") else 1
  whole, _, rest = text.removeprefix("负").partition("点")
  if re.fullmatch(rf"[{HAN_DIGITS}]+", whole):
    value = Decimal("".join(str(_digit(ch)) for ch in whole))
  else:
    value = _with_units(whole)
  if rest:
    value += Decimal("0." + "".join(str(_digit(ch)) for ch in rest))
  return sign * value


def _with_units(text: str) -> Decimal:
  """三万五千 -> 35000: tens to thousands multiply the digit before them, larger units all that is before them."""
  total = section = Decimal(0)
  number: Decimal | None = None
  for part in re.findall(rf"\d+(?:\.\d+)?|[{_HAN}]", text):
    if part[0].isascii():
      number = Decimal(part)
    elif part in HAN_DIGITS:
      number = Decimal(_digit(part))
    elif (unit := int(unicodedata.numeric(part))) < 10_000:
      section += (1 if number is None else number) * unit
      number = None
    else:
      section += number or 0
      if unit > 10_000:  # 亿 multiplies the 万 before it too
        total, section = (total + section) * unit, Decimal(0)
      else:
        total, section = total + (section or 1) * unit, Decimal(0)
      number = None
  return total + section + (number or 0)


def _digit(ch: str) -> int:
  return 2 if ch in "两兩" else int(unicodedata.numeric(ch))
