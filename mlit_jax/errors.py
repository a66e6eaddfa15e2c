"""Exceptions that end a command with one message."""

from mlit_jax.redaction import redact

LONGEST, KEPT_AT_THE_END = 3000, 800  # characters of a message, which may quote what it is about


class UserError(Exception):
  """A fault in config, data or files; its text names the value, the place and the remedy. Exit code 2."""

  def __str__(self) -> str:
    return _readable(super().__str__())


class MachineFault(Exception):
  """The machine has computed something wrong; its text says what, where and what to do. Exit code 1."""


class NotSaved(Exception):
  """What a run has trained is not on disk; its text says why and what is. Exit code 1."""

  def __str__(self) -> str:
    return _readable(super().__str__())


def _readable(text: str) -> str:
  """A message without the secrets in what it quotes, and not longer than anybody reads: the remedy stands at its end."""
  if len(text) > LONGEST:
    left = len(text) - LONGEST
    text = (
      f"{text[: LONGEST - KEPT_AT_THE_END]} [... {left:,} characters ...] {text[-KEPT_AT_THE_END:]}"
    )
  return redact(text)
