import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mlit_jax.batch import Batch, empty_batch
from mlit_jax.evals.likelihood import bits_per_byte_figure, loss_figure, make_score_step, score
from mlit_jax.mesh import make_mesh, param_shardings
from mlit_jax.model import decoder
from mlit_jax.model.config import DecoderConfig

CFG = DecoderConfig(
  family="llama",
  vocab_size=48,
  d_model=16,
  num_layers=2,
  num_heads=4,
  num_kv_heads=2,
  head_dim=8,
  d_ff=24,
  tied=True,
)
LENGTH, SEGMENTS = 16, 3
# (tokens of the example, of which the last so many are trained), uneven on purpose
EXAMPLES = [(7, 2), (5, 4), (4, 1), (16, 9), (3, 1), (2, 1), (11, 10)]
ROWS = [[0, 1, 2], [3], [4, 6], [5]]


def make_examples():
  rng = np.random.default_rng(0)
  return [rng.integers(0, 48, length).astype(np.int32) for length, _ in EXAMPLES]


def make_batch(rows):
  """Batch and example_index_BS of packed rows."""
  texts, batch = make_examples(), empty_batch(len(rows), LENGTH)
  index_BS = np.full((len(rows), SEGMENTS), -1)
  for r, row in enumerate(rows):
    start = 0
    for s, example in enumerate(row):
      text, trained = texts[example], EXAMPLES[example][1]
      here = slice(start, start + len(text))
      batch.tokens[r, here] = text
      batch.targets[r, here] = np.append(text[1:], 0)
      batch.positions[r, here] = np.arange(len(text))
      batch.segments[r, here] = s + 1
      batch.weights[r, start + len(text) - 1 - trained : start + len(text) - 1] = 1
      index_BS[r, s] = example
      start += len(text)
  return batch, index_BS


def make_params():
  return jax.tree.map(lambda x: 2 * x, decoder.init_params(CFG, jax.random.key(1)))


@functools.cache
def alone():
  """{example: (nll, tokens)} of each example in a row of its own, summed in plain numpy."""
  texts = make_examples()
  tokens_BT = np.array([np.pad(text, (0, LENGTH - len(text))) for text in texts])
  place_BT = np.tile(np.arange(LENGTH, dtype=np.int32), (len(texts), 1))
  segments_BT = (place_BT < np.array([[len(text)] for text in texts])).astype(np.int32)
  logits_BTV = decoder.apply(make_params(), CFG, tokens_BT, place_BT, segments_BT)
  log_p_BTV = np.asarray(jax.nn.log_softmax(logits_BTV), np.float64)
  out = {}
  for example, (text, (length, trained)) in enumerate(zip(texts, EXAMPLES, strict=True)):
    nll = -sum(log_p_BTV[example, t - 1, text[t]] for t in range(length - trained, length))
    out[example] = nll, trained
  return out


def assert_scores(found):
  wanted = alone()
  assert found.keys() == wanted.keys()
  for example in wanted:
    assert found[example] == pytest.approx(wanted[example], rel=2e-5), example


def one_device_mesh():
  return make_mesh(1, 1, 1, devices=jax.devices()[:1])


def test_sums_of_packed_examples_are_those_of_each_alone():
  params = make_params()
  step = make_score_step(CFG, one_device_mesh(), SEGMENTS, jnp.float32)
  found = score(params, step, [make_batch(ROWS[:2]), make_batch(ROWS[2:])], range(len(EXAMPLES)))
  assert_scores(found)


@pytest.mark.parametrize("sizes", [(2, 2, 2), (1, 8, 1)])
def test_eight_devices_score_like_one(sizes):
  params = make_params()
  mesh = make_mesh(*sizes, devices=jax.devices()[:8])
  sharded = jax.device_put(params, param_shardings(decoder.param_specs(CFG), mesh))
  step = make_score_step(CFG, mesh, SEGMENTS, jnp.float32)
  with (
    jax.set_mesh(mesh),
    jax.transfer_guard("disallow"),
  ):  # as in training; 3 rows are not a multiple of the shards
    found = score(sharded, step, [make_batch(ROWS[:3]), make_batch(ROWS[3:])], range(len(EXAMPLES)))
  assert_scores(found)


def test_an_infinite_loss_of_an_untrained_token_stays_out():
  params = make_params()
  params["embed"]["table_VD"] = params["embed"]["table_VD"].at[7].set(jnp.inf)
  batch = empty_batch(1, 4)
  batch.tokens[0] = [1, 2, 3, 4]
  batch.segments[0], batch.positions[0] = 1, range(4)
  batch.targets[0] = [2, 3, 4, 0]
  step = make_score_step(CFG, one_device_mesh(), 1, jnp.float32)
  nll_BS, tokens_BS = step(params, batch)
  assert (float(nll_BS[0, 0]), float(tokens_BS[0, 0])) == (0.0, 0.0)
  batch.weights[0, 1] = 1
  assert not math.isfinite(step(params, batch)[0][0, 0])


def test_faults_of_the_batches_are_found():
  calls = []

  def step(params, batch):
    calls.append(batch)
    return np.ones((len(batch.tokens), SEGMENTS)), np.ones((len(batch.tokens), SEGMENTS))

  batch, index_BS = make_batch(ROWS)
  assert score(None, step, [(batch, index_BS)], range(7))[3] == (1.0, 1.0)
  with pytest.raises(AssertionError, match=r"\[7\]"):
    score(None, step, [(batch, index_BS)], range(8))
  with pytest.raises(AssertionError, match=r"\[0\]"):
    score(None, step, [(batch, index_BS)], range(1, 7))
  with pytest.raises(AssertionError, match="twice"):
    score(None, step, [(batch, index_BS)] * 2, range(7))
  with pytest.raises(AssertionError):
    score(None, step, [(batch, index_BS[:, :2])], range(7))  # the third segment has no column


def test_figures_by_hand():
  # Two answers of 1 and 9 tokens, 4 and 12 bytes.
  assert loss_figure([2.0, 9.0], [1, 9]).value == pytest.approx(1.1)  # not (2 + 1) / 2
  assert bits_per_byte_figure([2.0, 9.0], [4, 12]).value == pytest.approx(11 / math.log(2) / 16)


def test_batch_is_the_contract():
  assert isinstance(make_batch(ROWS)[0], Batch)
