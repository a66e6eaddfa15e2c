"""What a suite is: items, and how an answer is judged. Docs/suites.md shows one of your own on a page."""

from __future__ import annotations

import dataclasses
import hashlib
import re
from collections.abc import Callable, Iterator, Mapping, Sequence

from mlit_jax.data.rows import Conversation, Message
from mlit_jax.errors import UserError

Score = Callable[["Item", str], Mapping[str, bool | float]]
NAME = re.compile(r"\w[\w.-]{0,99}")
MEASURES = ("fidelity", "stopped", "chrf", "exact")  # what any suite may ask for besides its own


@dataclasses.dataclass(frozen=True)
class Item:
  """One question. With `choices` the model is asked how likely it finds each; without, it writes an answer.

  id: unique within a language; the same question in other languages has the same `group_id`.
  answer: the number of the right choice; or what the suite's own function compares with (a text: the
  reference of chrf and exact).
  """

  id: str
  lang: str
  messages: tuple[Message, ...]  # the last one is the user's
  choices: tuple[str, ...] = ()
  answer: object = None
  group_id: str | None = None

  @property
  def prompt(self) -> str:
    return self.messages[-1].content


@dataclasses.dataclass(frozen=True)
class Suite:
  """Items of one kind, and what is measured.

  score: {metric: value} of an item and its answer; a bool is a hit or a miss, a float is averaged.
  measure: built-in metrics of answers besides: fidelity, stopped; chrf and exact where items have a text as
  answer.
  chat: prompts go through the model's chat template; else the text is continued as it stands.
  """

  name: str
  items: Sequence[Item]
  score: Score | None = None
  measure: tuple[str, ...] = ("fidelity", "stopped")
  max_new_tokens: int = 256
  stop: tuple[str, ...] = ()
  chat: bool = True

  def only(self, languages: set[str], most: int = 0) -> Suite:
    """The same suite, only in these languages (all, if empty), with at most `most` items of each (0: all).

    Of parallel items the same ones are kept in each language: those whose group comes first.
    """
    missing = languages - {item.lang for item in self.items}
    if missing:
      raise UserError(
        f"--languages {', '.join(sorted(missing))}: the suite {self.name} has none of it; it has "
        f"{', '.join(sorted({item.lang for item in self.items}))}"
      )
    groups: dict[str, int] = {}
    for item in self.items:
      groups.setdefault(item.group_id or f"{item.lang}/{item.id}", len(groups))
    by_language: dict[str, list[Item]] = {}
    for item in sorted(self.items, key=lambda i: groups[i.group_id or f"{i.lang}/{i.id}"]):
      if not languages or item.lang in languages:
        by_language.setdefault(item.lang, []).append(item)
    kept = [item for lang in sorted(by_language) for item in by_language[lang][: most or None]]
    return dataclasses.replace(self, items=kept)


def ask(*texts: str, system: str = "") -> tuple[Message, ...]:
  """Messages of a question: user and assistant in turn, the user last."""
  roles = ("user", "assistant")
  turns = [Message(roles[i % 2], text) for i, text in enumerate(texts)]
  return (*([Message("system", system)] if system else []), *turns)


def as_rows(suite: Suite) -> Iterator[Conversation]:
  """What is asked, as rows that training rows are compared with."""
  for item in suite.items:
    place = f"{suite.name}:{item.lang}/{item.id}"
    answer = item.answer if isinstance(item.answer, str) and item.answer else "-"
    messages = (*item.messages, Message("assistant", answer))
    example_id = hashlib.blake2b(place.encode(), digest_size=16).hexdigest()
    yield Conversation(messages, item.lang, example_id, item.group_id, suite.name, place)


def metric_names(suite: Suite) -> list[str]:
  """What the suite will measure; its own function is asked about an empty answer."""
  chosen = any(item.choices for item in suite.items)
  asked = next((item for item in suite.items if not item.choices), None)
  own = list(suite.score(asked, "")) if suite.score and asked else []
  built_in = list(suite.measure) if asked else []
  return [*(("accuracy", "accuracy_per_byte") if chosen else ()), *built_in, *own]


def check(suite: Suite) -> None:
  """Refuse what could only go wrong later: items without a question, choices without a right one, equal ids."""
  seen = set()
  if not isinstance(suite.name, str) or not NAME.fullmatch(suite.name):
    raise UserError(
      f"a suite is named {suite.name!r:.80}; a name makes a file and the names of metrics: use letters, digits, '.', '-' "
      "and '_'"
    )
  if not suite.items:
    raise UserError(f"the suite {suite.name} has no items")
  unknown = sorted(set(suite.measure) - set(MEASURES))
  if unknown:
    raise UserError(
      f"the suite {suite.name} measures {', '.join(unknown)}; known are {', '.join(MEASURES)}"
    )
  for item in suite.items:
    place = f"the suite {suite.name}, item {item.lang}/{item.id}"
    if (item.lang, item.id) in seen:
      raise UserError(f"{place} stands there twice; give every item of a language an id of its own")
    seen.add((item.lang, item.id))
    if not isinstance(item.group_id, str | int | None):
      raise UserError(
        f"{place} has the group_id {item.group_id!r:.80}; it must be a text or a whole number"
      )
    if not item.messages or item.messages[-1].role != "user" or not item.prompt.strip():
      raise UserError(f"{place} asks nothing; its last message must be a user's, with text")
    if item.choices and not (isinstance(item.answer, int) and 0 <= item.answer < len(item.choices)):
      raise UserError(
        f"{place} has {len(item.choices)} choices and the answer {item.answer!r}; it must be the number of the right one, from 0"
      )
    if item.choices and (len(set(item.choices)) < len(item.choices) or not all(item.choices)):
      raise UserError(f"{place} has choices that are empty or equal: {list(item.choices)}")
