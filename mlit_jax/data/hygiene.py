"""What may be wrong with a training row, each counted under a reason of its own.

  hygiene = make_hygiene({"overlap": "drop"}, held_out)
  hygiene.flags(conversation)             -> ("overlap 13-gram", "wrong script")
  hygiene.dropped("overlap 13-gram")      -> True: the row goes; what is only reported stays

A policy is off, report or drop. Rows are judged one by one, in any process, and alike in each; near
duplicates are found among the signatures of all rows.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import importlib.metadata
from collections.abc import Iterable, Mapping

import numpy as np

from mlit_jax.data import near
from mlit_jax.data.characters import has_control_characters, says_nothing
from mlit_jax.data.foreign import cost_of_languages, in_other_language, in_other_script
from mlit_jax.data.near import near_duplicates
from mlit_jax.data.overlap import HeldOut, make_held_out
from mlit_jax.data.rows import Conversation
from mlit_jax.errors import UserError

__all__ = ["REASONS", "Hygiene", "make_hygiene", "near_duplicates"]

VERSION = 1  # of what the checks find; part of the fingerprint
POLICIES = ("off", "report", "drop")
DEFAULTS = {
  "near_duplicates": "off",
  "overlap": "report",
  "wrong_script": "report",
  "wrong_language": "report",
  "control_characters": "report",
  "empty_answers": "report",
}
REASONS = {  # in the order of flags, and whose policy it is
  "empty answer": "empty_answers",
  "control characters": "control_characters",
  "overlap exact": "overlap",
  "overlap 13-gram": "overlap",
  "wrong script": "wrong_script",
  "wrong language": "wrong_language",
  "near duplicate": "near_duplicates",
}
LANGUAGE_JUDGED = "language judged"  # no reason: of how many rows "wrong language" could be found
# What is noted of a row while the cache is built, a bit each.
NOTES = {name: 1 << i for i, name in enumerate((*REASONS, LANGUAGE_JUDGED))}


@dataclasses.dataclass(frozen=True, eq=False)
class Hygiene:
  """Settings and what they need; pickles."""

  policies: dict[str, str]
  near_duplicate_similarity: float
  languages: tuple[str, ...]  # that rows and evaluation sets are in, as far as known
  held_out: HeldOut | None
  # Every how many rows the language is judged: all if wrong ones are dropped, else what costs little.
  language_every: int

  def flags(self, c: Conversation) -> tuple[str, ...]:
    """The reasons found on one row; "near duplicate" is not among them, see `signature`."""
    return tuple(name for name in self.notes(c) if name != LANGUAGE_JUDGED)

  def notes(self, c: Conversation) -> tuple[str, ...]:
    """The flags of one row, and LANGUAGE_JUDGED where the language of its answer was."""
    answers = [m.content for m in c.messages if m.role == "assistant"]
    found = []
    if self._on("empty_answers") and any(says_nothing(a) for a in answers):
      found.append("empty answer")
    if self._on("control_characters") and any(
      has_control_characters(m.content) for m in c.messages
    ):
      found.append("control characters")
    if self.held_out is not None and (overlap := self.held_out.overlap(c)):
      found.append(f"overlap {overlap}")
    if self._on("wrong_script") and any(in_other_script(a, c.lang) for a in answers):
      found.append("wrong script")
    # The longest answer of a row tells the most.
    if self.judges_language(c):
      foreign = in_other_language(max(answers, key=len), c.lang, self.languages)
      if foreign:
        found.append("wrong language")
      if foreign is not None:
        found.append(LANGUAGE_JUDGED)
    return tuple(found)

  def signature(self, c: Conversation) -> np.ndarray | None:
    """MinHash of the row's questions and answers, uint32 [near.SIGNATURE]; None: not asked for."""
    if not self._on("near_duplicates"):
      return None
    return near.signature((m.content for m in c.messages if m.role != "system"), c.lang)

  def judges_language(self, c: Conversation) -> bool:
    """Whether the row is among those whose language is judged: every `language_every`th by its id."""
    return self._on("wrong_language") and int(c.example_id[:8], 16) % self.language_every == 0

  def dropped(self, flag: str) -> bool:
    """Whether rows with this reason go; else they are only counted."""
    return self.policies[REASONS[flag]] == "drop"

  @property
  def language_judged_every(self) -> int:
    """One row in how many is judged by its language; 0: none."""
    return self.language_every if self._on("wrong_language") else 0

  def only_dropping(self) -> Hygiene:
    """Without what only reports: it decides which rows there are, and nothing else."""
    policies = {k: p if p == "drop" else "off" for k, p in self.policies.items()}
    by_language = policies["wrong_language"] == "drop"
    return dataclasses.replace(
      self,
      policies=policies,
      near_duplicate_similarity=self.near_duplicate_similarity
      if policies["near_duplicates"] == "drop"
      else 0.0,
      languages=self.languages if by_language else (),
      held_out=self.held_out if policies["overlap"] == "drop" else None,
      language_every=self.language_every if by_language else 1,
    )

  def fingerprint(self) -> str:
    """Hex; changes with anything that can change a flag or a signature."""
    return self._fingerprint

  @functools.cached_property
  def _fingerprint(self) -> str:
    parts = [VERSION, sorted(self.policies.items()), self.near_duplicate_similarity]
    parts += [self.languages, self.language_every]
    parts += [
      importlib.metadata.version(name)
      for name, key in (
        ("rensa", "near_duplicates"),
        ("lingua-language-detector", "wrong_language"),
        ("language_data", "wrong_script"),
      )
      if self._on(key)
    ]
    digest = hashlib.blake2b(repr(parts).encode(), digest_size=16)
    if self.held_out is not None:
      for array in (self.held_out.prompts, self.held_out.wholes, self.held_out.grams):
        digest.update(f"{len(array)}:".encode() + array.tobytes())
    return digest.hexdigest()

  def _on(self, key: str) -> bool:
    return self.policies[key] != "off"


def make_hygiene(
  settings: Mapping[str, object],
  held_out: Iterable[Conversation] = (),
  *,
  languages: Iterable[str] = (),
) -> Hygiene:
  """Settings as under `data` in the config; other keys of it are left alone.

  held_out: the conversations of all evaluation sets. languages: those of the training data as far as
  they are known beforehand; an answer is told from these, from those of the evaluation sets, and from
  the languages that data drifts to (foreign.GUARDS).
  """
  policies = {key: settings.get(key, default) for key, default in DEFAULTS.items()}
  for key, policy in policies.items():
    if policy not in POLICIES:
      raise UserError(f"data.{key} is {policy!r}; expected one of {', '.join(POLICIES)}.")
  similarity = settings.get("near_duplicate_similarity", 0.8)
  if (
    isinstance(similarity, bool)
    or not isinstance(similarity, (int, float))
    or not (0.1 <= similarity <= 1)
  ):
    raise UserError(
      f"data.near_duplicate_similarity is {similarity!r}; expected a share of common 5-grams, from 0.3 "
      f"to 1, such as 0.8."
    )
  held_out = list(held_out)
  known = tuple(sorted({*languages, *(c.lang for c in held_out)}))
  every = 1 if policies["wrong_language"] == "drop" else cost_of_languages(known)
  wanted = policies["overlap"] != "off" and held_out
  return Hygiene(
    policies, float(similarity), known, make_held_out(held_out) if wanted else None, every
  )
