"""Keys, tokens and passwords taken out of text that others may read: messages, logs, configs, cards, pages."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping

HIDDEN = "***"
SHORTEST = 8  # characters of a secret in the environment; less may be a word
# Environment variables by what they are called: HF_TOKEN, WANDB_API_KEY, OPENAI_API_KEY, MY_JUDGE_KEY ...
NAMES = re.compile(r"(?i)(?:^|_)(?:TOKEN|KEY|SECRET|PASSWORD|PASSWD|PAT|CREDENTIALS?)$")
_SECRET = r"[\w.\-]*(?:token|key|secret|password|passwd|signature|credential|auth|sig)"
PATTERNS = (
  # https://user:password@host, https://token@host
  (re.compile(r"(\b[a-zA-Z][a-zA-Z0-9+.\-]{1,20}://)[^\s/?#@'\"<>]{1,2000}@"), rf"\1{HIDDEN}@"),
  # ?token=..., &X-Amz-Signature=...
  (re.compile(rf"(?i)([?&;]{_SECRET}=)[^&#\s'\"<>]+"), rf"\1{HIDDEN}"),
  (re.compile(r"(?i)\b(Bearer|Basic)(\s+)[A-Za-z0-9._~+/\-]{8,}=*"), rf"\1\2{HIDDEN}"),
  # Keys that their issuers mark.
  # No shorter: sk is Slovak, and files are called hf_something.
  (re.compile(r"\b(hf_|sk-|gh[pousr]_)[A-Za-z0-9]{30,}"), rf"\1{HIDDEN}"),
  (re.compile(r"\b(github_pat_|AIza)[A-Za-z0-9_\-]{30,}"), rf"\1{HIDDEN}"),
  (re.compile(r"\b(sk-(?:proj|ant|svcacct|or)-|xox[abpr]-)[A-Za-z0-9_\-]{16,}"), rf"\1{HIDDEN}"),
  (re.compile(r"\b(AKIA|ASIA)[A-Z0-9]{16}\b"), rf"\1{HIDDEN}"),
)  # fmt: skip


def redact(text: str) -> str:
  """The text without what looks like a key, and without every secret that the environment holds."""
  for pattern, instead in PATTERNS:
    text = pattern.sub(instead, text)
  for name, value in os.environ.items():
    if len(value) >= SHORTEST and NAMES.search(name) and value in text:
      text = text.replace(value, HIDDEN)
  return text


def redact_all(value):
  """A config or another nested value of plain types, each text in it redacted."""
  if isinstance(value, str):
    return redact(value)
  if isinstance(value, Mapping):
    return {redact_all(key): redact_all(item) for key, item in value.items()}
  if isinstance(value, list | tuple):
    return type(value)(redact_all(item) for item in value)
  return value
