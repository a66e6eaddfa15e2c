"""Generation with a key/value cache: many prompts in few rows, or token by token for a chat.

The host decides which prompt sits in which row and for how long; `rows.Programs` does the work.
"""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Callable, Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from mlit_jax import mesh as meshes
from mlit_jax.errors import UserError
from mlit_jax.evals import stopping
from mlit_jax.evals.rows import MOST_STEPS, NOTHING, STOP, Programs
from mlit_jax.evals.sampling import Sampling, words_of
from mlit_jax.model import rope
from mlit_jax.model.config import DecoderConfig

# The smallest cache: short prompts and answers get by with one compilation.
FEWEST_SLOTS = 128
# Room for so many steps is made at least; with it used up, the host looks again.
FEWEST_STEPS = 8
# With stop strings the host looks more often: a row goes on until then.
STEPS_WITH_TEXTS = 8
# Prompts are read an eighth of all rows at a time; a quarter of them does for the last answers, where
# that is worth another compilation.
PREFILL_PART, LAST_PART, WORTH_SHRINKING = 8, 4, 16
NO_STOP = (
  -1
)  # fills up stop ids to a multiple of STOP_IDS, so that their number compiles nothing anew
STOP_IDS = 8


@dataclasses.dataclass(frozen=True)
class Completion:
  """The tokens of an answer without the stop token, and whether it was stopped, not cut off.

  text: where a stop string ended the answer, its text up to there; the tokens are those that spell it.
  """

  tokens: list[int]
  stopped: bool
  text: str | None = None

  def written(self, decode: Callable[[Sequence[int]], str]) -> str:
    """The answer as text."""
    return decode(self.tokens) if self.text is None else self.text


class Generator:
  """Answers prompts in a few fixed shapes, greedy or sampled. A row whose answer ends takes the next prompt.

  prompt_buckets: lengths in tokens to which prompts are padded, such as powers of two.
  rows: prompts decoded at once, rounded up to what the mesh divides.
  """

  def __init__(
    self,
    cfg: DecoderConfig,
    mesh: Mesh,
    *,
    max_new_tokens: int,
    prompt_buckets,
    rows: int,
    dtype=jnp.bfloat16,
  ):
    if max_new_tokens < 1:
      raise UserError(f"max_new_tokens is {max_new_tokens}; an answer needs at least 1.")
    self.max_new_tokens = max_new_tokens
    self.prompt_buckets = tuple(sorted(prompt_buckets))
    self.limit = rope.most_slots(cfg)
    self.cfg, self.mesh = cfg, mesh
    self.shards = meshes.batch_shards(mesh)
    self.rows = self._sharded(rows)
    self.prefill_rows = self._sharded(self.rows // PREFILL_PART)
    self.programs = Programs(cfg, mesh, dtype)

  def generate(
    self,
    params,
    prompts: Sequence[Sequence[int]],
    *,
    stop_ids,
    stop_texts: Sequence[str] = (),
    decode: Callable[[Sequence[int]], str] | None = None,
    temperature: float = 0.0,
    top_p: float = 1.0,
    top_k: int = 0,
    min_p: float = 0.0,
    seed: int = 0,
    ids: Sequence[int] | None = None,
    max_new_tokens: Sequence[int] | None = None,
    progress: Callable[[int], None] | None = None,
    admit: Callable[[], bool] | None = None,
  ) -> list[Completion | None]:
    """One completion for each prompt, in order. Temperature 0 is greedy.

    stop_texts: strings that end an answer, looked for in what `decode` makes of its tokens.
    ids: a number of up to 64 bits for each prompt, by default its index. A sampled answer depends on
    prompt, number and seed, never on the other prompts or on where it sits among them.
    max_new_tokens: of each prompt, at most the generator's.
    progress: is told how many answers are there.
    admit: asked before further prompts are begun, in the order given; once it says no, those begun are
    finished and the others get None. So what is left out does not depend on how long answers are.

    On several processes all pass the same prompts, and all get all answers.
    """
    sampling = Sampling(temperature, top_p, top_k, min_p, seed)
    stop_texts = stopping.check_stop_texts(stop_texts)
    if stop_texts and decode is None:
      raise ValueError("stop_texts are looked for in text: give `decode` too")
    jobs = self._jobs(prompts, ids, max_new_tokens)
    # Long ones first: what is left for the end is short, and the largest shape comes at once.
    by_length = sorted(jobs, key=lambda job: (-job.bucket, -job.limit))
    waiting = collections.deque(jobs if admit else by_length)
    table = _Table(self, params, stop_ids, sampling, self._table_rows(len(jobs)))
    completions: list[Completion | None] = [None] * len(prompts)
    done, begun = 0, False
    while waiting or any(table.jobs):
      if admit and begun and waiting and not admit():
        waiting.clear()
        continue
      table.fill(waiting)
      begun = True
      for job in table.advance(STEPS_WITH_TEXTS if stop_texts else MOST_STEPS, len(waiting)):
        ended = stop_texts and stopping.cut(job.tokens, decode, stop_texts, known=job.looked)
        job.looked = len(job.tokens)
        if ended:
          completions[job.index] = Completion(job.tokens[: ended[0]], True, ended[1])
        elif job.left == 0:
          completions[job.index] = Completion(job.tokens, job.stopped)
        if completions[job.index]:
          table.release(job)
          done += 1
      if progress:
        progress(done)
    return completions

  def stream(
    self,
    params,
    prompt: Sequence[int],
    *,
    stop_ids,
    temperature: float = 0.0,
    top_p: float = 1.0,
    top_k: int = 0,
    min_p: float = 0.0,
    seed: int = 0,
  ) -> Iterator[int]:
    """The tokens that generate(params, [prompt], ...) gives, each as soon as it is known."""
    sampling = Sampling(temperature, top_p, top_k, min_p, seed)
    (job,) = self._jobs([prompt], None, None, ["the prompt"])
    table = _Table(self, params, stop_ids, sampling, self.shards)
    table.fill(collections.deque([job]))
    while job.left:
      table.advance(1, 0)
      if not job.stopped:
        yield job.tokens[-1]

  def _jobs(self, prompts, ids, max_new_tokens, names=None) -> list[_Job]:
    ids = range(len(prompts)) if ids is None else ids
    limits = [self.max_new_tokens] * len(prompts) if max_new_tokens is None else max_new_tokens
    wrong = [n for n in limits if not 1 <= n <= self.max_new_tokens]
    if wrong:
      raise UserError(f"max_new_tokens is {wrong[0]}; it must be 1 to {self.max_new_tokens}.")
    out = []
    for i, (prompt, number, limit) in enumerate(zip(prompts, ids, limits, strict=True)):
      bucket = self._bucket(prompt, names[i] if names else f"prompt {i}")
      rope.check_slots(self.cfg, len(prompt) + limit - 1)
      out.append(_Job(i, list(prompt), int(number), limit, bucket))
    return out

  def _bucket(self, prompt, name) -> int:
    if not len(prompt):
      raise UserError(f"{name} has no tokens; the model needs at least one to begin from.")
    for bucket in self.prompt_buckets:
      if len(prompt) <= bucket:
        return min(bucket, self.limit or bucket)
    raise UserError(
      f"{name} has {len(prompt)} tokens; the longest that fits is {self.prompt_buckets[-1]}. "
      "Shorten the prompt, or raise the largest prompt bucket."
    )

  def slots(self, needed: int) -> int:
    """A power of two or one and a half of it, or what the longest prompt and answer of all need."""
    slots = FEWEST_SLOTS
    while slots < needed:
      slots = slots * 3 // 2 if slots & (slots - 1) == 0 else slots * 4 // 3
    most = -(-(self.prompt_buckets[-1] + self.max_new_tokens) // FEWEST_SLOTS) * FEWEST_SLOTS
    return min(slots, most, self.limit or most)

  def _table_rows(self, num_prompts: int) -> int:
    few = self._sharded(self.rows // LAST_PART)
    return few if num_prompts <= few and self.rows >= WORTH_SHRINKING else self.rows

  def _sharded(self, rows: int) -> int:
    return max(1, -(-rows // self.shards)) * self.shards


@dataclasses.dataclass(eq=False)
class _Job:
  """A prompt and its answer so far."""

  index: int
  prompt: list[int]
  number: int
  limit: int
  bucket: int
  tokens: list[int] = dataclasses.field(default_factory=list)
  stopped: bool = False
  looked: int = 0  # tokens in which no stop string is

  @property
  def left(self) -> int:
    return 0 if self.stopped else self.limit - len(self.tokens)

  @property
  def position(self) -> int:
    """Of the token that goes in next."""
    return len(self.prompt) - 1 + len(self.tokens)

  def row(self) -> list[int]:
    """As Programs.advance reads it."""
    token = (self.tokens or self.prompt)[-1]
    return [token, self.position, len(self.tokens), self.left, *words_of(self.number)]


class _Table:
  """Which job sits in which row of the cache; the truth is here, the device keeps but the cache."""

  def __init__(self, generator: Generator, params, stop_ids, sampling: Sampling, rows: int):
    self.generator, self.programs = generator, generator.programs
    stop_ids = np.asarray(stop_ids, np.int64).reshape(-1)
    stop_ids = np.pad(stop_ids, (0, -len(stop_ids) % STOP_IDS), constant_values=NO_STOP)
    self.jobs: list[_Job | None] = [None] * rows
    self.new: list[_Job] = []
    self.cache, self.slots, self.kind = None, 0, sampling.kind
    with jax.set_mesh(generator.mesh):
      self.params = self.programs.cast(params)
    self.stop_ids = self.programs.everywhere(stop_ids.astype(np.int32))
    self.values = type(sampling.values)(*map(self.programs.everywhere, sampling.values))

  def fill(self, waiting) -> None:
    """Seat waiting jobs, if there are enough free rows for a prefill of full size."""
    free = [r for r, job in enumerate(self.jobs) if job is None]
    if len(free) < self._worth(len(waiting)):
      return
    while free and waiting:
      job = waiting.popleft()
      self.jobs[free.pop(0)] = job
      self.new.append(job)

  def release(self, job: _Job) -> None:
    self.jobs[self.jobs.index(job)] = None

  def advance(self, steps: int, num_waiting: int) -> list[_Job]:
    """Let all rows say up to `steps` tokens; the jobs that did."""
    jobs = [job for job in self.jobs if job]
    self._fit(jobs, num_waiting)
    with jax.set_mesh(self.generator.mesh):
      self._read_in()
      # Rounded down to zero for rows without a job: they have ended from the start.
      rows_B6 = np.array([job.row() if job else [0] * 6 for job in self.jobs], np.int64)
      steps = min(steps, self.slots - max(job.position for job in jobs))
      wake = self._worth(num_waiting) if num_waiting else len(self.jobs)
      said_MB, self.cache = self.programs.advance(
        self.params,
        self.cache,
        self.programs.by_row(rows_B6.astype(np.uint32).view(np.int32)),
        self.programs.everywhere(np.array([steps, wake], np.int32)),
        self.stop_ids,
        self.values,
        kind=self.kind,
      )
    said_MB = jax.device_get(said_MB)
    for job, said_M in zip(self.jobs, said_MB.T, strict=True):
      for token in said_M[said_M != NOTHING].tolist() if job else ():
        if token == STOP:
          job.stopped = True
        else:
          job.tokens.append(token)
    return jobs

  def _worth(self, num_waiting: int) -> int:
    """How many free rows are worth a prefill."""
    return min(self.generator.prefill_rows, max(1, num_waiting), len(self.jobs))

  def _fit(self, jobs, num_waiting: int) -> None:
    """The cache at the size that the next steps need."""
    g = self.generator
    slots = g.slots(max(job.position + min(FEWEST_STEPS, job.left) for job in jobs))
    few = g._table_rows(len(jobs) + num_waiting)
    if self.cache is not None and few >= len(self.jobs) and slots == self.slots:
      return
    keep = list(range(len(self.jobs)))
    if few < len(self.jobs):
      keep = [r for r, job in enumerate(self.jobs) if job]
      keep += [r for r, job in enumerate(self.jobs) if not job][: few - len(keep)]
      self.jobs = [self.jobs[r] for r in keep]
    self.slots = slots
    with jax.set_mesh(g.mesh):
      if self.cache is None:
        self.cache = self.programs.empty(len(self.jobs), slots)
      else:
        index = self.programs.everywhere(np.array(keep, np.int32))
        self.cache = self.programs.resize(self.cache, index, slots)

  def _read_in(self) -> None:
    """The prompts of new jobs into their rows."""
    size = min(self.generator.prefill_rows, len(self.jobs))
    for start in range(0, len(self.new), size):
      jobs = self.new[start : start + size]
      tokens_PT = np.zeros((size, max(job.bucket for job in jobs)), np.int32)
      length_P, row_P = np.ones(size, np.int32), np.full(size, len(self.jobs), np.int32)
      for p, job in enumerate(jobs):
        tokens_PT[p, : len(job.prompt)] = job.prompt
        length_P[p], row_P[p] = len(job.prompt), self.jobs.index(job)
      new = self.programs.prefill(
        self.params, self.programs.by_row(tokens_PT), self.programs.by_row(length_P)
      )
      self.cache = self.programs.insert(self.cache, new, self.programs.everywhere(row_P))
    self.new = []
