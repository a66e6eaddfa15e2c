"""Numbers as people write them, by hand, in scripts and with separators of many languages."""

from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlit_jax.evals.suites.numerals import last_number, numbers_in

CASES = [
  ("en", "1,234.5 and 18.", ["1234.5", "18"]),
  ("en", "It costs $18, −5 less.", ["18", "-5"]),
  ("en", "5-3 = 2", ["5", "3", "2"]),
  ("en", "1.5, 2, 3", ["1.5", "2", "3"]),
  ("en", "3,4,5", ["3", "4", "5"]),
  ("en", "-1,234.50", ["-1234.50"]),
  ("en", "12 300", ["12", "300"]),
  ("en", "on 2024-05-01", ["2024", "5", "1"]),
  ("de", "1.234,5 Euro", ["1234.5"]),
  ("de", "12.345.678", ["12345678"]),
  ("de", "1.5 und 1,5", ["1.5", "1.5"]),
  ("es", "1,234 y 1.234", ["1.234", "1234"]),
  ("fr", "1 234,5", ["1234.5"]),
  ("fr", "1\u202f234\u202f567", ["1234567"]),
  ("ru", "18 000 рублей", ["18000"]),
  ("fi", "vastaus on 1 200", ["1200"]),
  ("sw", "jibu ni 1,200.", ["1200"]),
  ("ar", "١٢٣٤ و ٣٫٥ و ١٬٢٣٤", ["1234", "3.5", "1234"]),
  ("fa", "۱۲۳", ["123"]),
  ("he", "התשובה היא 1,200", ["1200"]),
  ("hi", "१,२३,४५६ और ०.५", ["123456", "0.5"]),
  ("bn", "১২", ["12"]),
  ("th", "๑๘", ["18"]),
  ("zh", "一千二百三十四", ["1234"]),
  ("zh", "三万五千个，共十二个，两个", ["35000", "12", "2"]),
  ("zh", "3万，三点五，二〇二四年", ["30000", "3.5", "2024"]),
  ("zh", "一亿两千万", ["120000000"]),
  ("zh", "三万亿", ["3000000000000"]),
  ("zh", "一万零五", ["10005"]),
  ("zh-Hant", "負數不是，兩萬", ["20000"]),
  ("ja", "答えは二十三です", ["23"]),
  ("en", "no number here", []),
  ("sw", "", []),
]


@pytest.mark.parametrize("lang, text, wanted", CASES, ids=[f"{c[0]} {c[1][:20]}" for c in CASES])
def test_numbers_of_a_text(lang, text, wanted):
  assert numbers_in(text, lang) == [Decimal(n) for n in wanted]


def test_the_last_number_is_one_in_digits_where_there_is_any():
  assert last_number("答案是42，我们一起来看。", "zh") == 42
  assert last_number("答案是四十二。", "zh") == 42
  assert last_number("先3个，再五个，共八个", "zh") == 3  # digits win: 个 of 一个 is everywhere
  assert last_number("nothing", "en") is None


@given(st.integers(0, 10**12), st.sampled_from(["en", "de", "fr", "hi", "es", "ru", "sw", "cs"]))
def test_what_babel_writes_is_read_again(number, lang):
  import babel.numbers

  written = babel.numbers.format_decimal(number, locale=lang)
  assert numbers_in(f"= {written}.", lang) == [number]


@given(st.integers(0, 10**9), st.sampled_from("٠०০๐０۰"))
def test_digits_of_any_script_are_digits(number, zero):
  written = "".join(chr(ord(zero) + int(d)) for d in str(number))
  assert numbers_in(written, "en") == [number]


@given(st.integers(1, 99_999_999))
def test_han_numerals_are_read_back(number):
  assert numbers_in(han(number), "zh") == [number]


def han(n: int) -> str:
  """A number as it is written in Chinese: 10,005 is 一万零五."""
  digits = "零一二三四五六七八九"

  def section(m, leading):
    out, gap = "", leading
    for power, unit in ((1000, "千"), (100, "百"), (10, "十"), (1, "")):
      d = m // power % 10
      if d:
        out += ("零" if gap and (out or leading) else "") + digits[d] + unit
        gap = False
      else:
        gap = True
    return out

  high, low = divmod(n, 10_000)
  text = section(high, False) + "万" if high else ""
  if low:
    text += section(low, bool(high) and low < 1000)
  return text
