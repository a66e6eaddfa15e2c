"""The model's own chat template, and which characters of its one render are trained."""

import contextvars
import dataclasses
import datetime
import functools
import json
import re
from collections.abc import Sequence

import jinja2
import jinja2.ext

from mlit_jax.data import sandbox
from mlit_jax.data.render_limits import TooMuch
from mlit_jax.errors import UserError

DEFAULT_DATE = "2024-07-26"  # what Llama 3 templates print where no date is given


@dataclasses.dataclass(frozen=True)
class Rendered:
  text: str
  spans: tuple[tuple[int, int], ...]  # (start, end) in characters of what is trained, in order


@dataclasses.dataclass(frozen=True)
class Template:
  """A Jinja chat template with everything it can see, so that a render depends on nothing else.

  `kwargs` go to the template (enable_thinking=False); `date` (YYYY-MM-DD) is the day that
  strftime_now tells; `added_tokens` are the tokens that are matched whole in the text.
  """

  source: str
  special_tokens: dict[str, str] = dataclasses.field(default_factory=dict)
  kwargs: dict = dataclasses.field(default_factory=dict)
  date: str = DEFAULT_DATE
  added_tokens: tuple[str, ...] = ()
  _skeletons: dict = dataclasses.field(default_factory=dict, init=False, repr=False, compare=False)
  _stop_lengths: dict = dataclasses.field(
    default_factory=dict, init=False, repr=False, compare=False
  )

  def __post_init__(self):
    try:
      datetime.date.fromisoformat(self.date)
    except (TypeError, ValueError):
      raise UserError(
        f"the date of the chat template is {self.date!r}; write it as YYYY-MM-DD."
      ) from None

  def render(self, messages: Sequence, *, place: str = "") -> Rendered:
    """The text of a whole conversation, and the spans of its answers, each with its end token.

    user "Hola"    assistant "Bonjour"
    <|im_start|>user\\nHola<|im_end|>\\n<|im_start|>assistant\\nBonjour<|im_end|>\\n
                                                              ^^^^^^^^^^^^^^^^^  trained
    """
    turns = _turns(messages)
    if not turns or turns[-1][0] != "assistant":
      raise UserError(
        f"{_at(place)}the conversation does not end with an answer, so nothing can be trained."
      )
    if self._has_generation_blocks:
      text, spans = self._spans_from_blocks(turns, place)
    else:
      text = self._text(turns, place=place)
      spans = self._spans_from_skeleton(text, turns, place)
      if spans is None:
        spans = self._spans_from_prefixes(text, turns, place)
    _check_spans(text, spans, turns, place)
    return Rendered(text, tuple(spans))

  def prompt(self, messages: Sequence, *, place: str = "") -> str:
    """The text after which the model answers."""
    return self._text(_turns(messages), generation=True, place=place)

  @functools.cached_property
  def end_of_turn(self) -> str:
    """The token that ends an answer, as the template writes it."""
    probe = [("user", _mark(0, "")), ("assistant", _mark(1, ""))]
    skeleton = self._skeleton(("user", "assistant"), "")
    after = skeleton.after(1) if skeleton else self._text(probe).split(probe[-1][1])[-1]
    return self._stop(after, "", first=True)

  def opening(self) -> str:
    """What the template writes before the first question where a row has no system text."""
    mark = _mark(0, "")
    return self._text([("user", mark)], generation=True).split(mark)[0]

  def prints_the_date(self) -> bool:
    """Whether a render depends on the day it is made."""
    probes = ([("user", "a")], [("system", "b"), ("user", "a")])
    other = dataclasses.replace(self, date="1999-12-31")
    return any(self._try(turns) != other._try(turns) for turns in probes)

  # --- rendering

  def _try(self, turns) -> str | None:
    """The prompt, or None where the template refuses the roles."""
    try:
      return self._text(turns, generation=True)
    except UserError:
      return None

  @functools.cached_property
  def _has_generation_blocks(self) -> bool:
    return re.search(r"\{%-?\s*generation\s*-?%\}", self.source) is not None

  def _text(self, turns, *, generation=False, place="", tracked=None) -> str:
    template = _compile(self.source, self.date)
    context = {**self.special_tokens, **self.kwargs}
    context |= {"messages": [{"role": role, "content": content} for role, content in turns]}
    context |= {"tools": None, "documents": None, "add_generation_prompt": generation}
    shared = _globals(self.source, self.date)
    try:
      if tracked is None:
        return sandbox.render(template, context, shared, [])
      return _render_tracked(template, context, shared, tracked)
    except TooMuch as error:
      raise _too_much(f"{_at(place)}the chat template", error) from None
    except jinja2.TemplateError as error:
      raise UserError(
        f"{_at(place)}the chat template refuses the conversation (roles "
        f"{', '.join(r for r, _ in turns)}): "
        f"{error}. Change the row, or give another template in tokenizer.chat_template."
      ) from None
    except Exception as error:  # whatever a template does, the fault is in it
      raise UserError(
        f"{_at(place)}the chat template fails on the conversation: {type(error).__name__}: "
        f"{error}. "
        "Correct the template, or give another one in tokenizer.chat_template."
      ) from None

  # --- spans

  def _spans_from_blocks(self, turns, place):
    """The template's author marked the answers; the end token is added where the mark lacks it."""
    spans, tracked = [], []
    text = self._text(turns, place=place, tracked=tracked)
    for start, end in tracked:
      stop = _stop_match(text[end:], self._stops)
      if stop and not any(text[start:end].rstrip().endswith(token) for token in self._stops):
        end += stop.end()
      end = start + len(
        text[start:end].rstrip()
      )  # the newline after the end token is the template's
      if end > start:
        spans.append((start, end))
    if not spans or not any(
      text[:end].endswith(token) for _, end in spans[-1:] for token in self._stops
    ):
      raise UserError(
        f"{_at(place)}the {{% generation %}} blocks of the chat template mark no answer that ends "
        f"with an end "
        "token, so the model would not learn to stop. Put the end token inside the block."
      )
    return text, spans

  def _spans_from_skeleton(self, text, turns, place):
    """Spans from the literals between contents; None where the template looks at contents."""
    skeleton = self._skeleton(tuple(role for role, _ in turns), place)
    if skeleton is None:
      return None
    pieces, at, spans = [skeleton.literals[0]], len(skeleton.literals[0]), []
    for i, after in zip(skeleton.order, skeleton.literals[1:], strict=True):
      role, content = turns[i]
      content = skeleton.cuts[i](content)
      if role == "assistant":
        end = at + len(content) + self._stop_length(after, place)
        spans.append((at - skeleton.leads[i], end))
      pieces += [content, after]
      at += len(content) + len(after)
    return spans if "".join(pieces) == text else None

  def _spans_from_prefixes(self, text, turns, place):
    """Spans from renders of shorter conversations, each of which must be a prefix of the whole one.

    What the model is given before answer i is the prompt of the turns before it; what follows the
    answer is the
    literal before turn i + 1, found by a render whose later turns are marks. Templates that drop
    earlier
    thoughts (Qwen3) need this.
    """
    spans, roles = [], tuple(role for role, _ in turns)
    nonce = _nonce(self.source, turns)
    marks = [(role, _mark(i, nonce)) for i, role in enumerate(roles)]
    for i, role in enumerate(roles):
      if role != "assistant":
        continue
      starts = [len(p) for p in self._prefixes(turns, marks, i, place) if text.startswith(p)]
      last = i == len(turns) - 1
      whole = text if last else self._before_mark([*turns[: i + 1], *marks[i + 1 :]], i + 1, place)
      after = self._after_answer(roles, i, place)
      if not starts or after is None or whole is None:
        raise _no_spans(place)
      if not (text.startswith(whole) and whole.endswith(after)):
        raise _no_spans(place)
      spans.append((starts[0], len(whole) - len(after) + self._stop_length(after, place)))
    return spans

  def _prefixes(self, turns, marks, i, place):
    """What may stand before answer i: the prompt, if there is one, or the text up to its mark."""
    if self._writes_prompt(place):
      yield self._text(turns[:i], generation=True, place=place)
    before = self._before_mark([*turns[:i], *marks[i:]], i, place)
    if before is not None:
      yield before

  def _before_mark(self, turns, i, place):
    parts = self._text(turns, place=place).split(turns[i][1])
    return parts[0] if len(parts) == 2 else None

  def _after_answer(self, roles, i, place):
    skeleton = self._skeleton(roles, place)
    return skeleton and skeleton.after(i)

  def _writes_prompt(self, place) -> bool:
    """Does add_generation_prompt write anything?"""
    probe = [("user", "a")]
    return self._text(probe, generation=True, place=place) != self._text(probe, place=place)

  def _skeleton(self, roles: tuple[str, ...], place: str):
    if roles not in self._skeletons:
      self._skeletons[roles] = self._learn_skeleton(roles, place)
    return self._skeletons[roles]

  def _learn_skeleton(self, roles, place):
    nonce = _nonce(self.source, ())
    marks = [(role, _mark(i, nonce)) for i, role in enumerate(roles)]
    found = _split(self._text(marks, place=place), marks, nonce)
    pad = " \n "  # what a template strips from a content shows on a padded one
    padded = [(role, pad + mark + pad) for role, mark in marks]
    padded = _split(self._text(padded, place=place), marks, nonce)
    if found is None or padded is None or found[0] != padded[0]:
      return None
    order, literals = found
    cuts = _cuts(literals, padded[1], pad)
    if cuts is None:
      return None
    at = tuple(sorted(range(len(roles)), key=order.__getitem__))
    cuts = tuple(cuts[k] for k in at)
    leads = tuple(self._lead(literals[k], marks, i, nonce, place) for i, k in enumerate(at))
    return _Skeleton(order, at, literals, cuts, leads)

  def _lead(self, before, marks, i, nonce, place) -> int:
    """How many characters before answer i the model writes itself, such as empty thoughts.

    They stand after the generation prompt. Without one, only white space counts: a header is not an
    answer.
    """
    if marks[i][0] != "assistant" or i == 0:
      return 0
    prompt = self._text(marks[:i], generation=True, place=place)
    prompt = _marks_in(nonce).split(prompt)[-1]
    if not before.startswith(prompt):
      return 0
    gap = before[len(prompt) :]
    return len(gap) if not gap.strip() or self._writes_prompt(place) else 0

  # --- the end token

  @functools.cached_property
  def _stops(self) -> tuple[str, ...]:
    return tuple(
      sorted(filter(None, self.added_tokens or self.special_tokens.values()), key=len, reverse=True)
    )

  def _stop_length(self, after: str, place: str) -> int:
    """Length of the end token in `after`, with white space before it, which the model writes."""
    if after not in self._stop_lengths:
      self._stop(after, place)
      self._stop_lengths[after] = _stop_match(after, self._stops).end()
    return self._stop_lengths[after]

  def _stop(self, after: str, place: str, *, first: bool = False) -> str:
    """The end token of an answer that this follows; `first`: while that of the template is looked for."""
    match = _stop_match(after, self._stops)
    if match is not None:
      # Another token than the one that ends the last answer may be the header of the next turn: a
      # header goes on
      # with a role, an end token with the next turn's own token.
      rest = after[match.end() :]
      known = not first and match.group(1) == self.end_of_turn
      if not rest.strip() or known or _stop_match(rest, self._stops):
        return match.group(1)
    seen = after.strip()[:40]
    raise UserError(
      f"{_at(place)}the chat template ends an answer with {seen!r}, which is no special token of "
      f"this vocabulary, "
      "so the model could not learn to stop. Use a template that writes the end token (such as "
      "eos_token) after "
      "each answer, or a tokenizer that has it."
    )


@dataclasses.dataclass(frozen=True)
class _Skeleton:
  """What a template writes around the contents of some roles, whatever the contents are."""

  order: tuple[int, ...]  # turns as in the text: a system text may stand in a question
  at: tuple[int, ...]  # where each turn stands in that order
  literals: tuple[str, ...]  # one before each content in that order, one after the last
  cuts: tuple  # what the template does to the content of each turn
  leads: tuple[int, ...]

  def after(self, i: int) -> str:
    return self.literals[self.at[i] + 1]


# --- text helpers


def _turns(messages) -> list[tuple[str, str]]:
  return [
    (m["role"], m["content"]) if isinstance(m, dict) else (m.role, m.content) for m in messages
  ]


def _at(place: str) -> str:
  return f"{place}: " if place else ""


def _mark(i: int, nonce: str) -> str:
  """A content that no template and no row contains; its ends are such as none strips."""
  return f"(\ue000{nonce}{i}\ue001)"


def _marks_in(nonce: str) -> re.Pattern:
  return re.compile(rf"(\(\ue000{nonce}\d+\ue001\))")


def _nonce(source, turns) -> str:
  nonce = ""
  while any(f"\ue000{nonce}" in text for text in (source, *(content for _, content in turns))):
    nonce += "\ue002"
  return nonce


def _split(text: str, marks, nonce: str):
  """(order of the marks, literals around them); None unless each mark stands there once."""
  numbers = {mark: i for i, (_, mark) in enumerate(marks)}
  parts = _marks_in(nonce).split(text)
  order = tuple(numbers.get(mark, -1) for mark in parts[1::2])
  if sorted(order) != list(range(len(marks))):
    return None
  return order, tuple(parts[::2])


def _keep(content):
  return content


def _cuts(literals, padded, pad):
  """What the template does to each content: nothing or a strip. None if it cannot be told."""
  kept_right, functions = "", []
  options = {(pad, pad): _keep, ("", ""): str.strip, ("", pad): str.lstrip, (pad, ""): str.rstrip}
  kept_left = None
  for i, (plain, wide) in enumerate(zip(literals, padded, strict=True)):
    last, first = i == len(literals) - 1, i == 0
    rights = ("",) if first else (pad, "")
    lefts = ("",) if last else (pad, "")
    fit = [(right, left) for right in rights for left in lefts if right + plain + left == wide]
    if not fit:
      return None
    kept_right, left = fit[0]
    if not first:
      functions.append(options[kept_left, kept_right])
    kept_left = left
  return tuple(functions)


def _stop_match(after: str, stops: tuple[str, ...]):
  return _stop_pattern(stops).match(after) if stops else None


@functools.lru_cache(maxsize=64)
def _stop_pattern(stops: tuple[str, ...]) -> re.Pattern:
  return re.compile(r"\s*(" + "|".join(map(re.escape, stops)) + ")")


def _check_spans(text, spans, turns, place) -> None:
  at = 0
  for start, end in spans:
    if not at <= start < end <= len(text):
      raise _no_spans(place)
    at = end
  if not spans:
    raise _no_spans(place)


def _no_spans(place: str) -> UserError:
  return UserError(
    f"{_at(place)}the chat template does not show which part of this conversation is the answer: "
    f"it changes or "
    "drops what a row says, or its render is not the continuation of its prompt. Mark the answers "
    "in the template "
    "with {% generation %} ... {% endgeneration %}, remove what the template rewrites (such as a "
    "block of "
    "thoughts under enable_thinking=False), or give another template in tokenizer.chat_template."
  )


# --- Jinja


@functools.lru_cache(maxsize=64)
def _compile(source: str, date: str) -> jinja2.Template:
  """The template in the environment of transformers, but with a day that does not move."""

  def raise_exception(message):
    raise jinja2.TemplateError(message)

  def tojson(x, ensure_ascii=False, indent=None, separators=None, sort_keys=False):
    # Jinja's own filter escapes HTML.
    return json.dumps(
      x, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )

  def strftime_now(format):
    return datetime.datetime.fromisoformat(date).strftime(format)

  environment = sandbox.Environment(extensions=[_Generation, jinja2.ext.loopcontrols])
  environment.add_filter("tojson", tojson)
  environment.globals["raise_exception"] = raise_exception
  environment.globals["strftime_now"] = strftime_now
  try:
    return environment.from_string(source)
  except jinja2.TemplateSyntaxError as error:
    raise UserError(
      f"the chat template is broken at line {error.lineno}: {error.message}. Correct it."
    ) from None
  except TooMuch as error:
    raise _too_much("the chat template", error) from None
  except (
    SyntaxError,
    RecursionError,
    MemoryError,
    ValueError,
  ) as error:  # of Python, which runs it
    raise UserError(
      f"the chat template cannot be compiled ({type(error).__name__}: {error}). Nest it less deeply."
    ) from None


def _too_much(what: str, error: Exception) -> UserError:
  return UserError(
    f"{what} asks for too much: {error}. Correct it, or give another template in "
    "tokenizer.chat_template."
  )


@functools.lru_cache(maxsize=64)
def _globals(source: str, date: str) -> dict:
  return dict(_compile(source, date).globals)


_tracking = contextvars.ContextVar("tracking", default=None)


class _Generation(jinja2.ext.Extension):
  """{% generation %} ... {% endgeneration %}: notes where in the text the block stands."""

  tags = {"generation"}

  def parse(self, parser):
    line = next(parser.stream).lineno
    body = parser.parse_statements(["name:endgeneration"], drop_needle=True)
    return jinja2.nodes.CallBlock(self.call_method("_note"), [], [], body).set_lineno(line)

  def _note(self, caller):
    text = caller()
    if (tracking := _tracking.get()) is not None:
      pieces, spans = tracking
      start = sum(map(len, pieces))
      spans.append((start, start + len(text)))
    return text


def _render_tracked(template, context, shared, spans) -> str:
  pieces = []
  token = _tracking.set((pieces, spans))
  try:
    return sandbox.render(template, context, shared, pieces, at_once=1)
  finally:
    _tracking.reset(token)
