"""Evaluation of one set of parameters on every set and language: likelihood, answers, figures."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import jax.numpy as jnp
from jax.sharding import Mesh

from mlit_jax.data.evalset import EvalSet
from mlit_jax.data.hashing import stable_hash
from mlit_jax.data.tokenizer import Tokenizer
from mlit_jax.detect import LanguageDetector
from mlit_jax.evals import likelihood, summary
from mlit_jax.evals.decoding import Generator
from mlit_jax.evals.summary import Record
from mlit_jax.model.config import DecoderConfig

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
  ):
    """`languages`: what an answer may be in besides the languages of the sets, e.g. those trained on."""
    self.tokenizer, self.sets, self.rows, self.seed = tokenizer, sets, rows, seed
    self.sampling = dict(temperature=temperature, top_p=top_p, seed=seed)
    self.num_segments = max((s.num_segments for s in sets), default=1)
    self.score_step = likelihood.make_score_step(cfg, mesh, self.num_segments, dtype)
    questions = [q for s in sets for q in s.questions]
    self.generator = self.detector = None
    if questions:
      self.generator = Generator(
        cfg,
        mesh,
        max_new_tokens=max_new_tokens,
        prompt_buckets=buckets(max(len(q.tokens) for q in questions)),
        rows=min(len(questions), max(rows, 64)),
        dtype=dtype,
      )
      asked = {q.lang for q in questions} | {lang for s in sets for lang in s.encoded.languages}
      self.detector = LanguageDetector(sorted(asked | set(languages)))

  def run(self, params, progress: Callable[[str], None] | None = None) -> tuple[dict, list[Record]]:
    """(summary, records); see evals/summary.py for both."""
    records = []
    for s in self.sets:
      if progress:
        progress(s.name)
      records += self._scored(params, s)
      if s.questions:
        records += summary.score_responses(self._answered(params, s), self.detector)
    return summary.summarise(records, seed=self.seed), records

  def _scored(self, params, s: EvalSet) -> list[Record]:
    batches = s.batches(self.rows, self.num_segments)
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
    completions = self.generator.generate(
      params,
      [q.tokens for q in s.questions],
      stop_ids=self.tokenizer.stop_ids,
      # The example's own number: its answer does not depend on which others are evaluated.
      ids=[stable_hash(q.lang, q.example_id) for q in s.questions],
      **self.sampling,
    )
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
    ]


def buckets(longest: int) -> list[int]:
  """Powers of two up to the longest prompt: few shapes, and at most half of each is padding."""
  sizes = [SMALLEST_BUCKET]
  while sizes[-1] < longest:
    sizes.append(2 * sizes[-1])
  return sizes
