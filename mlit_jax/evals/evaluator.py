"""Evaluation of one set of parameters on every set and language: likelihood, answers, figures."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterable, Iterator, Sequence

import jax.numpy as jnp
from jax.sharding import Mesh

from mlit_jax.data.evalset import EvalSet
from mlit_jax.data.hashing import stable_hash
from mlit_jax.data.tokenizer import Tokenizer
from mlit_jax.detectors import open_detector
from mlit_jax.evals import likelihood, summary
from mlit_jax.evals.decoding import Completion, Generator
from mlit_jax.evals.suites.running import (
  Choices,
  answer_records,
  choice_records,
  encode_choices,
  prompt_text,
)
from mlit_jax.evals.suites.suite import Item, Suite
from mlit_jax.evals.summary import Record
from mlit_jax.model.config import DecoderConfig
from mlit_jax.runtime import main_says

SMALLEST_BUCKET = 32


class Evaluator:
  """Holds what compiles once: the score step, the generator, the detector."""

  def __init__(
    self,
    cfg: DecoderConfig,
    mesh: Mesh,
    tokenizer: Tokenizer,
    sets: Sequence[EvalSet],
    *,
    rows: int,
    max_new_tokens: int,
    temperature: float = 0.0,
    top_p: float = 1.0,
    seed: int = 0,
    dtype=jnp.bfloat16,
    languages: Sequence[str] = (),
    suites: Sequence[Suite] = (),
    max_length: int = 1024,
    max_seconds: float = 0.0,
    lid: str = "",
    lid_key: str = "--lid",
    beat: Callable[[], None] = lambda: None,
  ):
    """`languages`: what an answer may be in besides the languages of the sets, e.g. those trained on.

    `suites` are run besides the sets; `max_length` bounds their rows in tokens. lid: the detector, see
    open_detector; lid_key: where the user said it. max_seconds: of answering in one run, parted among sets
    and suites by their prompts (0: no limit); what is left out then stands in `cut`. beat: is called by all
    processes alike after each batch and each round of answers; what it raises ends the evaluation.
    """
    self.tokenizer, self.sets, self.rows, self.seed = tokenizer, sets, rows, seed
    self.sampling = dict(temperature=temperature, top_p=top_p, seed=seed)
    self.suites = [PreparedSuite.of(suite, tokenizer, max_length) for suite in suites]
    scored = [*sets, *(s.choices.rows for s in self.suites if s.choices)]
    self.num_segments = max((s.num_segments for s in scored), default=1)
    self.score_step = likelihood.make_score_step(cfg, mesh, self.num_segments, dtype)
    prompts = [q.tokens for s in sets for q in s.questions]
    prompts += [tokens for s in self.suites for tokens in s.prompts]
    self.generator = self.detector = None
    if prompts:
      self.generator = Generator(
        cfg,
        mesh,
        max_new_tokens=max(
          [max_new_tokens, *(s.suite.max_new_tokens for s in self.suites if s.prompts)]
        ),
        prompt_buckets=buckets(max(map(len, prompts))),
        rows=min(len(prompts), max(rows, 64)),
        dtype=dtype,
      )
      asked = {lang for s in sets for lang in s.encoded.languages}
      asked |= {item.lang for s in self.suites for item in s.asked}
      self.detector = open_detector(lid, sorted(asked | set(languages)), where=lid_key)
    self.max_new_tokens, self.beat = max_new_tokens, beat
    self.seconds_per_prompt = max_seconds / max(1, len(prompts))
    self.cut: list[str] = []

  def run(self, params, progress: Callable[[str], None] | None = None) -> tuple[dict, list[Record]]:
    """(summary, records); see evals/summary.py for both."""
    records = []
    self.cut = []
    for s in self.sets:
      if progress:
        progress(s.name)
      records += self._scored(params, s)
      if s.questions:
        records += summary.score_responses(self._answered(params, s), self.detector)
    for s in self.suites:
      if progress:
        progress(s.suite.name)
      records += self._run_suite(params, s)
    return summary.summarise(records, seed=self.seed), records

  def _beating(self, batches: Iterable) -> Iterator:
    for batch in batches:
      self.beat()
      yield batch

  def _scored(self, params, s: EvalSet) -> list[Record]:
    batches = self._beating(s.batches(self.rows, self.num_segments))
    scores = likelihood.score(params, self.score_step, batches, range(len(s.encoded)))
    return [
      Record(
        set=s.name,
        lang=s.encoded.languages[s.encoded.language[i]],
        example_id=s.encoded.example_id(i),
        group_id=s.group_ids[s.encoded.example_id(i)],
        nll=nll,
        tokens=tokens,
        bytes=int(s.encoded.answer_bytes[i]),
      )
      for i, (nll, tokens) in sorted(scores.items())
    ]

  def _answered(self, params, s: EvalSet) -> list[Record]:
    # The example's own number: its answer does not depend on which others are evaluated.
    ids = [stable_hash(q.lang, q.example_id) for q in s.questions]
    prompts = [q.tokens for q in s.questions]
    langs = [q.lang for q in s.questions]
    completions = self._write(params, s.name, prompts, langs, self.max_new_tokens, ids)
    return [
      Record(
        set=s.name,
        lang=q.lang,
        example_id=q.example_id,
        group_id=q.group_id,
        prompt=q.prompt,
        response=self.tokenizer.decode(done.tokens),
        response_tokens=len(done.tokens),
        stopped=done.stopped,
        reference=q.reference,
      )
      for q, done in zip(s.questions, completions, strict=True)
      if done
    ]

  def _run_suite(self, params, s: PreparedSuite) -> list[Record]:
    records = []
    if s.choices:
      batches = self._beating(s.choices.rows.batches(self.rows, self.num_segments))
      examples = range(len(s.choices.rows.encoded))
      records += choice_records(
        s.choices, likelihood.score(params, self.score_step, batches, examples)
      )
    if s.prompts:
      ids = [stable_hash(item.lang, item.id) for item in s.asked]
      name, most = s.suite.name, s.suite.max_new_tokens
      langs = [item.lang for item in s.asked]
      completions = self._write(params, name, s.prompts, langs, most, ids, s.suite.stop)
      done = [(item, c) for item, c in zip(s.asked, completions, strict=True) if c]
      answered = answer_records(
        s.suite, [item for item, _ in done], [c for _, c in done], self.tokenizer
      )
      detector = self.detector if "fidelity" in s.suite.measure else None
      kept = {name: None for name in ("chrf", "exact") if name not in s.suite.measure}
      records += [
        dataclasses.replace(r, **kept) for r in summary.score_responses(answered, detector)
      ]
    return records

  def _write(
    self, params, name, prompts, langs, most: int, ids, stop_texts=()
  ) -> list[Completion | None]:
    """Answers of at most so many tokens; None for prompts that there was no time for, alike in all languages."""
    seconds, began = self.seconds_per_prompt * len(prompts), time.monotonic()
    order = _in_turn(langs) if seconds else list(range(len(prompts)))
    written = self.generator.generate(
      params,
      [prompts[i] for i in order],
      stop_ids=self.tokenizer.stop_ids,
      stop_texts=stop_texts,
      decode=self.tokenizer.decode,
      ids=[ids[i] for i in order],
      max_new_tokens=[most] * len(prompts),
      progress=lambda done: self.beat(),
      admit=(lambda: main_says(time.monotonic() - began < seconds)) if seconds else None,
      **self.sampling,
    )
    out: list[Completion | None] = [None] * len(prompts)
    for i, done in zip(order, written, strict=True):
      out[i] = done
    left = sum(done is None for done in out)
    if left:
      self.cut.append(
        f"{name}: {len(out) - left} of {len(out)} prompts were answered in {seconds:.0f} s (eval.max_seconds)"
      )
    return out


@dataclasses.dataclass(frozen=True)
class PreparedSuite:
  """A suite whose texts are tokens already."""

  suite: Suite
  choices: Choices | None  # of the items that have choices
  asked: list[Item]  # the others
  prompts: list[list[int]]  # of those

  @classmethod
  def of(cls, suite: Suite, tokenizer: Tokenizer, max_length: int) -> PreparedSuite:
    chosen = [item for item in suite.items if item.choices]
    asked = [item for item in suite.items if not item.choices]
    choices = (
      encode_choices(dataclasses.replace(suite, items=chosen), tokenizer, max_length)
      if chosen
      else None
    )
    prompts = [list(tokenizer.encode_text(prompt_text(suite, item, tokenizer))) for item in asked]
    return cls(suite, choices, asked, prompts)


def _in_turn(langs: Sequence[str]) -> list[int]:
  """The first of each language, then the second of each: sw sw en sw en -> 2 0 4 1 3"""
  seen: dict[str, int] = {}
  ranks = []
  for lang in langs:
    ranks.append(seen.get(lang, 0))
    seen[lang] = ranks[-1] + 1
  return sorted(range(len(langs)), key=lambda i: (ranks[i], langs[i]))


def buckets(longest: int) -> list[int]:
  """Powers of two up to the longest prompt: few shapes, and at most half of each is padding."""
  sizes = [SMALLEST_BUCKET]
  while sizes[-1] < longest:
    sizes.append(2 * sizes[-1])
  return sizes
