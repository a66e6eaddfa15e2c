"""What one render of a chat template may take, and the checks before something longer is made."""

from __future__ import annotations

import itertools
import re
import time

import jinja2
import jinja2.runtime

SECONDS = 2.0  # of processor time, for one render
# A render may be as long as this and so many times what goes in.
LEAST_CHARACTERS, GROWTH = 1 << 20, 8
# All that is made on the way may be as long as this and so many times what goes in: it may be held at once.
LEAST_MADE, MADE_GROWTH = 512 << 20, 64
MOST_BITS = 4096  # of a whole number
FREE_STEPS = 4096  # between two looks at the clock
SMALL = 4096  # characters: texts up to this are not counted
CONTAINERS = (list, tuple, dict, set, frozenset)
MULTIPLYING = frozenset(
  ("center", "ljust", "rjust", "zfill", "expandtabs", "replace", "join", "format", "format_map", "translate")
)  # fmt: skip


class TooMuch(jinja2.TemplateError):
  """A template asks for more than a render may take."""


class Context(jinja2.runtime.Context):
  """The variables of one render, and what it may still take."""

  limit = LEAST_CHARACTERS  # of any value, and of all that is written
  left = FREE_STEPS
  made = LEAST_MADE
  until: float | None = None
  measured = False

  def charge(self, steps: int) -> None:
    self.left -= steps
    if self.left < 0:
      self._look_at_the_clock()

  def _look_at_the_clock(self) -> None:
    now = time.thread_time()  # of this thread: a busy machine refuses no row
    if self.until is None:
      self.until = now + SECONDS
    elif now > self.until:
      raise TooMuch(f"it takes more than {SECONDS:g} s of processor time")
    self.left = FREE_STEPS

  def check(self, value) -> None:
    """Refuse what is longer than a render may be."""
    if isinstance(value, (str, bytes)):
      size = len(value)
      if size > SMALL:
        self.check_size(size, "a text")
        self._note_made(size)
    elif isinstance(value, int):
      if value.bit_length() > MOST_BITS:
        raise TooMuch(f"a whole number of {value.bit_length():,} bits")
    elif isinstance(value, CONTAINERS):
      self._note_made(self.size(value))

  def size(self, value) -> int:
    """Parts and characters of all that hangs from a list, what hangs there twice twice: so it would be written."""
    size, waiting = 0, [value]
    while waiting:
      item = waiting.pop()
      size += len(item) + 1
      self.check_size(size, "a list")
      for part in itertools.chain(item, item.values()) if isinstance(item, dict) else item:
        if isinstance(part, (str, bytes)):
          size += len(part)
        elif isinstance(part, CONTAINERS):
          waiting.append(part)
    return size

  def check_size(self, size: int, what: str = "a text or list") -> None:
    if size > self.limit:
      self._know_what_goes_in()
      if size > self.limit:
        raise TooMuch(f"{what} of {size:,} characters, where {self.limit:,} are allowed")

  def _know_what_goes_in(self) -> None:
    """Most rows are so short that their length need not be known."""
    if self.measured:
      return
    characters = sum(len(message["content"]) for message in self.parent["messages"])
    self.limit = LEAST_CHARACTERS + GROWTH * characters
    self.made += MADE_GROWTH * characters
    self.measured = True

  def _note_made(self, size: int) -> None:
    self.made -= size
    if self.made < 0:
      self._know_what_goes_in()
    if self.made < 0:
      raise TooMuch("it makes too many long texts")
    self.charge(size >> 10)


def check_argument(context: Context, value) -> None:
  if isinstance(value, int) and abs(value) > context.limit:  # it may be a width
    raise TooMuch("a whole number beyond all widths")
  context.check(value)


def check_operation(context: Context, operator: str, left, right) -> None:
  if operator == "%":
    if isinstance(left, (str, bytes)):
      check_format(context, left, right if isinstance(right, (tuple, dict)) else (right,))
    return
  number = isinstance(left, int), isinstance(right, int)
  if operator == "**":
    if all(number) and abs(left).bit_length() * abs(right) > MOST_BITS:
      raise TooMuch(f"a whole number of more than {MOST_BITS:,} bits")
  elif all(number):
    if left.bit_length() + right.bit_length() > MOST_BITS:
      raise TooMuch(f"a whole number of more than {MOST_BITS:,} bits")
  elif any(number):
    times, what = (left, right) if number[0] else (right, left)
    if isinstance(what, (str, bytes)):
      context.check_size(times * len(what))
    elif isinstance(what, CONTAINERS):
      context.check_size(times * context.size(what))


def check_format(context: Context, form, args) -> None:
  """A field may be as wide as any number that stands in the form or is given to it."""
  values = list(args.values()) if isinstance(args, dict) else list(args)
  written = re.findall(rb"\d+" if isinstance(form, bytes) else r"\d+", form)
  if any(len(digits) > 9 for digits in written):
    raise TooMuch("a whole number beyond all widths")
  widths = [int(digits) for digits in written]
  widths += [abs(value) for value in values if isinstance(value, int)]
  fields = form.count(b"%" if isinstance(form, bytes) else "%") + form.count(
    b"{" if isinstance(form, bytes) else "{"
  )
  longest = max((len(v) for v in values if isinstance(v, (str, bytes))), default=0)
  for value in values:
    context.check(value)
  context.check_size(fields * (longest + (max(widths, default=0) if fields else 0)))


def check_multiplying(context: Context, name: str, text, args, kwargs) -> None:
  """The methods of texts whose result is longer than all they are given."""
  if name == "replace":
    check_replace(context, text, *(list(args) + list(kwargs.values()))[:2])
  elif name == "join":
    check_join(context, text, args[0] if args else ())
  elif name == "expandtabs":
    width = next(iter((*args, *kwargs.values())), 8)
    context.check_size(text.count(b"\t" if isinstance(text, bytes) else "\t") * abs(width))
  elif name in ("format", "format_map"):
    check_format(context, text, (*args, *kwargs.values()))
  elif name == "translate":
    table = args[0] if args else {}
    values = table.values() if isinstance(table, dict) else ()
    longest = max((len(v) for v in values if isinstance(v, str)), default=1)
    context.check_size(len(text) * longest)


def check_replace(context: Context, text, old="", new="") -> None:
  if not isinstance(old, str) or not isinstance(new, str):
    return  # the method says what is wrong
  text = str(text) if not isinstance(text, str) else text
  context.check_size(len(text) + text.count(old) * len(new))


def check_join(context: Context, separator, parts) -> None:
  if isinstance(parts, (list, tuple, dict, str)):
    context.check_size(len(parts) * len(separator))
    context.check(parts)
