"""What one CPU computes in another way, for speed: products as one, and layers one after the other without a loop."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import base
from mlit_jax import mesh as meshes
from mlit_jax.model import decoder
from mlit_jax.stepping import make_stepping
from tests.few import only
from tests.model.test_decoder import BUFFERS, CONFIGS, GRADIENT_TOLERANCE, make_params, packed
from tests.training import test_step


def gradients(cfg, **ways):
  """A function of the parameters and of rows: the hidden states, weighed and added up, and its gradients."""
  rows, _ = packed()
  weigh_BTD = np.random.default_rng(1).standard_normal((*rows[0].shape, cfg.d_model), np.float32)

  def total(params, *rows):
    x_BTD, _, _ = decoder.hidden(params, cfg, *rows, **ways)
    return jnp.vdot(x_BTD, weigh_BTD)

  return jax.jit(jax.value_and_grad(total))


@pytest.mark.parametrize("name", only(["llama", "cohere2", "bloom", "gemma4"], CONFIGS))
def test_the_same_numbers_as_in_a_loop(name, assert_close):
  """Value and every gradient: biases, norms of queries, borrowed keys, keys that are values, windows, ALiBi."""
  cfg = CONFIGS[name]
  params, (rows, _) = make_params(cfg), packed()
  total, grads = gradients(cfg)(params, *rows)
  assert all(
    np.any(g) for path, g in jax.tree.leaves_with_path(grads.get("blocks", grads))
    if path[-1].key not in BUFFERS
  )  # fmt: skip
  other_total, other_grads = gradients(cfg, together=True, unrolled=True)(params, *rows)
  np.testing.assert_allclose(other_total, total, rtol=1e-5)
  assert_close(other_grads, grads, GRADIENT_TOLERANCE.get(cfg.family, 1e-5))


def test_sines_and_cosines_are_computed_once():
  """XLA on CPU would do so in each of the places that read them: a tenth of a step of six layers."""
  cfg, (rows, _) = CONFIGS["llama"], packed()
  text = gradients(cfg, unrolled=True).lower(make_params(cfg), *rows).compile().as_text()
  assert text.count(" sine(") == text.count(" cosine(") == 1


@pytest.mark.parametrize(
  "remat, devices, has_loop",
  [("none", 1, False), ("attention_saved", 1, True), ("none", 2, True)],
)
def test_only_one_cpu_that_keeps_everything_does_without_the_loop(remat, devices, has_loop):
  c = base.get_config()
  c.model.remat, c.model.dtype, c.model.loss_chunk = remat, "float32", -1
  cfg, batch = test_step.CFG, test_step.make_batch()
  mesh = meshes.make_mesh(devices=jax.devices()[:devices])
  stepping = make_stepping(c, cfg, mesh, total_steps=10, num_languages=test_step.LANGUAGES)
  with jax.set_mesh(mesh):
    text = stepping.train_step.lower(stepping.state_shapes(), batch).as_text()
  loops = [line for line in text.splitlines() if "stablehlo.while" in line]
  stream = "x".join(map(str, (*batch.tokens.shape, cfg.d_model)))
  assert any(f"tensor<{stream}xf32>" in line for line in loops) == has_loop, loops
