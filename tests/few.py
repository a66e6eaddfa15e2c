"""Cases of a test of which a few run in the fast suite, and the others with the slow tests."""

from collections.abc import Collection, Iterable

import pytest


def few(count: int, cases: Iterable) -> list:
  """Parameters for parametrize: all after the first `count` are marked slow."""
  params = [c if isinstance(c, tuple) else (c,) for c in cases]
  return [pytest.param(*p, marks=[pytest.mark.slow] * (i >= count)) for i, p in enumerate(params)]


def only(fast: Collection[str], names: Iterable[str]) -> list:
  """Parameters for parametrize: names that are not among the fast ones are marked slow."""
  names = list(names)
  assert set(fast) <= set(names), set(fast) - set(names)
  return [pytest.param(n, marks=[pytest.mark.slow] * (n not in fast)) for n in names]
