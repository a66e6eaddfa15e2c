"""Suites that are answered in words, from local copies: MGSM, XQuAD, and open questions in many languages."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Iterable
from decimal import Decimal

from mlit_jax.data.languages import normalise_tag
from mlit_jax.errors import UserError
from mlit_jax.evals.suites.copies import Row, read_copy
from mlit_jax.evals.suites.numerals import last_number, numbers_in
from mlit_jax.evals.suites.suite import Item, Suite, ask

# One character is one unit where words are not parted by spaces.
UNSPACED = re.compile(
  "[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]"
)


def mgsm(path: str) -> Suite:
  """Sums in words (Shi et al. 2022): the last number of the answer is compared."""
  items = []
  for row in read_copy(path, columns=("question", "answer_number")):
    lang = row.language()
    right = row.get("answer_number", "answer")
    values = numbers_in(str(right), "en")
    if len(values) != 1:
      raise UserError(f"{row.place}: the right answer {right!r} is not one number")
    key = str(row.number)
    items.append(Item(key, lang, ask(str(row["question"])), (), values[0], key))
  return Suite("mgsm", items, _same_number, max_new_tokens=512)


def _same_number(item: Item, response: str) -> dict[str, bool]:
  found = last_number(response, item.lang)
  assert isinstance(item.answer, Decimal)
  return {"correct": found is not None and found == item.answer, "has_number": found is not None}


def xquad(path: str) -> Suite:
  """Reading (Artetxe et al. 2020): the answer is a few words of the passage; best of the right ones."""
  items = []
  for row in read_copy(path, split="validation"):
    for key, context, question, answers in _squad(row):
      text = f"{context}\n\n{question}\n\nAnswer with words of the text, as few as possible."
      items.append(Item(key, row.language(), ask(text), (), tuple(answers), key))
  return Suite("xquad", items, _words_in_common, ("stopped",), max_new_tokens=64)


def _squad(row: Row) -> Iterable[tuple[str, str, str, list[str]]]:
  """Flat rows, or the nested file that SQuAD comes in."""
  if "data" not in row.values:
    yield str(row["id"]), row["context"], row["question"], list(row["answers"]["text"])
    return
  for article in row["data"]:
    for paragraph in article["paragraphs"]:
      for qa in paragraph["qas"]:
        answers = [a["text"] for a in qa["answers"]]
        yield str(qa["id"]), paragraph["context"], qa["question"], answers


def _words_in_common(item: Item, response: str) -> dict[str, bool | float]:
  """Exact match and F1 of words, of characters where words have no spaces between them."""
  found = units(response)
  best = max((_f1(found, units(answer)) for answer in item.answer), default=0.0)
  return {"exact_words": any(found == units(a) for a in item.answer if units(a)), "f1": best}


def units(text: str) -> list[str]:
  """Words without case and punctuation, characters of scripts that put no spaces: "In 1999, 北京!" -> in 1999 北 京"""
  text = unicodedata.normalize("NFKC", text).casefold()
  text = "".join(" " if unicodedata.category(ch)[0] in "PZCS" else ch for ch in text)
  return UNSPACED.sub(lambda m: f" {m[0]} ", text).split()


def _f1(found: list[str], right: list[str]) -> float:
  common = sum((Counter(found) & Counter(right)).values())
  return 2 * common / (len(found) + len(right)) if common else 0.0


def aya(path: str) -> Suite:
  """Aya evaluation suite (Singh et al. 2024): open questions; chrF where they have a reference."""
  return Suite(
    "aya", _open(path, ("inputs",), ("targets",)), measure=("fidelity", "stopped", "chrf")
  )


def m_arenahard(path: str) -> Suite:
  """m-ArenaHard (Dang et al. 2024): open questions, to be judged side by side."""
  return Suite("m_arenahard", _open(path, ("prompt",)), max_new_tokens=1024)


def multiq(path: str) -> Suite:
  """MultiQ (Holtermann et al. 2024): short open questions in 137 languages."""
  return Suite("multiq", _open(path, ("question", "prompt")))


def language_confusion(path: str) -> Suite:
  """Language Confusion Benchmark (Marchisio et al. 2024): does the answer come in the language that is wanted?"""
  return Suite("language_confusion", _open(path, ("prompt",)), max_new_tokens=100)


def _open(path: str, asked: tuple[str, ...], answered: tuple[str, ...] = ()) -> list[Item]:
  """Open questions. Ids are those of the data where every row has one of its own, else numbers of rows."""
  rows = list(read_copy(path))
  keys = [row.get("question_id", "source_id", "id", "sample_id") for row in rows]
  own = None not in keys and len({(r.language(), k) for r, k in zip(rows, keys)}) == len(rows)
  items = []
  for row, key in zip(rows, keys, strict=True):
    question = row.get(*asked)
    if not isinstance(question, str):
      raise UserError(
        f"{row.place} has no question in {' or '.join(asked)}; it has {', '.join(map(str, row.values))}"
      )
    lang = _aya_language(row)
    reference = row.get(*answered) if answered else None
    name = str(key) if own else f"{row.place.rpartition('/')[2]}"
    items.append(Item(name, lang, ask(question), (), reference, str(key) if own else None))
  return items


def _aya_language(row: Row) -> str:
  """zho with script Hant is zh-Hant; other columns of the script say what the language says already."""
  lang, script = row.language(), row.get("script")
  if isinstance(script, str) and "-" not in lang and re.fullmatch("[A-Z][a-z]{3}", script):
    return normalise_tag(f"{lang}-{script}")
  return lang
