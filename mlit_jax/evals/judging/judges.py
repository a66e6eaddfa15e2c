"""The judges and the protocol: every pair in both orders, every verdict kept, nothing judged twice.

SPEC names a judge: https://host/v1#model, model:MODEL, recorded:FILE.jsonl, people:FILE.csv.
"""

from __future__ import annotations

import dataclasses
import hashlib
import queue
import threading
import urllib.parse
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Protocol

from mlit_jax.data.files import read_objects
from mlit_jax.errors import UserError
from mlit_jax.evals.judging.costs import Prices, tokens_of
from mlit_jax.evals.judging.endpoint import Endpoint, Interrupted, Refused
from mlit_jax.evals.judging.pairs import NUM_SHOWN, Pair, digest
from mlit_jax.evals.judging.prompts import Template
from mlit_jax.evals.judging.verdicts import CHOICES, Store, parse

ORDERS = ("ab", "ba")
MODEL_CHUNK = 128  # conversations between two savings
FORMS = "https://HOST/v1#MODEL, model:MODEL, recorded:FILE.jsonl or people:FILE.csv"


@dataclasses.dataclass(frozen=True)
class Spec:
  """What --judge names: kind is endpoint, model, recorded or people."""

  kind: str
  where: str
  model: str = ""


@dataclasses.dataclass(frozen=True)
class Ask:
  """One verdict to be had. messages: none for judges who are not asked by text."""

  key: str
  pair: Pair
  order: str
  messages: tuple[dict, ...] = ()
  reminder: str = ""

  @property
  def place(self) -> tuple[str, str, str]:
    return self.pair.lang, self.pair.id, self.order

  def reminded(self) -> tuple[dict, ...]:
    """What is asked where the first reply said no verdict."""
    *before, last = self.messages
    return *before, {**last, "content": f"{last['content']}\n\n{self.reminder}"}


@dataclasses.dataclass(frozen=True)
class Outcome:
  """The slot that was chosen (None: no verdict) and the replies it was read from."""

  choice: str | None
  replies: tuple[str, ...] = ()
  tokens_in: int | None = None
  tokens_out: int | None = None


class Judge(Protocol):
  """identity: what of the judge decides a verdict, besides what it is shown."""

  identity: tuple

  def judge(self, asks: Sequence[Ask]) -> Iterator[tuple[Ask, Outcome]]: ...


def parse_spec(text: str) -> Spec:
  """The judge that a SPEC names."""
  kind, _, where = text.partition(":")
  if kind in ("http", "https"):
    parts = urllib.parse.urlsplit(text)
    if not parts.hostname or not parts.fragment:
      raise UserError(f"--judge {text} names no {'model' if parts.hostname else 'host'}; {FORMS}.")
    if parts.username or parts.password or parts.query:
      raise UserError(
        f"--judge {kind}://{parts.hostname}: an address with a user, a password or a query would be "
        "written into files. Give keys by an environment variable (--key_env)."
      )
    return Spec("endpoint", text.partition("#")[0], parts.fragment)
  if kind not in ("model", "recorded", "people") or not where:
    raise UserError(f"--judge {text!r} is no judge; expected {FORMS}.")
  return Spec(kind, where, where if kind == "model" else "")


def make_asks(
  pairs: Iterable[Pair],
  identity: tuple,
  *,
  templates: Mapping[str, Template] | None = None,
  orders: Mapping[Pair, Sequence[str]] | None = None,
) -> list[Ask]:
  """Both orders of every pair that differs (or those that `orders` names), with their content hashes."""
  asks = []
  for pair in pairs:
    if pair.identical:
      continue
    template = templates[pair.lang] if templates else None
    for order in orders.get(pair, ()) if orders is not None else ORDERS:
      first, second = pair.shown(order)
      parts = (identity, template.fingerprint if template else "", pair.lang, pair.prompt)
      messages = tuple(template.messages(pair, order)) if template else ()
      key = digest(*parts, first, second, order, messages)
      asks.append(Ask(key, pair, order, messages, template.reminder if template else ""))
  return asks


def collect(
  judge: Judge, asks: Sequence[Ask], store: Store, progress: Callable[[int], None] = lambda n: None
) -> None:
  """Judge what the store lacks, and keep each verdict as it comes."""
  todo = unjudged(asks, store)
  done = len(asks) - len(todo)
  verdicts = judge.judge(todo)
  try:
    for ask, outcome in verdicts:
      store.add(
        {
          "key": ask.key,
          "id": ask.pair.id,
          "lang": ask.pair.lang,
          "order": ask.order,
          "choice": outcome.choice,
          "pair": ask.pair.fingerprint,
          "replies": outcome.replies,
          "tokens_in": outcome.tokens_in,
          "tokens_out": outcome.tokens_out,
        }
      )
      done += 1
      progress(done)
  finally:
    verdicts.close()


def unjudged(asks: Sequence[Ask], store: Store) -> list[Ask]:
  """Those whose verdict is not kept yet; what is asked twice is judged once."""
  return list({ask.key: ask for ask in asks if ask.key not in store.by_key}.values())


class EndpointJudge:
  """Asks an endpoint from several threads; verdicts come in the order of the replies."""

  def __init__(
    self,
    endpoint: Endpoint,
    *,
    on_refusal: str = "stop",
    prices: Prices | None = None,
    max_cost: float | None = None,
  ):
    """on_refusal: "invalid" counts a prompt that the endpoint will not take as one without verdict."""
    self.endpoint, self.on_refusal = endpoint, on_refusal
    self.prices, self.max_cost, self.spent = prices, max_cost, 0.0
    self.identity = ("endpoint", endpoint.url, endpoint.model, sorted(endpoint.request.items()))

  def judge(self, asks: Sequence[Ask]) -> Iterator[tuple[Ask, Outcome]]:
    """After a failure the calls under way are waited for and their verdicts given; then it is raised."""
    todo: queue.SimpleQueue = queue.SimpleQueue()
    for ask in asks:
      todo.put(ask)
    done: queue.SimpleQueue = queue.SimpleQueue()
    running = min(self.endpoint.limits.concurrency, len(asks))
    for _ in range(running):
      # Daemons: a signal ends the process, whatever they wait for.
      threading.Thread(target=self._work, args=(todo, done), daemon=True).start()
    failure = None
    try:
      while running:
        ask, outcome, error = done.get()
        if ask is None:
          running -= 1
        else:
          error = self._pay(ask, outcome)
          yield ask, outcome
        if error is not None:
          failure = failure or error
          self.endpoint.called_off.set()
    finally:
      self.endpoint.called_off.set()
    if failure is not None:
      raise failure

  def _work(self, todo, done) -> None:
    error = None
    try:
      while not self.endpoint.called_off.is_set():
        ask = todo.get_nowait()
        done.put((ask, self._ask(ask), None))
    except (queue.Empty, Interrupted):
      pass
    except BaseException as e:
      error = e
    done.put((None, None, error))

  def _ask(self, ask: Ask) -> Outcome:
    where = " ".join(ask.place)
    replies, tokens_in, tokens_out = [], 0, 0
    for messages in (ask.messages, ask.reminded()):
      try:
        reply = self.endpoint.complete(messages, where)
      except Refused:
        if self.on_refusal == "stop":
          raise
        break
      replies.append(reply.text)
      counted = tokens_of(m["content"] for m in messages), tokens_of([reply.text])
      tokens_in += counted[0] if reply.tokens_in is None else reply.tokens_in
      tokens_out += counted[1] if reply.tokens_out is None else reply.tokens_out
      choice = parse(reply.text)
      if choice is not None:
        return Outcome(choice, tuple(replies), tokens_in, tokens_out)
    return Outcome(None, tuple(replies), tokens_in, tokens_out)

  def _pay(self, ask: Ask, outcome: Outcome) -> UserError | None:
    if self.prices is None:
      return None
    self.spent += self.prices.of(outcome.tokens_in or 0, outcome.tokens_out or 0)
    if self.max_cost is None or self.spent <= self.max_cost:
      return None
    return UserError(
      f"this run has cost {self.spent:.4g}, more than --max_cost {self.max_cost:g}, by "
      f"{' '.join(ask.place)}. What was judged is kept; raise --max_cost to go on."
    )


class ModelJudge:
  """Asks a local model, many conversations at once."""

  def __init__(self, answer: Callable[[list[list[dict]]], list[str]], identity: tuple):
    self.answer, self.identity = answer, ("model", *identity)

  def judge(self, asks: Sequence[Ask]) -> Iterator[tuple[Ask, Outcome]]:
    # Prompts of like length share a shape.
    asks = sorted(asks, key=lambda ask: (sum(len(m["content"]) for m in ask.messages), ask.key))
    for start in range(0, len(asks), MODEL_CHUNK):
      chunk = asks[start : start + MODEL_CHUNK]
      replies = {
        ask.key: [text]
        for ask, text in zip(chunk, self.answer([list(ask.messages) for ask in chunk]), strict=True)
      }
      unread = [ask for ask in chunk if parse(replies[ask.key][0]) is None]
      if unread:
        again = self.answer([list(ask.reminded()) for ask in unread])
        for ask, text in zip(unread, again, strict=True):
          replies[ask.key].append(text)
      for ask in chunk:
        yield ask, Outcome(parse(replies[ask.key][-1]), tuple(replies[ask.key]))


class KnownJudge:
  """Gives verdicts that are there already: recorded ones, or those of people."""

  def __init__(self, choices: Mapping[tuple[str, str, str], str | None], identity: tuple):
    """choices: {(lang, id, order): slot}."""
    self.choices, self.identity = choices, identity

  def judge(self, asks: Sequence[Ask]) -> Iterator[tuple[Ask, Outcome]]:
    for ask in asks:
      yield ask, Outcome(self.choices[ask.place])


def recorded_judge(path: Path, pairs: Iterable[Pair]) -> KnownJudge:
  """The verdicts in a file, for all of these pairs in both orders.

  A line has id, lang, order ("ab": A's answer was shown first) and choice ("first", "second",
  "tie", null) or text, a reply to be read. A verdicts.jsonl of ours is such a file.
  """
  of_place = {(pair.lang, pair.id): pair for pair in pairs}
  choices: dict[tuple[str, str, str], str | None] = {}
  for number, row in read_objects(path):
    if "version" in row and "prompts" in row:
      continue  # the first line of a verdicts.jsonl
    place, choice = _recorded(row, f"{path}:{number}")
    pair = of_place.get(place[:2])
    if pair and "pair" in row and row["pair"] != pair.fingerprint:
      raise UserError(
        f"{path}:{number}: the verdict on {' '.join(place)} was on other answers than these. Give the "
        "two files it was made for."
      )
    if place in choices:
      raise UserError(
        f"{path}:{number}: a second verdict on {' '.join(place)}; keep one of the two."
      )
    choices[place] = choice
  needed = [(*place, order) for place, p in of_place.items() if not p.identical for order in ORDERS]
  missing = [" ".join(place) for place in needed if place not in choices]
  if missing:
    raise UserError(
      f"{path} lacks {len(missing)} of {len(needed)} verdicts, such as "
      f"{', '.join(missing[:NUM_SHOWN])}; every pair needs both orders, ab and ba."
    )
  return KnownJudge(choices, ("recorded", file_digest(path)))


def file_digest(path: Path) -> str:
  return hashlib.blake2b(Path(path).read_bytes(), digest_size=16).hexdigest()


def _recorded(row: Mapping, place: str) -> tuple[tuple[str, str, str], str | None]:
  order, slots = row.get("order"), (*dict.fromkeys(CHOICES.values()), None)
  if order not in ORDERS or "id" not in row or "lang" not in row:
    raise UserError(f"{place}: a recorded verdict needs id, lang and order (ab or ba).")
  if isinstance(row.get("text"), str) and "choice" not in row:
    choice = parse(row["text"])
  elif "choice" in row and row["choice"] in slots:
    choice = row["choice"]
  else:
    raise UserError(
      f"{place}: `choice` is {row.get('choice')!r}; expected first, second, tie or null, or `text`."
    )
  return (str(row["lang"]), str(row["id"]), order), choice
