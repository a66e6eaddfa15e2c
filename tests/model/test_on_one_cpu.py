"""What one CPU computes in another way, for speed: products as one, and layers one after the other without a loop."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import base
from mlit_jax import mesh as meshes
from mlit_jax.batch import Batch
from mlit_jax.model import decoder
from mlit_jax.stepping import make_stepping
from tests.few import only
from tests.model.test_decoder import BUFFERS, CONFIGS

ROWS, LENGTH = 2, 12


def arrays(vocab_size: int):
  """tokens, positions and segments of packed rows: two examples each, and padding."""
  tokens_BT = np.random.default_rng(0).integers(0, vocab_size, (ROWS, LENGTH), np.int32)
  positions_T = np.array([0, 1, 2, 3, 4, 0, 1, 2, 3, 4, 0, 0], np.int32)
  segments_T = np.array([1] * 5 + [2] * 5 + [0] * 2, np.int32)
  shape = (ROWS, LENGTH)
  return tokens_BT, np.broadcast_to(positions_T, shape), np.broadcast_to(segments_T, shape)


def gradients(cfg, **ways):
  """A function of the parameters and `arrays`: the hidden states, weighed and added up, and its gradients."""
  weigh_BTD = np.random.default_rng(1).standard_normal((ROWS, LENGTH, cfg.d_model), np.float32)

  def total(params, *rows):
    x_BTD, _, _ = decoder.hidden(params, cfg, *rows, **ways)
    return jnp.vdot(x_BTD, weigh_BTD)

  return jax.jit(jax.value_and_grad(total))


@pytest.mark.parametrize("name", only(["llama", "cohere2", "bloom", "gemma4"], CONFIGS))
def test_the_same_numbers_as_in_a_loop(name, assert_close):
  """Value and every gradient: biases, norms of queries, borrowed keys, keys that are values, windows, ALiBi."""
  cfg = CONFIGS[name]
  params = decoder.init_params(cfg, jax.random.key(0))
  rows = arrays(cfg.vocab_size)
  total, grads = gradients(cfg)(params, *rows)
  assert all(
    np.any(g) for path, g in jax.tree.leaves_with_path(grads.get("blocks", grads))
    if path[-1].key not in BUFFERS
  )  # fmt: skip
  other_total, other_grads = gradients(cfg, together=True, unrolled=True)(params, *rows)
  np.testing.assert_allclose(other_total, total, rtol=1e-5)
  assert_close(other_grads, grads, 1e-5)


def test_sines_and_cosines_are_computed_once():
  """XLA on CPU would do so in each of the places that read them: a third of an unrolled step's gain was lost."""
  cfg = CONFIGS["llama"]
  params = decoder.init_params(cfg, jax.random.key(0))
  text = gradients(cfg, unrolled=True).lower(params, *arrays(cfg.vocab_size)).compile().as_text()
  assert text.count(" sine(") == text.count(" cosine(") == 1


@pytest.mark.parametrize(
  "remat, devices, has_loop",
  [("none", 1, False), ("attention_saved", 1, True), ("none", 2, True)],
)
def test_only_one_cpu_that_keeps_everything_does_without_the_loop(remat, devices, has_loop):
  c = base.get_config()
  c.model.remat, c.model.dtype, c.model.loss_chunk = remat, "float32", -1
  cfg = CONFIGS["llama"]
  mesh = meshes.make_mesh(devices=jax.devices()[:devices])
  stepping = make_stepping(c, cfg, mesh, total_steps=10, num_languages=1)
  tokens_BT, positions_BT, segments_BT = arrays(cfg.vocab_size)
  batch = Batch(
    tokens=tokens_BT, targets=tokens_BT, weights=(segments_BT > 0).astype(np.float32),
    segments=segments_BT, positions=positions_BT, language=np.zeros_like(tokens_BT),
  )  # fmt: skip
  with jax.set_mesh(mesh):
    text = stepping.train_step.lower(stepping.state_shapes(), batch).as_text()
  loops = [line for line in text.splitlines() if "stablehlo.while" in line]
  of_layers = [line for line in loops if f"tensor<{ROWS}x{LENGTH}x{cfg.d_model}xf32>" in line]
  assert bool(of_layers) == has_loop, loops
