"""What judging by an endpoint will take, by a stated rule, before the first call."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable

from mlit_jax.errors import UserError

RULE = "a token for 4 ASCII characters and one for every other character"


@dataclasses.dataclass(frozen=True)
class Prices:
  """Per million tokens, in whatever money."""

  tokens_in: float
  tokens_out: float

  def __post_init__(self):
    for name, price in (("in", self.tokens_in), ("out", self.tokens_out)):
      if not 0 <= price < float("inf"):
        raise UserError(f"--price_{name} is {price}; it must be 0 or more per million tokens.")

  def of(self, tokens_in: int, tokens_out: int) -> float:
    return (tokens_in * self.tokens_in + tokens_out * self.tokens_out) / 1e6


@dataclasses.dataclass(frozen=True)
class Estimate:
  """Calls without repeats; tokens_out if every reply were as long as it may be."""

  calls: int
  tokens_in: int
  tokens_out: int
  cost: float | None

  def text(self) -> str:
    """A line to decide by."""
    cost = "" if self.cost is None else f", at most {self.cost:.4g} at the given prices"
    return (
      f"{self.calls:,} calls, about {self.tokens_in:,} tokens to read ({RULE}), at most "
      f"{self.tokens_out:,} to write{cost}; unreadable replies and failures are repeated on top"
    )


def estimate(conversations, *, max_new_tokens: int, prices: Prices | None) -> Estimate:
  """Of conversations that are yet to be had."""
  calls = len(conversations)
  tokens_in = sum(tokens_of(m["content"] for m in messages) for messages in conversations)
  tokens_out = calls * max_new_tokens
  cost = prices.of(tokens_in, tokens_out) if prices else None
  return Estimate(calls, tokens_in, tokens_out, cost)


def tokens_of(texts: Iterable[str]) -> int:
  """Tokens by RULE."""
  total = 0
  for text in texts:
    ascii_characters = sum(1 for character in text if character.isascii())
    total += -(-ascii_characters // 4) + len(text) - ascii_characters
  return total
