"""What a user should know of rows before a run is paid for: each finding is one sentence with a remedy.

Nothing here stops a run: all of it can be meant.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import numpy as np

from mlit_jax.data.encoded import Encoded
from mlit_jax.data.figures import Figures
from mlit_jax.data.tokenizer import Tokenizer

MUCH_UNKNOWN = 0.001  # of the tokens of a language
MUCH_PARTIAL = 0.2
MUCH_TOO_LONG = 0.01  # of the rows of a language
WHOLE_SENTENCE = 12  # letters: a beginning with more is text, not the header of a turn
OPENING = 512  # tokens of a row in which a common beginning is looked for
ROLES = re.compile(
  r"\b(system|user|human|prompter|assistant|model|bot|gpt|instruction|question|input|response|answer)\b",
  re.IGNORECASE,
)


def findings(encoded: Encoded, figures: Figures, ledger: dict, tokenizer: Tokenizer) -> list[str]:
  """One line each; empty where nothing is conspicuous."""
  rows = {lang: of.rows for lang, of in figures.languages.items()}
  return [
    *_common_text(encoded, rows, tokenizer),
    *_date(tokenizer),
    *_spelling(figures),
    *_beginnings(encoded, rows, tokenizer),
    *_ends(encoded, rows, tokenizer),
    *_too_long(ledger),
  ]


def _common_text(encoded: Encoded, rows, tokenizer: Tokenizer) -> list[str]:
  """A text that the template writes where rows have none, or that all rows begin with."""
  out = []
  opening = tokenizer.template.opening()
  if _has_sentence(opening, tokenizer):
    # The last token may join with the question; without the first there is nothing to count.
    ids = np.array(tokenizer.encode_text(opening)[:-1], np.uint32)
    share, where = _begin_with(encoded, rows, ids)
    if share:
      out.append(
        f"the chat template writes a system text of its own into {share:.0%} of the rows ({where}): "
        f"{_quoted(opening)}. Give rows a system text of their language, or set tokenizer.chat_template to a "
        "template that writes none."
      )
      return out
  every = np.concatenate([*rows.values()])
  shared = _common_beginning(encoded, every) if len(every) > 1 else np.zeros(0, np.uint32)
  text = tokenizer.decode(shared, skip_special=False)
  if _has_sentence(text, tokenizer):
    out.append(
      f"every row begins with the same text: {_quoted(text)}. If that is not meant, take it out of the "
      "rows (their system text) or out of tokenizer.chat_template."
    )
  return out


def _date(tokenizer: Tokenizer) -> list[str]:
  if not tokenizer.template.prints_the_date():
    return []
  return [
    f"the chat template prints the date; every row has {tokenizer.template.date} (tokenizer.date), whoever "
    "serves the model has that day's. Set tokenizer.chat_template to a template without it, or mind it."
  ]


def _spelling(figures: Figures) -> list[str]:
  unknown = {lang: f.unknown for lang, f in figures.languages.items() if f.unknown > MUCH_UNKNOWN}
  partial = {lang: f.partial for lang, f in figures.languages.items() if f.partial > MUCH_PARTIAL}
  out = []
  if unknown:
    out.append(
      f"the vocabulary cannot write {_shares(unknown)} (share of tokens that are unknown): the model can neither "
      "read nor learn these. Choose a base model whose vocabulary has the script."
    )
  if partial:
    out.append(
      f"the vocabulary spells {_shares(partial)} byte by byte (share of tokens that are parts of a character): "
      "rows get long and the language is learnt slowly. Choose a base model whose vocabulary has it, if there is one."
    )
  return out


def _beginnings(encoded: Encoded, rows, tokenizer: Tokenizer) -> list[str]:
  bos = tokenizer.bos_id
  if bos is None or bos not in tokenizer.engine.framing:
    return []
  twice, none = {}, {}
  for lang, mine in rows.items():
    firsts = [encoded.tokens_of(row)[:2] for row in mine.tolist()]
    twice[lang] = np.mean([len(f) > 1 and f[0] == bos == f[1] for f in firsts])
    none[lang] = np.mean([f[0] != bos for f in firsts])
  name = tokenizer.special_tokens["bos_token"]
  out = []
  if any(twice.values()):
    out.append(
      f"rows begin with {name} twice ({_shares(_some(twice))}): both the chat template and the text write it. Take it "
      "out of one of them."
    )
  if any(none.values()):
    out.append(
      f"rows do not begin with {name} ({_shares(_some(none))}), which the tokenizer puts before every text, so the base "
      "model has never seen a text without it. Put {{ bos_token }} at the beginning of the chat template."
    )
  return out


def _ends(encoded: Encoded, rows, tokenizer: Tokenizer) -> list[str]:
  """Rows that do not end their last answer with a token that ends answers, or do not train on it."""
  missing = {}
  for lang, mine in rows.items():
    ids = [encoded.tokens_of(row)[encoded.trained_of(row) > 0] for row in mine.tolist()]
    missing[lang] = np.mean([i[-1] not in tokenizer.stop_ids for i in ids])
  if not any(missing.values()):
    return []
  return [
    f"the end of the answer is not trained in {_shares(_some(missing))} of the rows, so the model does not learn to stop "
    "there: their answers are cut (data.over_long = 'truncate_answer'; drop and truncate_prompt keep ends)."
  ]


def _too_long(ledger: dict) -> list[str]:
  """What a limit in tokens does to languages that take many."""
  shares = {}
  for lang, e in ledger["languages"].items():
    over = e["dropped"].get("over_long", 0) / max(1, e["rows_read"])
    cut = e["truncated"] / e["examples"] if e["examples"] else 0.0
    if max(over, cut) > MUCH_TOO_LONG:
      shares[lang] = max(over, cut)
  if not shares:
    return []
  return [
    f"rows longer than batch.max_length ({ledger['max_length']}) are dropped or cut: {_shares(shares)} of the rows. Raise "
    "it, or mind that long answers of these languages are missing."
  ]


# --- what rows begin with


def _begin_with(encoded: Encoded, rows: Mapping, ids: np.ndarray) -> tuple[float, str]:
  """The share of rows that begin with these tokens, and their languages in words."""
  found = {
    lang: [np.array_equal(encoded.tokens_of(row)[: len(ids)], ids) for row in mine.tolist()]
    for lang, mine in rows.items()
  }
  total = sum(map(len, found.values()))
  languages = [lang for lang, hits in found.items() if any(hits)]
  where = ", ".join(languages[:8]) + (
    f" and {len(languages) - 8} more" if len(languages) > 8 else ""
  )
  return sum(map(sum, found.values())) / max(1, total), where


def _common_beginning(encoded: Encoded, rows: np.ndarray) -> np.ndarray:
  """The tokens that all rows begin with."""
  shared = np.array(encoded.tokens_of(rows[0])[:OPENING])
  for row in rows[1:].tolist():
    ids = encoded.tokens_of(row)[: len(shared)]
    differ = np.flatnonzero(ids != shared[: len(ids)])
    shared = shared[: differ[0] if len(differ) else len(ids)]
    if not len(shared):
      break
  return shared


def _has_sentence(text: str, tokenizer: Tokenizer) -> bool:
  """Whether there is more than tokens of the template and names of roles."""
  return sum(map(str.isalpha, _plain(text, tokenizer))) >= WHOLE_SENTENCE


def _plain(text: str, tokenizer: Tokenizer) -> str:
  for token in sorted(tokenizer.engine.added, key=len, reverse=True):
    text = text.replace(token, " ")
  return ROLES.sub(" ", text)


# --- words


def _some(shares: Mapping[str, float]) -> dict[str, float]:
  return {lang: share for lang, share in shares.items() if share}


def _shares(shares: Mapping[str, float]) -> str:
  """sw 12 %, hi 3.4 %: the largest first, eight at most."""
  largest = sorted(shares.items(), key=lambda item: (-item[1], item[0]))
  text = ", ".join(f"{lang} {_percent(share)}" for lang, share in largest[:8])
  return text + (f" and {len(largest) - 8} more languages" if len(largest) > 8 else "")


def _percent(share: float) -> str:
  return f"{share:.0%}" if share >= 0.1 else f"{share:.1%}"


def _quoted(text: str, most: int = 200) -> str:
  text = " ".join(text.split())
  return repr(text if len(text) <= most else text[: most - 1] + "…")
