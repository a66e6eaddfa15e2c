"""Stop strings: where a text ends that grows token by token."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from mlit_jax.errors import UserError

PARTIAL = "\ufffd"  # what a decoder shows of a character whose bytes are not all there


def check_stop_texts(stop_texts: Sequence[str]) -> tuple[str, ...]:
  if isinstance(stop_texts, str) or not all(isinstance(s, str) and s for s in stop_texts):
    raise UserError(f"the stop strings are {stop_texts!r}; each must be a text that is not empty.")
  return tuple(stop_texts)


def cut(
  tokens: Sequence[int],
  decode: Callable[[Sequence[int]], str],
  stop_texts: Sequence[str],
  *,
  known: int = 0,
) -> tuple[int, str] | None:
  """(number of tokens, text) of the answer, where a stop string ends it; None where none does.

      tokens "One", ".\\n", "\\nTwo", stop string "\\n\\n"     (2, "One.")

  The answer ends with the first token that completes a stop string, and its text before the earliest one
  that is complete then, so it does not matter how many tokens more are known. Its tokens are the fewest
  that spell the text. The first `known` tokens are known to complete none.
  """
  if not _found(_whole(decode(tokens)), stop_texts):
    return None
  few, many = known, len(tokens)  # `few` complete none, `many` do
  while many - few > 1:
    half = (few + many) // 2
    if _found(_whole(decode(tokens[:half])), stop_texts):
      many = half
    else:
      few = half
  text = _whole(decode(tokens[:many]))
  text = text[: min(text.find(s) for s in stop_texts if s in text)]
  spelled = many
  while spelled and _whole(decode(tokens[: spelled - 1])).startswith(text):
    spelled -= 1
  return spelled, text


class GrowingText:
  """A text in pieces of whole characters, as its tokens come; ends before a stop string.

  A piece that may turn out to be the beginning of a stop string waits until that is known.
  """

  def __init__(self, decode: Callable[[Sequence[int]], str], stop_texts: Sequence[str] = ()):
    self.decode, self.stop_texts = decode, check_stop_texts(stop_texts)
    self.tokens: list[int] = []
    self.shown, self.stopped = "", False

  def add(self, token: int) -> str:
    """What can be shown now; `stopped` says that nothing comes after it."""
    self.tokens.append(token)
    ended = self.stop_texts and cut(
      self.tokens, self.decode, self.stop_texts, known=len(self.tokens) - 1
    )
    if ended:
      self.stopped = True
      return self._show(ended[1])
    text = self.decode(self.tokens)
    return "" if text.endswith(PARTIAL) else self._show(text[: len(text) - self._waiting(text)])

  def rest(self) -> str:
    """What is left when no token follows."""
    return "" if self.stopped else self._show(self.decode(self.tokens))

  def _show(self, text: str) -> str:
    piece = text[len(self.shown) :]
    self.shown += piece
    return piece

  def _waiting(self, text: str) -> int:
    """How many characters at the end may begin a stop string."""
    longest = max(map(len, self.stop_texts), default=0)
    for size in range(min(longest - 1, len(text)), 0, -1):
      if any(s.startswith(text[-size:]) for s in self.stop_texts):
        return size
    return 0


def _found(text: str, stop_texts: Sequence[str]) -> bool:
  return any(s in text for s in stop_texts)


def _whole(text: str) -> str:
  return text.rstrip(PARTIAL)
