"""Two files of saved answers, matched prompt by prompt."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterable
from pathlib import Path

from mlit_jax.data.files import read_objects
from mlit_jax.data.languages import normalise_tag
from mlit_jax.errors import UserError

NUM_SHOWN = 3  # examples in a message


@dataclasses.dataclass(frozen=True)
class Answer:
  """One line of a generations file."""

  id: str
  lang: str
  prompt: str
  response: str
  model: str = ""
  group_id: str | None = None


@dataclasses.dataclass(frozen=True)
class Pair:
  """The same prompt answered by A and by B. Examples of one group are parallel, and resampled together."""

  id: str
  lang: str
  group: str
  prompt: str
  a: str
  b: str

  @property
  def fingerprint(self) -> str:
    """Of what is judged, whatever it is called and by whom."""
    return digest(self.lang, self.prompt, self.a, self.b)

  @property
  def identical(self) -> bool:
    """Nothing to judge: the same answer twice is a tie."""
    return self.a == self.b

  def shown(self, order: str) -> tuple[str, str]:
    """The answers as a judge meets them: order "ab" shows A's first."""
    return (self.a, self.b) if order == "ab" else (self.b, self.a)


def read_pairs(a: Path, b: Path, languages: Iterable[str] = ()) -> tuple[list[Pair], str, str]:
  """(pairs by language and id, A's model, B's model); with `languages`, only these.

  Both files must answer the same prompts: an id that one of them lacks, or a prompt that differs,
  is refused.
  """
  answers_a, answers_b = read_answers(a), read_answers(b)
  wanted = {normalise_tag(tag) for tag in languages}
  missing = wanted - {lang for lang, _ in answers_a}
  if missing:
    raise UserError(f"--languages {','.join(sorted(missing))}: {a} has no answer in that language.")
  if wanted:
    answers_a = {key: x for key, x in answers_a.items() if key[0] in wanted}
    answers_b = {key: x for key, x in answers_b.items() if key[0] in wanted}
  _check_same_ids(a, answers_a, b, answers_b)
  _check_same_prompts(a, answers_a, b, answers_b)
  pairs = [
    Pair(
      id=x.id,
      lang=x.lang,
      group=x.group_id or x.id,
      prompt=x.prompt,
      a=x.response,
      b=answers_b[key].response,
    )
    for key, x in sorted(answers_a.items())
  ]
  return pairs, _model(answers_a), _model(answers_b)


def read_answers(path: Path) -> dict[tuple[str, str], Answer]:
  """{(lang, id): answer} of a file with one object a line: id, lang, prompt, response, and model if known."""
  out: dict[tuple[str, str], Answer] = {}
  where: dict[tuple[str, str], int] = {}
  for number, row in read_objects(path):
    answer = _answer(row, f"{path}:{number}")
    key = answer.lang, answer.id
    if key in out:
      raise UserError(
        f"{path}:{number}: id {answer.id!r} of {answer.lang} stands on line {where[key]} already. "
        "Ids must be unique within a language."
      )
    out[key], where[key] = answer, number
  if not out:
    raise UserError(f"{path} holds no answer; each line needs id, lang, prompt and response.")
  return out


def fingerprint_prompts(pairs: Iterable[Pair]) -> str:
  """Of the prompt set: which prompts, by which ids, in which languages."""
  return digest(*(part for p in sorted(pairs, key=_place) for part in (p.lang, p.id, p.prompt)))


def digest(*parts) -> str:
  """32 hexadecimal digits for the parts, each kept apart from the next."""
  # ASCII: half an emoji has no UTF-8.
  return hashlib.blake2b(json.dumps(parts).encode("ascii"), digest_size=16).hexdigest()


def _place(pair: Pair):
  return pair.lang, pair.id


def _answer(row: dict, place: str) -> Answer:
  for key in ("lang", "prompt", "response"):
    if not isinstance(row.get(key), str):
      raise UserError(
        f"{place}: `{key}` is {_short(row.get(key))}; expected text. An answer has id, lang, prompt "
        "and response."
      )
  if isinstance(row.get("id"), bool) or not isinstance(row.get("id"), (str, int)):
    raise UserError(f"{place}: `id` is {_short(row.get('id'))}; expected text or a whole number.")
  try:
    lang = normalise_tag(row["lang"])
  except UserError as e:
    raise UserError(f"{place}: `lang`: {e}") from None
  group = row.get("group_id")
  return Answer(
    id=str(row["id"]),
    lang=lang,
    prompt=row["prompt"],
    response=row["response"],
    model=str(row.get("model") or ""),
    group_id=None if group is None else str(group),
  )


def _check_same_ids(a: Path, answers_a: dict, b: Path, answers_b: dict) -> None:
  only_a, only_b = answers_a.keys() - answers_b.keys(), answers_b.keys() - answers_a.keys()
  if only_a or only_b:
    raise UserError(
      f"the two files do not answer the same prompts: {len(answers_a.keys() & answers_b.keys())} "
      f"in both, {len(only_a)} only in {a}{_examples(only_a)}, {len(only_b)} only in "
      f"{b}{_examples(only_b)}. Let both models answer the same prompts file, or name the "
      "languages both have with --languages."
    )


def _check_same_prompts(a: Path, answers_a: dict, b: Path, answers_b: dict) -> None:
  differ = [key for key, x in sorted(answers_a.items()) if answers_b[key].prompt != x.prompt]
  if differ:
    key = differ[0]
    raise UserError(
      f"{len(differ)} of {len(answers_a)} prompts differ between the two files under the same id: "
      f"{' '.join(key)} is {_short(answers_a[key].prompt)} in {a} and "
      f"{_short(answers_b[key].prompt)} in {b}. Let both models answer the same prompts file."
    )


def _examples(keys: Iterable[tuple[str, str]]) -> str:
  shown = sorted(keys)[:NUM_SHOWN]
  return f" (such as {', '.join(' '.join(key) for key in shown)})" if shown else ""


def _model(answers: dict[tuple[str, str], Answer]) -> str:
  """The name of the model; several are joined, so that nobody takes the mixture for one."""
  return " + ".join(dict.fromkeys(x.model for x in answers.values() if x.model))


def _short(value) -> str:
  text = repr(value)
  return text if len(text) <= 60 else text[:57] + "..."
