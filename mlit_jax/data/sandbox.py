"""Jinja for chat templates: sandboxed, and bounded in time, memory and output whatever the template does.

A template comes with the model, from whoever made it. Signals would not do, since rows are rendered in threads and
in worker processes, so the template itself is compiled with checks where work or values can grow:

  every loop and call     costs steps; the clock is read once in a while (SECONDS of processor time for a render)
  every value that is     has a length (a text: of characters; a list: of all that hangs from it) up to the limit of
  kept or passed on       the render, LEAST_CHARACTERS + GROWTH x what goes in
  * ** %                  are refused before a giant is made, and so are the filters and methods that multiply
  + ~                     at most MOST_OPERANDS in one expression, whose result is then kept, passed on or written
  what is written         is counted as it comes

A usual template pays for its loops and little else.
"""

from __future__ import annotations

import functools
import inspect
import itertools
from collections.abc import Callable, Iterable, Iterator

import jinja2
import jinja2.ext
import jinja2.runtime
import jinja2.sandbox

from mlit_jax.data.render_limits import (
  FREE_STEPS,
  MULTIPLYING,
  SMALL,
  Context,
  TooMuch,
  check_argument,
  check_format,
  check_multiplying,
  check_operation,
  check_replace,
)
from mlit_jax.data.template_checks import KEPT, OVER, with_checks

MOST_SOURCE_CHARACTERS = 256 << 10  # of a template; the longest published ones have 60,000
MOST_IN_A_BLOCK = 128 << 20  # characters of a block, a macro or a {% set %} block
PIECES = 64  # of the output, counted together
# Of no use to a chat, slow or by chance: a render is a function of its conversation.
REMOVED_FILTERS = ("random", "urlize", "xmlattr", "wordwrap", "pprint", "striptags")
REMOVED_GLOBALS = ("lipsum",)
# Those that give no more than they get, and do not look into lists.
HARMLESS_FILTERS = (
  "select", "reject", "selectattr", "rejectattr", "map",  # who goes through what they give pays for it
  "trim", "length", "count", "first", "last", "default", "d", "int", "float", "abs", "items", "safe", "attr",
)  # fmt: skip
BUILTIN_METHOD, FUNCTION = type("".center), type(lambda: None)


class Environment(jinja2.sandbox.ImmutableSandboxedEnvironment):
  """The sandbox of transformers with these limits."""

  context_class = Context
  intercepted_binops = frozenset(["*", "**", "%"])

  def __init__(self, **options):
    super().__init__(trim_blocks=True, lstrip_blocks=True, **options)
    for name in REMOVED_GLOBALS:
      del self.globals[name]
    for name in REMOVED_FILTERS:
      del self.filters[name]
    for name, function in self.filters.items():
      if name not in HARMLESS_FILTERS:
        self.filters[name] = _guarded(name, function)
    self.filters |= {KEPT: _kept, OVER: _over, "list": _list}
    self.concat = _concat

  def add_filter(self, name: str, function: Callable) -> None:
    self.filters[name] = _guarded(name, function)

  def _parse(self, source, name, filename):
    if len(source) > MOST_SOURCE_CHARACTERS:
      raise TooMuch(f"it has {len(source):,} characters; {MOST_SOURCE_CHARACTERS:,} are allowed")
    return with_checks(super()._parse(source, name, filename))

  def call_binop(self, context, operator, left, right):
    if operator == "%" and left.__class__ is int:
      return left % right
    check_operation(context, operator, left, right)
    return super().call_binop(context, operator, left, right)

  def call(self, context, obj, /, *args, **kwargs):
    context.left -= 16
    if context.left < 0:
      context.charge(0)
    for value in args:
      if value.__class__ is not str or len(value) > SMALL:
        check_argument(context, value)
    for value in kwargs.values():
      check_argument(context, value)
    kind = obj.__class__
    # The sandbox puts a function of its own before str.format.
    method = obj.__dict__.get("__wrapped__", obj) if kind is FUNCTION else obj
    if method.__class__ is BUILTIN_METHOD and method.__name__ in MULTIPLYING:
      check_multiplying(context, method.__name__, method.__self__, args, kwargs)
    if not self.is_safe_callable(obj):
      raise jinja2.sandbox.SecurityError(f"{obj!r} is not safely callable")
    out = context.call(obj, *args, **kwargs)
    if out.__class__ is not str or len(out) > SMALL:
      context.check(out)
    return out


def render(
  template: jinja2.Template,
  variables: dict,
  shared: dict,
  written: list[str],
  at_once: int = PIECES,
) -> str:
  """What the template writes. `variables` hold the messages, `shared` are the template's globals, laid out once.

  `written` gets the pieces, `at_once` together.
  """
  # As Template.render does, but with the globals laid out once, which took most of its time.
  context = jinja2.runtime.new_context(
    template.environment, template.name, template.blocks, shared | variables, True, shared
  )
  pieces = template.root_render_func(context)
  size, more = 0, True
  while more:
    some = list(itertools.islice(pieces, at_once))
    more = len(some) == at_once
    written += some
    if more:
      size += sum(map(len, some))
      context.check_size(size, "an output")
  text = "".join(written)
  if len(text) > context.limit:
    context.check_size(len(text), "an output")
  return text


# --- the checks in a render


@jinja2.pass_context
def _kept(context, value):
  if value.__class__ is not str or len(value) > SMALL:
    context.check(value)
  return value


@jinja2.pass_context
def _over(context, value, weight, may_grow):
  """What a loop goes over; a step costs as much as its body is long."""
  if may_grow:
    context.check(value)
  try:
    steps = len(value) * weight
  except TypeError:
    return _counted(value, weight, context) if isinstance(value, Iterable) else value
  if 0 <= steps < FREE_STEPS:
    context.left -= steps
    if context.left < 0:
      context.charge(0)
    return value
  return _Counted(value, weight, context)


@jinja2.pass_context
def _list(context, value):
  out = list(value)
  if len(out) > 64:
    context.check(out)
  return out


class _Counted:
  """A list whose steps are paid for one by one."""

  def __init__(self, value, weight: int, context: Context):
    self.value, self.weight, self.context = value, weight, context

  def __len__(self):
    return len(self.value)

  def __iter__(self):
    return _counted(self.value, self.weight, self.context)


def _counted(value: Iterable, weight: int, context: Context) -> Iterator:
  weight = max(1, weight)
  for item in value:
    context.charge(weight)
    yield item


def _concat(parts: Iterable[str]) -> str:
  """Of a block, a macro or a {% set %} block. It knows no render, so the limit is that of the longest row."""
  parts = list(parts)
  size = sum(map(len, parts))
  if size > MOST_IN_A_BLOCK:
    raise TooMuch(f"a block of {size:,} characters")
  return "".join(parts)


# --- filters


_PASSED = {
  "context": lambda context: context,
  "eval_context": lambda context: context.eval_ctx,
  "environment": lambda context: context.environment,
}


def _guarded(name: str, function: Callable) -> Callable:
  """The filter with its arguments and its result checked; never run while a template is compiled."""
  passed = getattr(function, "jinja_pass_arg", None)
  kind = passed.name if passed is not None else None
  before = _BEFORE.get(name)

  @functools.wraps(function)
  def guarded(context, value, *args, **kwargs):
    context.charge(4)
    for argument in (*args, *kwargs.values()):
      check_argument(context, argument)
    if before is not None:
      value = before(context, value, *args, **kwargs)
    else:
      value = _bounded(context, value)
    given = () if kind is None else (_PASSED[kind](context),)
    out = function(*given, value, *args, **kwargs)
    if inspect.isgenerator(out):
      return _counted(out, 4, context)
    context.check(out)
    return out

  return jinja2.pass_context(guarded)


def _bounded(context: Context, value):
  """A value that a filter may go through: what comes one by one is paid for one by one."""
  if isinstance(value, (str, bytes)):
    context.check(value)
    return value
  if isinstance(value, (list, tuple, dict)):
    context.charge(len(value))
    context.check(value)
    return value
  if isinstance(value, range):
    context.charge(len(value))
    return value
  return _counted(value, 4, context) if isinstance(value, Iterator) else value


def _before_replace(context, value, old="", new="", count=None):
  context.check(value)
  check_replace(context, value if isinstance(value, str) else str(value), str(old), str(new))
  return value


def _before_join(context, value, d="", attribute=None):
  parts, size = [], 0
  for item in _counted(value, 4, context):
    context.check(item)
    size += len(str(d)) + (len(item) if isinstance(item, str) else 1)
    context.check_size(size)
    parts.append(item)
  return parts


def _before_indent(context, value, width=4, first=False, blank=False):
  wide = len(width) if isinstance(width, str) else abs(width)
  text = str(value)
  context.check_size(len(text) + (1 + len(text.splitlines())) * wide)
  return value


def _before_tojson(
  context, value, ensure_ascii=False, indent=None, separators=None, sort_keys=False
):
  context.check(value)
  for wide in (indent, *(separators or ())):
    if (len(wide) if isinstance(wide, str) else abs(wide or 0)) > 64:
      raise TooMuch("tojson with an indent or a separator of more than 64 characters")
  return value


def _before_sum(context, value, attribute=None, start=0):
  parts = list(_counted(value, 4, context))
  if not isinstance(start, (int, float)) and len(parts) > 1000:
    raise TooMuch("a sum of more than 1,000 lists")
  context.check(parts)
  return parts


def _before_format(context, value, *args, **kwargs):
  check_format(context, str(value), (*args, *kwargs.values()))
  return value


_BEFORE = {
  "replace": _before_replace,
  "join": _before_join,
  "indent": _before_indent,
  "tojson": _before_tojson,
  "format": _before_format,
  "sum": _before_sum,
}
