"""What a CPU computes in another way, for speed: products as one, and layers one after the other without a loop."""

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
from tests.training.test_bad_updates import bits


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
  terms = rows[0].size * cfg.d_model  # of any sign, about 1 each
  np.testing.assert_allclose(other_total, total, rtol=1e-5, atol=1e-6 * np.sqrt(terms))
  assert_close(other_grads, grads, GRADIENT_TOLERANCE.get(cfg.family, 1e-5))


def test_sines_and_cosines_are_computed_once():
  """XLA on CPU would do so in each of the places that read them: a tenth of a step of six layers."""
  cfg, (rows, _) = CONFIGS["llama"], packed()
  text = gradients(cfg, unrolled=True).lower(make_params(cfg), *rows).compile().as_text()
  assert text.count(" sine(") == text.count(" cosine(") == 1


def stepping_on(mesh, remat="none"):
  c = base.get_config()
  c.model.remat, c.model.dtype, c.model.loss_chunk = remat, "float32", -1
  c.optimizer.learning_rate = 1e-2
  return make_stepping(c, test_step.CFG, mesh, total_steps=10, num_languages=test_step.LANGUAGES)


@pytest.mark.parametrize(
  "remat, sizes, has_loop",
  [
    ("none", {}, False),
    ("none", {"data": 2, "fsdp": 2}, False),
    ("none", {"fsdp": 1, "tensor": 2}, True),  # joined, the parts of products would lie elsewhere
    ("none", {"fsdp": 1, "context": 2}, True),
    ("none", {"fsdp": 1, "expert": 2}, True),
    ("attention_saved", {}, True),
  ],
)
def test_only_what_keeps_everything_does_without_the_loop(remat, sizes, has_loop):
  mesh = meshes.make_mesh(**sizes, devices=jax.devices()[: max(1, int(np.prod([*sizes.values()])))])
  stepping, batch = stepping_on(mesh, remat), test_step.make_batch()
  assert stepping.unrolled == (not has_loop)
  with jax.set_mesh(mesh):
    text = stepping.train_step.lower(stepping.state_shapes(), batch).as_text()
  loops = [line for line in text.splitlines() if "stablehlo.while" in line]
  stream = "x".join(map(str, (*batch.tokens.shape, test_step.CFG.d_model)))
  assert any(f"tensor<{stream}xf32>" in line for line in loops) == has_loop, loops


def test_several_processes_keep_the_loop(monkeypatch):
  """Also of one that holds all of the mesh."""
  mesh = meshes.make_mesh(devices=jax.devices()[:2])
  assert stepping_on(mesh).unrolled
  monkeypatch.setattr(jax, "process_count", lambda: 2)
  assert not stepping_on(mesh).unrolled


def two_steps(**sizes):
  """(losses, parameters and moments) after them."""
  num = int(np.prod([*sizes.values()]))
  mesh = meshes.make_mesh(**sizes, devices=jax.devices()[:num])
  stepping = stepping_on(mesh)
  state, losses = stepping.begin(test_step.make_params()), []
  with jax.set_mesh(mesh):
    for seed in range(2):
      batch = meshes.put_batch(test_step.make_batch(seed), mesh, test_step.ROWS)
      state, metrics = stepping.train_step(state, batch)
      losses.append(float(metrics.sums.nll.sum()))
  return losses, jax.device_get((state.params, state.opt_state))


@pytest.mark.parametrize("sizes", [{"data": 2, "fsdp": 1}, {"fsdp": 4}], ids=["data 2", "fsdp 4"])
def test_several_devices_of_one_cpu_train_as_one_does(sizes, assert_close):
  losses, state = two_steps(fsdp=1)
  others, other_state = two_steps(**sizes)
  np.testing.assert_allclose(others, losses, rtol=1e-6)
  assert_close(other_state, state, 1e-5)


@pytest.mark.slow
def test_several_devices_of_one_cpu_give_the_same_bits_each_time():
  """On one machine they did not, with a larger decoder (docs/log.md, 2026-11-28)."""
  seen = set()
  for _ in range(20):
    losses, state = two_steps(data=2, fsdp=2)
    seen.add((*losses, *bits(state)))
  assert len(seen) == 1
