"""What only instructions in Spanish, French and Japanese ask for (M-IFEval, Dussolle et al. 2025), and their usage."""

from __future__ import annotations

import functools
import unicodedata
from importlib.util import find_spec

import regex

from mlit_jax.errors import UserError
from mlit_jax.evals.suites.counting import words
from mlit_jax.evals.suites.instruction_checks import Usage, compare, fold

SPANISH = Usage(
  lang="es",
  options=("Sí.", "No.", "Quizás."),
  numbers_in_lists_count=False,
  ends_with_point=True,
)
FRENCH = Usage(
  lang="fr",
  options=("Oui.", "Non.", "Peut-être."),
  quotes=('""', "“”", "«»", "''", "‘’", "’’"),
  title=regex.compile(r"##[^\n#]*[^\s#][^\n]*?##"),
)
JAPANESE = Usage(
  lang="ja",
  options=("はい、そうです。", "いいえ、違います。", "どちらとも言えません。"),
  commas=regex.compile("[、､，]"),
  quotes=("「」",),
  title=regex.compile(r"『[^\n]*?[^\s『』][^\n]*?』"),
  bullet=regex.compile(r"^\s*[・･][^\S\n]*[^\s・･]", regex.MULTILINE),
  section=r"第\s?[\d〇一二三四五六七八九十百]+\s?{name}",
  line_ends_sentence=True,
)

TU = regex.compile(r"(?<!\w)(?:t['’]|(?:tu|te|toi|ton|ta|tes|tien(?:ne)?s?)(?!\w))")
ACUTE = regex.compile("[áéíóú]")
KANJI = r"[\p{Han}々〆ヶ--[〇]]"
KANJI_RUN = regex.compile(rf"(?V1){KANJI}+")
READING = regex.compile(r"[（(]\s*[\p{Hiragana}ー・\s]+[）)]")
QUOTED = regex.compile(r"「[^「」]*」|『[^『』]*』")
JAPANESE_END = regex.compile(r"[。！？!?｡]+")


# --- Spanish


def question_marks(response, usage):
  return regex.search(r"¿[^?]*[^?¿\s][^?]*\?", response) is not None


def exclamation_marks(response, usage):
  return regex.search(r"¡[^!]*[^!¡\s][^!]*!", response) is not None


def enie(response, usage, *, let_frequency):
  return _words_with("ñ", response) == let_frequency


def dieresis(response, usage, *, let_frequency):
  return _words_with("ü", response) == let_frequency


def tildes(response, usage, *, num_words, relation):
  found = [word for word in words(fold(response)) if ACUTE.search(word)]
  return compare(len(found), relation, num_words)


def _words_with(letter: str, text: str) -> int:
  return sum(letter in word for word in words(fold(text)))


# --- French


def ethel_or_cedilla(response, usage, *, forbidden_char):
  return fold(forbidden_char) not in fold(response)


def no_accents(response, usage):
  """No mark on any letter; ç has one."""
  return not regex.search(r"\p{L}\p{M}", unicodedata.normalize("NFD", response))


def accents(response, usage, *, word_to_accentuate):
  """No word stands there without its accents, and one of them with: {"ecole": "école"}.

  Not each of them: the data name words that their texts have in another form.
  """
  found = set(words(fold(response)))
  right = {fold(word) for word in word_to_accentuate.values()}
  wanted = {fold(plain) for plain in word_to_accentuate} | {_plain(word) for word in right}
  return bool(right & found) and all(word in right for word in found if _plain(word) in wanted)


def _plain(word: str) -> str:
  return regex.sub(r"\p{M}", "", unicodedata.normalize("NFD", word))


def informal_address(response, usage):
  return TU.search(fold(response)) is not None


def no_digits(response, usage):
  return not regex.search(r"\d", response)


# --- Japanese


def number_letters(response, usage, *, num_letters, relation):
  """Characters, white space not among them."""
  return compare(len(regex.findall(r"\S", response)), relation, num_letters)


def kana_frequency(response, usage, *, letter, let_frequency, let_relation):
  """し and シ are one letter."""
  found = _hiragana(response).count(_hiragana(letter.strip()))
  return compare(found, let_relation, let_frequency)


def highlighted_sections(response, usage, *, num_highlights):
  """《so》."""
  found = regex.findall(r"《[^\n《》]*[^\s《》][^\n《》]*》", response)
  return len(found) >= num_highlights


def number_numbered_lists(response, usage, *, num_items):
  found = regex.findall(r"^\s*\d+[.．](?!\d)[^\S\n]*\S", response, flags=regex.MULTILINE)
  return len(found) == num_items


def sentence_unified_end(response, usage, *, ending):
  """Each sentence ends so, what is quoted left out."""
  parts = [p.strip(" \n\r\t　」』）)") for p in JAPANESE_END.split(QUOTED.sub("", response))]
  parts = [p for p in parts if p]
  return bool(parts) and all(p.endswith(ending.strip().rstrip("。")) for p in parts)


def nominal_ending(response, usage, *, count):
  """So many sentences end in a noun, what is quoted left out."""
  tokens = list(_unidic()(QUOTED.sub("", response)))
  ends = zip(tokens, tokens[1:])
  return sum(_is_noun(a) and JAPANESE_END.match(b.surface) is not None for a, b in ends) >= count


def furigana(response, usage):
  """The reading stands behind each run of kanji: 漢字（かんじ）."""
  return all(READING.match(response, run.end()) for run in KANJI_RUN.finditer(response))


def kanji(response, usage, *, kanji_limit, relation):
  return compare(sum(len(run) for run in KANJI_RUN.findall(response)), relation, kanji_limit)


def kansuuji(response, usage):
  return no_digits(response, usage)


def no_katakana(response, usage):
  return not regex.search(r"\p{Katakana}", response)


def katakana_only(response, usage):
  return _only(r"\p{Katakana}", response)


def no_hiragana(response, usage):
  return not regex.search(r"\p{Hiragana}", response)


def hiragana_only(response, usage):
  return _only(r"\p{Hiragana}", response)


def no_period(response, usage):
  return not regex.search("[。｡]", response)


def _only(script: str, text: str) -> bool:
  """All letters are of the script, and there is one."""
  letters = regex.findall(r"\p{L}", regex.sub("[ーｰ]", "", text))
  return bool(letters) and all(regex.match(script, letter) for letter in letters)


def _hiragana(text: str) -> str:
  text = unicodedata.normalize("NFKC", text)
  return "".join(chr(ord(c) - 0x60) if "ァ" <= c <= "ヶ" else c for c in text)


def check_can_part_japanese() -> None:
  if find_spec("fugashi") is None or find_spec("unidic_lite") is None:
    raise UserError(
      "to tell nouns in Japanese needs fugashi and unidic-lite: pip install 'mlit_jax[fidelity]'."
    )


@functools.cache
def _unidic():
  import fugashi

  return fugashi.Tagger()


def _is_noun(token) -> bool:
  kind, of = token.feature.pos1, token.feature.pos2
  return kind in ("名詞", "代名詞") or (kind == "接尾辞" and of == "名詞的")
