"""What a judge is asked: templates with four fields, in the language of the question or in one.

A template is a text with {question}, {answer_a}, {answer_b} and, if it likes, {language}; {{word}}
stands for a literal {word}. Below a line of five equals signs it may hold the reminder that an
unreadable reply is met with.
"""

from __future__ import annotations

import dataclasses
import difflib
import re
from collections.abc import Iterable
from pathlib import Path

import langcodes

from mlit_jax.data.languages import normalise_tag
from mlit_jax.errors import UserError
from mlit_jax.evals.judging.pairs import Pair, digest
from mlit_jax.evals.judging.verdicts import disarm

RUBRICS = Path(__file__).parents[2] / "assets" / "rubrics"
NEEDED = ("question", "answer_a", "answer_b")
FIELDS = (*NEEDED, "language")
FIELD = re.compile(r"\{\{(\w+)\}\}|\{(\w+)\}")
REMINDER_BELOW = re.compile(r"^=====[ \t]*$", re.MULTILINE)


@dataclasses.dataclass(frozen=True)
class Template:
  """A rubric and the language it is written in ("" where nobody said)."""

  text: str
  reminder: str
  lang: str

  @property
  def fingerprint(self) -> str:
    return digest(self.text, self.reminder, self.lang)

  def messages(self, pair: Pair, order: str) -> list[dict]:
    """The conversation that asks for a verdict on the pair, A's answer first if order is "ab"."""
    first, second = pair.shown(order)
    values = dict(
      zip(NEEDED, _delimited([pair.prompt, first, second]), strict=True),
      language=_name(pair.lang, self.lang or "en"),
    )
    # One pass over the template: braces in an answer are text.
    content = FIELD.sub(
      lambda field: values[field[2]] if field[2] else "{" + field[1] + "}", self.text
    )
    return [{"role": "user", "content": content}]


def open_templates(
  languages: Iterable[str], *, rubric_language: str = "prompt", path: str = ""
) -> dict[str, Template]:
  """{language: template}; one file for all, a folder of <language>.txt, or the shipped rubrics.

  rubric_language: "prompt" is the language of the question; a tag such as "en" names one for all.
  """
  languages = sorted(set(languages))
  if path and not Path(path).is_dir():
    template = read_template(Path(path))
    return dict.fromkeys(languages, template)
  folder = Path(path) if path else RUBRICS
  if rubric_language != "prompt":
    return dict.fromkeys(languages, _of_language(normalise_tag(rubric_language), folder))
  return {lang: _of_language(lang, folder) for lang in languages}


def read_template(path: Path, lang: str = "") -> Template:
  """The template in a file; UserError where a field is missing or unknown."""
  try:
    content = path.read_text(encoding="utf-8-sig")
  except (OSError, UnicodeDecodeError) as e:
    raise UserError(f"template {path} cannot be read: {e}. Give a UTF-8 text file.") from e
  text, *rest = REMINDER_BELOW.split(content)
  if len(rest) > 1:
    raise UserError(f"template {path} has {len(rest)} lines of =====; expected one at most.")
  if rest and not rest[0].strip():
    raise UserError(f"template {path} has no reminder below =====; write one or drop the line.")
  reminder = rest[0] if rest else _shipped_reminder()
  found = [field[2] for field in FIELD.finditer(text) if field[2]]
  for name in found:
    if name not in FIELDS:
      close = difflib.get_close_matches(name, FIELDS, n=1, cutoff=0.0)[0]
      raise UserError(
        f"template {path}: unknown field {{{name}}}, did you mean {{{close}}}? For the literal text "
        f"write {{{{{name}}}}}."
      )
  missing = [f"{{{name}}}" for name in NEEDED if name not in found]
  if missing:
    raise UserError(
      f"template {path} lacks {', '.join(missing)}; a judge must see all three texts."
    )
  return Template(text.strip(), reminder.strip(), lang)


def _of_language(lang: str, folder: Path) -> Template:
  for name in dict.fromkeys((lang, langcodes.Language.get(lang).language or lang)):
    if (folder / f"{name}.txt").is_file():
      return read_template(folder / f"{name}.txt", name)
  there = " ".join(sorted(path.stem for path in folder.glob("*.txt")))
  raise UserError(
    f"no rubric in {lang!r}: {'shipped are' if folder == RUBRICS else f'{folder} has'} "
    f"{there or 'none'}. Take one language for all with --rubric_language en, or give --template FILE."
  )


def _shipped_reminder() -> str:
  return REMINDER_BELOW.split((RUBRICS / "en.txt").read_text(encoding="utf-8"))[1]


def _delimited(texts: list[str]) -> list[str]:
  """Each text between two lines with a code that none of them holds, without marks of verdicts.

  The code is a hash of the texts: the same texts give the same prompt, and a writer who does not
  know the other answer cannot end the block early.
  """
  texts = [disarm(text) for text in texts]
  code, salt = "", 0
  while not code or any(code in text for text in texts):
    code, salt = digest(salt, *texts)[:10], salt + 1
  line = f"----- {code} -----"
  return [f"{line}\n{text}\n{line}" for text in texts]


def _name(lang: str, in_lang: str) -> str:
  """What a language is called in another: sw in fi is swahili."""
  return langcodes.Language.get(lang).display_name(in_lang)
