"""Does a training row show what an evaluation set asks?"""

import dataclasses
from collections.abc import Iterable, Sequence

import numpy as np

from mlit_jax.data.ngrams import gram_hashes, text_hash, unit_hashes
from mlit_jax.data.rows import Conversation, Message

GRAM = 13  # units: words, or characters of scripts without spaces
SHARED = 10  # a gram of more held-out rows than this is the task's wording, not its content


@dataclasses.dataclass(frozen=True, eq=False)
class HeldOut:
  """Hashes of everything that the evaluation sets hold, each array sorted. Languages are mixed."""

  prompts: np.ndarray  # uint64, what stands before a row's last answer
  wholes: np.ndarray  # uint64, whole rows
  grams: np.ndarray  # uint64, of questions and answers

  def overlap(self, c: Conversation) -> str | None:
    """ "exact", "13-gram" or None. A system text alone never overlaps."""
    if self._is_exact(c):
      return "exact"
    spoken = _spoken(c.messages)
    if any(_any_in(gram_hashes(unit_hashes(m.content), GRAM), self.grams) for m in spoken):
      return "13-gram"
    return None

  def _is_exact(self, c):
    """Whether any of its prompts is one of theirs, or the row as a whole, whoever says what in it."""
    spoken = _spoken(c.messages)
    prompts = [
      _hash_of(spoken[:i]) for i, message in enumerate(spoken) if message.role == "assistant"
    ]
    return _any_in(np.array(prompts, np.uint64), self.prompts) or _any_in(
      np.array([_hash_of(c.messages)], np.uint64), self.wholes
    )


def make_held_out(conversations: Iterable[Conversation]) -> HeldOut:
  """The hashes of evaluation sets, whose rows may repeat."""
  seen, prompts, wholes, grams = set(), [], [], []
  for c in conversations:
    if c.example_id in seen:
      continue
    seen.add(c.example_id)
    spoken = _spoken(c.messages)
    prompts.append(_hash_of(spoken[:-1]))
    wholes.append(_hash_of(c.messages))
    grams.append(
      np.unique(np.concatenate([gram_hashes(unit_hashes(m.content), GRAM) for m in spoken]))
    )
  found, rows = np.unique(np.concatenate([*grams, _NONE]), return_counts=True)
  return HeldOut(
    np.unique(np.array(prompts, np.uint64)),
    np.unique(np.array(wholes, np.uint64)),
    found[rows <= SHARED],
  )


_NONE = np.zeros(0, np.uint64)


def _spoken(messages: Sequence[Message]) -> list[Message]:
  return [m for m in messages if m.role != "system"]


def _hash_of(messages: Sequence[Message]) -> int:
  return text_hash(*(m.content for m in messages))


def _any_in(values: np.ndarray, members: np.ndarray) -> bool:
  if not len(values) or not len(members):
    return False
  places = np.searchsorted(members, values)
  return bool((members[np.minimum(places, len(members) - 1)] == values).any())
