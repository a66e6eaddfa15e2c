"""lm-evaluation-harness drives our models: for every task that it has and we do not.

  figures = run_harness(model, mesh, ["belebele_swh_Latn", "mgsm_direct_sw"], limit=100)

The package is an extra (`pip install 'mlit_jax[harness]'`); tasks, prompts and metrics are its own.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from mlit_jax import mesh as meshes
from mlit_jax.data.evalset import make_scored_set
from mlit_jax.data.tokenizer import Tokenizer
from mlit_jax.errors import UserError
from mlit_jax.evals import likelihood
from mlit_jax.evals.decoding import Generator
from mlit_jax.evals.evaluator import buckets
from mlit_jax.model.config import DecoderConfig

MAX_NEW_TOKENS = 256  # where a task does not say


def run_harness(
  lm,
  tasks: Sequence[str | dict],
  *,
  limit: int = 0,
  few_shot: int | None = None,
  include: str = "",
  chat: bool = False,
  seed: int = 0,
) -> dict:
  """The package's own results of the tasks; `limit` documents of each (0: all), `include` a folder of tasks."""
  from lm_eval import simple_evaluate
  from lm_eval.tasks import TaskManager

  manager = TaskManager(include_path=include or None)
  unknown = sorted(t for t in tasks if isinstance(t, str) and not manager.match_tasks([t]))
  if unknown:
    raise UserError(
      f"--harness names {', '.join(unknown)}, which lm-evaluation-harness does not have. Its list: lm_eval ls tasks"
    )
  found = simple_evaluate(
    lm,
    tasks=list(tasks),
    num_fewshot=few_shot,
    limit=limit or None,
    task_manager=manager,
    apply_chat_template=chat,
    random_seed=seed,
    numpy_random_seed=seed,
    fewshot_random_seed=seed,
  )
  assert found is not None
  return found


@dataclasses.dataclass(frozen=True)
class _Served:
  """What answers the package: the model, in rows of up to max_length tokens."""

  cfg: DecoderConfig
  params: dict
  tokenizer: Tokenizer
  mesh: Mesh
  max_length: int
  rows: int
  dtype: jnp.dtype

  def score(self, rows) -> list[tuple[float, ...]]:
    """(nll, tokens, tokens that were not the likeliest) of what counts in each row of `continuation`."""
    if not rows:
      return []
    scored = make_scored_set("harness", rows, self.max_length)
    step = likelihood.make_score_step(
      self.cfg, self.mesh, scored.num_segments, self.dtype, misses=True
    )
    shards = meshes.batch_shards(self.mesh)
    batches = scored.batches(-(-self.rows // shards) * shards, scored.num_segments)
    found = likelihood.score(self.params, step, batches, range(len(rows)))
    return [found[i] for i in range(len(rows))]

  def write(self, asked: Sequence[tuple[str, dict]]) -> list[str]:
    """Answers to contexts, each with its task's settings."""
    prompts = [begin(self.tokenizer, context)[-self.max_length :] for context, _ in asked]
    settings = [_settings(kwargs) for _, kwargs in asked]
    out = [""] * len(asked)
    if not asked:
      return out
    generator = Generator(
      self.cfg,
      self.mesh,
      max_new_tokens=max(setting.most for setting in settings),
      prompt_buckets=buckets(max(map(len, prompts))),
      rows=32,
      dtype=self.dtype,
    )
    for setting in dict.fromkeys(settings):
      mine = [i for i, s in enumerate(settings) if s == setting]
      done = generator.generate(
        self.params,
        [prompts[i] for i in mine],
        stop_ids=self.tokenizer.stop_ids,
        stop_texts=setting.until,
        decode=self.tokenizer.decode,
        temperature=setting.temperature,
        top_p=setting.top_p,
        ids=mine,
        max_new_tokens=[setting.most] * len(mine),
      )
      for i, d in zip(mine, done, strict=True):
        out[i] = d.written(self.tokenizer.decode)
    return out


def make_lm(
  name: str,
  cfg: DecoderConfig,
  params: dict,
  tokenizer: Tokenizer,
  mesh: Mesh,
  *,
  max_length: int,
  rows: int = 8,
  dtype=jnp.float32,
):
  """Our model as the package's LM. Every process may call it: all get all results."""
  try:
    from lm_eval.api.model import LM
  except ImportError:
    raise UserError(
      "lm-evaluation-harness is not installed; pip install 'mlit_jax[harness]', or pip install lm_eval"
    ) from None
  served = _Served(cfg, params, tokenizer, mesh, max_length, rows, jnp.dtype(dtype))

  class Harness(LM):
    """Scores continuations and writes answers; texts in, texts out."""

    @property
    def tokenizer_name(self) -> str:
      return f"{name}-{tokenizer.fingerprint}"

    def chat_template(self, chat_template: bool | str = False) -> str:
      return tokenizer.template.source if chat_template else ""

    def apply_chat_template(self, chat_history, add_generation_prompt: bool = True) -> str:
      if add_generation_prompt:
        return tokenizer.template.prompt(chat_history)
      *before, last = chat_history  # an answer that has been begun
      return tokenizer.template.prompt(before) + last["content"]

    def loglikelihood(self, requests) -> list[tuple[float, bool]]:
      pairs = [request.args for request in requests]
      scored = served.score([continuation(tokenizer, *pair, max_length) for pair in pairs])
      out = [(-nll, misses == 0) for nll, _, misses in scored]
      return self._remember("loglikelihood", pairs, out)

    def loglikelihood_rolling(self, requests) -> list[float]:
      texts = [request.args[0] for request in requests]
      windows = [rolling(tokenizer, text, max_length) for text in texts]
      scored = iter(served.score([w for of_text in windows for w in of_text]))
      out = [-sum(next(scored)[0] for _ in of_text) for of_text in windows]
      return self._remember("loglikelihood_rolling", [(text,) for text in texts], out)

    def generate_until(self, requests) -> list[str]:
      asked = [request.args for request in requests]
      return self._remember("generate_until", asked, served.write(asked))

    def _remember(self, kind: str, asked, answers: list) -> list:
      for request, found in zip(asked, answers, strict=True):
        self.cache_hook.add_partial(kind, request, found)
      return answers

  return Harness()


class _Settings(NamedTuple):
  """How a task wants its answers; `until` are stop strings."""

  most: int  # tokens
  temperature: float
  top_p: float
  until: tuple[str, ...]


def _settings(kwargs: dict) -> _Settings:
  until = kwargs.get("until") or ()
  until = (until,) if isinstance(until, str) else tuple(until)
  sampled = kwargs.get("do_sample", kwargs.get("temperature", 0.0) > 0)
  temperature = float(kwargs.get("temperature", 1.0)) if sampled else 0.0
  most = kwargs.get("max_gen_toks") or kwargs.get("max_new_tokens") or MAX_NEW_TOKENS
  return _Settings(int(most), temperature, float(kwargs.get("top_p", 1.0)), until)


def begin(tokenizer: Tokenizer, text: str) -> list[int]:
  """Tokens of a text that nothing stands before: with the BOS where the tokenizer or the template has one."""
  ids = list(tokenizer.encode_text(text))
  bos = tokenizer.bos_id
  if bos is None or ids[:1] == [bos]:
    return ids or [tokenizer.stop_ids[0]]
  if bos in tokenizer.engine.framing or _begins_with_bos(tokenizer):
    return [bos, *ids]
  return ids or [bos]


def continuation(
  tokenizer: Tokenizer, context: str, text: str, max_length: int
) -> tuple[np.ndarray, np.ndarray]:
  """(ids, mask) of a context and what follows it; what follows is masked, the context loses its beginning.

  Both are tokenised as one text; what counts are the tokens beyond those that spell the context alone, as the
  package's own models count. White space between them belongs to what follows.
  """
  stripped = context.rstrip()
  context, text = stripped, context[len(stripped) :] + text
  before, whole = begin(tokenizer, context), begin(tokenizer, context + text)
  if not context:  # all of the text counts, after the token that begins every text
    before = whole[:1] if whole[0] == tokenizer.bos_id else []
    whole = whole if before else [_prefix(tokenizer), *whole]
    before = whole[:1]
  first = min(len(before), len(whole) - 1)
  mask = np.zeros(len(whole), bool)
  mask[first:] = True
  ids = np.array(whole, np.uint32)
  if mask.sum() >= max_length:
    raise UserError(
      f"a continuation of {int(mask.sum())} tokens is longer than a row ({max_length}): {text[:60]!r}"
    )
  ids, mask = ids[-max_length:], mask[-max_length:]
  return ids, mask


def rolling(
  tokenizer: Tokenizer, text: str, max_length: int
) -> list[tuple[np.ndarray, np.ndarray]]:
  """Windows in which every token of the text is predicted once, the last with as much context as fits."""
  from lm_eval.utils import get_rolling_token_windows

  tokens = list(tokenizer.encode_text(text))
  windows = get_rolling_token_windows(tokens, _prefix(tokenizer), max_length - 1, 1)
  out = []
  for before, predicted in windows:
    ids = np.array([*before, predicted[-1]], np.uint32)
    mask = np.zeros(len(ids), bool)
    mask[len(ids) - len(predicted) :] = True
    out.append((ids, mask))
  return out


def _prefix(tokenizer: Tokenizer) -> int:
  return tokenizer.bos_id if tokenizer.bos_id is not None else tokenizer.stop_ids[0]


def _begins_with_bos(tokenizer: Tokenizer) -> bool:
  bos = tokenizer.special_tokens.get("bos_token")
  return bool(bos) and tokenizer.template.opening().startswith(bos)
