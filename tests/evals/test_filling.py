"""Continuous filling against transformers, family by family: many prompts in few rows."""

import jax
import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")

import torch

from mlit_jax.evals.decoding import Generator
from mlit_jax.mesh import make_mesh, param_shardings
from mlit_jax.model import decoder
from mlit_jax.model.config import from_hf
from mlit_jax.weights import load, source
from tests import families
from tests.few import few

# Windows, soft caps, ALiBi, layers without positions, experts; lengths beyond windows of 3 to 5.
FAMILIES = ["llama", "gemma3_text", "bloom", "gemma2", "cohere2", "qwen3_moe", "smollm3"]
LENGTHS = [5, 61, 1, 17, 40, 2, 33, 8, 50]
LIMITS = [24, 3, 9, 31, 1, 40, 12, 7, 20]
ROWS = 3


@pytest.fixture(scope="module", params=few(3, FAMILIES))
def made(request, tmp_path_factory):
  """(config, parameters, prompts, their greedy continuations by transformers, one prompt at a time)."""
  folder = tmp_path_factory.mktemp(request.param)
  model = families.make_model(folder, request.param)
  cfg = from_hf(source.read_source(folder).config)
  rows = families.rows_in_twelve_languages(folder, max(LENGTHS))
  prompts = [rows[i, -n:].tolist() for i, n in enumerate(LENGTHS)]
  answers = []
  for prompt, limit in zip(prompts, LIMITS, strict=True):
    out = model.generate(
      torch.tensor([prompt]), max_new_tokens=limit, do_sample=False, eos_token_id=None
    )
    answers.append(out[0, len(prompt) :].tolist())
  assert len({t for answer in answers for t in answer}) > 8  # else agreement would mean little
  return cfg, load.load_params(folder, cfg), prompts, answers


def make_generator(cfg, mesh=None, rows=ROWS):
  mesh = mesh or make_mesh(1, 1, 1, devices=jax.devices()[:1])
  return Generator(
    cfg, mesh, max_new_tokens=max(LIMITS), prompt_buckets=(16, 64), rows=rows, dtype=np.float32
  )


def test_greedy_is_that_of_transformers_token_for_token(made):
  cfg, params, prompts, answers = made
  generator = make_generator(cfg)
  seen = []
  out = generator.generate(
    params, prompts, stop_ids=(), max_new_tokens=LIMITS, progress=seen.append
  )
  assert [c.tokens for c in out] == answers
  assert not any(c.stopped for c in out)
  # Rows were refilled while others went on: answers came in at many different times.
  assert seen == sorted(seen) and seen[-1] == len(prompts) and len(set(seen)) > 3
  # A token that occurs ends an answer where it first does.
  stop = answers[3][len(answers[3]) // 2]
  out = generator.generate(params, prompts, stop_ids=[stop], max_new_tokens=LIMITS)
  for completion, answer in zip(out, answers, strict=True):
    ended = stop in answer
    assert completion.tokens == (answer[: answer.index(stop)] if ended else answer)
    assert completion.stopped == ended


@pytest.mark.parametrize("variant", ["gemma3_text", "qwen3_moe"])
@pytest.mark.slow
def test_a_mesh_with_every_axis_answers_the_same(variant):
  cfg = families.config_of(variant)
  params = families.tuned(decoder.init_params(cfg, jax.random.key(1)))
  params = jax.tree.map(lambda x: 2 * x if x.ndim > 2 else x, params)
  prompts = [[(7 * i + 3 * j) % 256 for j in range(n)] for i, n in enumerate(LENGTHS)]
  kwargs = dict(stop_ids=(9,), temperature=0.8, top_k=40, min_p=0.01, seed=3, max_new_tokens=LIMITS)
  wanted = make_generator(cfg).generate(params, prompts, **kwargs)
  assert len({tuple(c.tokens) for c in wanted}) > 6
  expert = 2 if cfg.num_experts else 1
  mesh = make_mesh(1, -1, 2, expert, devices=jax.devices()[:8])
  sharded = jax.device_put(params, param_shardings(decoder.param_specs(cfg), mesh))
  generator = make_generator(cfg, mesh, rows=4)
  with jax.set_mesh(mesh), jax.transfer_guard("disallow"):  # as in training
    assert generator.generate(sharded, prompts, **kwargs) == wanted
