"""Items -> records: answers written and judged, choices compared by likelihood."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from mlit_jax.data.evalset import EvalSet, make_scored_set
from mlit_jax.data.tokenizer import Tokenizer
from mlit_jax.errors import UserError
from mlit_jax.evals.suites.suite import Item, Suite
from mlit_jax.evals.summary import Record


def prompt_text(suite: Suite, item: Item, tokenizer: Tokenizer) -> str:
  """What the model reads before it answers or a choice is put after it."""
  messages = [dataclasses.asdict(m) for m in item.messages]
  if suite.chat:
    return tokenizer.template.prompt(messages, place=f"{suite.name} {item.lang}/{item.id}")
  bos = tokenizer.special_tokens.get("bos_token", "")
  begins = tokenizer.bos_id in tokenizer.engine.framing or tokenizer.template.opening().startswith(
    bos
  )
  return (bos if begins else "") + "\n\n".join(m["content"] for m in messages)


# --- choices


@dataclasses.dataclass(frozen=True)
class Choices:
  """Every choice of every item as a row to be scored: its prompt, and itself as what counts."""

  rows: EvalSet
  items: Sequence[Item]
  first: np.ndarray  # int64 [items + 1], row of the first choice of each item
  sizes: np.ndarray  # int64 [rows], UTF-8 bytes of each choice


def encode_choices(suite: Suite, tokenizer: Tokenizer, max_length: int) -> Choices:
  """Rows for the likelihood of each choice.

  What counts are the tokens that overlap the choice's characters, the end of the turn not among them. A
  prompt that is too long loses its beginning, for all of its choices alike.
  """
  texts, spans, ends = [], [], [0]
  for item in suite.items:
    prompt = prompt_text(suite, item, tokenizer)
    for choice in item.choices:
      texts.append(prompt + choice)
      start = len(prompt) + len(choice) - len(choice.lstrip())
      spans.append([(start, len(prompt) + len(choice))])
    ends.append(len(texts))
  marked = tokenizer.encode_marked(texts, spans)
  first = np.array(ends)
  kept = []
  for item, a, b in zip(suite.items, first[:-1].tolist(), first[1:].tolist(), strict=True):
    over = max(len(ids) for ids, _ in marked[a:b]) - max_length
    for ids, mask in marked[a:b]:
      # The first token stays: where it is the beginning of all texts, models do badly without it.
      cut = slice(1 + over, None) if over > 0 else slice(1, None)
      ids, mask = np.concatenate([ids[:1], ids[cut]]), np.concatenate([[False], mask[cut]])
      if not mask.any():
        raise UserError(
          f"{suite.name} {item.lang}/{item.id}: a choice is longer than the {max_length} tokens of a row"
        )
      kept.append((ids, mask))
  rows = make_scored_set(suite.name, kept, max_length)
  sizes = [len(c.strip().encode()) for item in suite.items for c in item.choices]
  return Choices(rows, suite.items, first, np.array(sizes))


def choice_records(choices: Choices, scores: dict[int, tuple[float, float]]) -> list[Record]:
  """Whether the right choice is the likeliest: as it is, and per byte of the choice.

  accuracy: the largest log likelihood of all tokens of the choice. accuracy_per_byte: of that divided by the
  UTF-8 bytes of the choice, so that long ones are at no disadvantage, nor depends it on the tokenizer. Both
  are the same for letters. Where two are equally likely, nobody chose: that is a miss.
  """
  out = []
  for i, item in enumerate(choices.items):
    rows = range(int(choices.first[i]), int(choices.first[i + 1]))
    nll = np.array([scores[row][0] for row in rows])
    sizes = choices.sizes[rows.start : rows.stop]
    out.append(
      Record(
        set=choices.rows.name,
        lang=item.lang,
        example_id=item.id,
        group_id=item.group_id,
        scores={
          "accuracy": _is_least(nll, item.answer),
          "accuracy_per_byte": _is_least(nll / np.maximum(1, sizes), item.answer),
        },
      )
    )
  return out


def _is_least(values: np.ndarray, right: int) -> bool:
  others = np.delete(values, right)
  return bool(np.isfinite(values[right]) and (values[right] < others).all())


# --- answers


def answer_records(suite: Suite, items: Sequence[Item], completions, tokenizer) -> list[Record]:
  """Records of written answers, with the suite's own scores; fidelity and chrF are added by score_responses."""
  out = []
  for item, done in zip(items, completions, strict=True):
    response = done.written(tokenizer.decode)
    scores = dict(suite.score(item, response)) if suite.score else {}
    _check_scores(suite, item, scores)
    wants_reference = {"chrf", "exact"} & set(suite.measure)
    out.append(
      Record(
        set=suite.name,
        lang=item.lang,
        example_id=item.id,
        group_id=item.group_id,
        prompt=item.prompt,
        response=response,
        response_tokens=len(done.tokens),
        stopped=done.stopped if "stopped" in suite.measure else None,
        reference=item.answer if wants_reference and isinstance(item.answer, str) else None,
        scores=scores,
      )
    )
  return out


def _check_scores(suite: Suite, item: Item, scores: dict) -> None:
  for name, value in scores.items():
    if not isinstance(value, (bool, int, float, np.floating, np.bool_)):
      raise UserError(
        f"the suite {suite.name} scores {item.lang}/{item.id} {name} = {value!r}; a score is true, false or a number"
      )
