"""Checkpoints: what comes back, what is kept, and which step a name means."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from mlit_jax import mesh as meshes
from mlit_jax.errors import UserError
from mlit_jax.model import decoder
from mlit_jax.model.config import DecoderConfig
from mlit_jax.training.checkpoint import Checkpoints, abstract_like, prefers_lower, resolve_step
from mlit_jax.training.optimizer import from_optax
from mlit_jax.training.step import State, state_shardings

CFG = DecoderConfig(family="llama", vocab_size=16, d_model=8, num_layers=2, num_heads=2, num_kv_heads=2, head_dim=4, d_ff=12)  # fmt: skip
OPTIMIZER = from_optax(optax.adamw(1e-3))


def shardings_on(*sizes) -> State:
  mesh = meshes.make_mesh(*sizes, devices=jax.devices()[: int(np.prod(sizes))])
  params = meshes.param_shardings(decoder.param_specs(CFG), mesh)
  return state_shardings(OPTIMIZER, params, decoder.param_shapes(CFG), mesh)


def shapes() -> State:
  return jax.eval_shape(
    lambda p: State(jnp.zeros((), jnp.int32), p, OPTIMIZER.init(p)), decoder.param_shapes(CFG)
  )


def make_state(step: int, *sizes) -> State:
  """Random values everywhere, among them some that only their bits tell apart."""
  rng = np.random.default_rng(step)

  def value(s):
    if s.dtype == jnp.int32:
      return np.asarray(step, np.int32)
    out = rng.standard_normal(s.shape).astype(np.float32)
    out.flat[:3] = [-0.0, 1e-42, np.nextafter(np.float32(1), np.float32(2))]
    return out

  return jax.device_put(jax.tree.map(value, shapes()), shardings_on(*(sizes or (1, 1, 1))))


def meta(step: int) -> dict:
  return {"step": step, "plan": "p", "trained": {"examples": {"sw": 3 * step}}}


def bits(tree):
  return jax.tree.map(lambda x: np.asarray(x).tobytes(), tree)


def save_all(checkpoints, metrics: dict):
  for step, metric in metrics.items():
    checkpoints.save(make_state(step), meta(step), metric)
  checkpoints.wait()


def test_what_was_saved_comes_back_bit_by_bit_on_any_mesh(tmp_path):
  state = make_state(3, 1, 4, 2)
  with Checkpoints(tmp_path) as checkpoints:
    assert checkpoints.latest() is None
    checkpoints.save(state, meta(3), 1.5)
    checkpoints.wait()
  for sizes in ((1, 4, 2), (2, 2, 2), (1, 1, 1)):
    shardings = shardings_on(*sizes)
    with Checkpoints(tmp_path) as checkpoints:
      assert checkpoints.latest() == 3
      restored, found = checkpoints.restore(3, abstract_like(shapes(), shardings))
    assert bits(restored) == bits(state)
    assert jax.tree.map(lambda x: x.sharding, restored) == shardings
    assert found == meta(3) | {"metric": 1.5}


def test_a_save_is_of_the_moment_it_was_asked_for(tmp_path):
  """The bytes are written later, while the next step already overwrites (donates) the state."""
  state = make_state(1)
  expected = bits(state)
  bump = jax.jit(lambda s: jax.tree.map(lambda x: x + 1, s), donate_argnums=0)
  with Checkpoints(tmp_path) as checkpoints:
    checkpoints.save(state, meta(1), None)
    state = bump(state)
    jax.block_until_ready(state)
    checkpoints.wait()
    restored, _ = checkpoints.restore(1, abstract_like(shapes(), shardings_on(1, 1, 1)))
  assert bits(restored) == expected


def test_parameters_alone(tmp_path):
  state = make_state(2)
  with Checkpoints(tmp_path) as checkpoints:
    save_all(checkpoints, {2: None})
  shardings = shardings_on(1, 2, 1).params
  with Checkpoints(tmp_path) as checkpoints:
    params = checkpoints.restore_params(2, abstract_like(decoder.param_shapes(CFG), shardings))
  assert bits(params) == bits(state.params)


WORSE = {1: 3.0, 2: 1.0, 3: 2.0, 4: 2.5}  # the metric gets worse after step 2


@pytest.mark.parametrize("reopened", [False, True])
@pytest.mark.parametrize("lower", [True, False])
def test_latest_and_best_are_kept(tmp_path, lower, reopened):
  metrics = {step: m if lower else -m for step, m in WORSE.items()}
  options = dict(keep_latest=1, keep_best=1, lower_is_better=lower)
  if reopened:  # as a run that is stopped after every save
    for step, metric in metrics.items():
      with Checkpoints(tmp_path, **options) as checkpoints:
        save_all(checkpoints, {step: metric})
  else:
    with Checkpoints(tmp_path, **options) as checkpoints:
      save_all(checkpoints, metrics)
  with Checkpoints(tmp_path, **options) as checkpoints:
    assert checkpoints.steps() == [2, 4]
  assert resolve_step(tmp_path, "best", lower_is_better=lower) == 2
  assert resolve_step(tmp_path, "latest") == 4


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), None])
def test_no_metric_never_deletes_the_best(tmp_path, bad):
  with Checkpoints(tmp_path, keep_latest=1, keep_best=1) as checkpoints:
    save_all(checkpoints, {1: 2.0, 2: 1.0, 3: bad, 4: bad, 5: bad})
    assert checkpoints.steps() == [2, 5]
    _, found = checkpoints.restore(5, abstract_like(shapes(), shardings_on(1, 1, 1)))
    assert found["metric"] is None
  assert resolve_step(tmp_path, "best") == 2


def test_only_the_latest(tmp_path):
  with Checkpoints(tmp_path, keep_latest=2, keep_best=0) as checkpoints:
    save_all(checkpoints, WORSE)
    assert checkpoints.steps() == [3, 4]


def test_names_of_steps(tmp_path):
  with pytest.raises(UserError, match="holds no checkpoint"):
    resolve_step(tmp_path, "latest")
  with Checkpoints(tmp_path, keep_latest=9) as checkpoints:
    save_all(checkpoints, {2: None, 10: None})
  assert resolve_step(tmp_path, "latest") == 10
  assert resolve_step(tmp_path, "2") == 2
  with pytest.raises(UserError, match=r"no step '7'.*2, 10"):
    resolve_step(tmp_path, "7")
  with pytest.raises(UserError, match="no checkpoint was saved with an evaluation"):
    resolve_step(tmp_path, "best")
  (tmp_path / "11.orbax-checkpoint-tmp-1").mkdir()  # what a kill leaves
  assert resolve_step(tmp_path, "latest") == 10


def test_a_reader_takes_nothing_from_a_run_that_is_saving(tmp_path):
  """`generate` on the workdir of a run at work must leave its half-written step alone."""
  with Checkpoints(tmp_path) as checkpoints:
    save_all(checkpoints, {1: None})
  half = tmp_path / "2.orbax-checkpoint-tmp-1"
  half.mkdir()
  shardings = shardings_on(1, 1, 1).params
  with Checkpoints(tmp_path, read_only=True) as reader:
    reader.restore_params(1, abstract_like(decoder.param_shapes(CFG), shardings))
  assert half.is_dir()


def test_which_metrics_are_better_when_lower():
  assert prefers_lower("heldout/mean/loss") and prefers_lower("heldout/sw/bits_per_byte")
  assert not prefers_lower("heldout/worst/fidelity") and not prefers_lower("heldout/mean/chrf")


def test_a_save_holds_the_ledger_of_its_step(tmp_path, monkeypatch):
  """The loop goes on counting while Orbax still writes: what Orbax holds must be its own."""
  told, held = meta(1), []
  with Checkpoints(tmp_path) as checkpoints:
    monkeypatch.setattr(checkpoints.writer, "save", lambda folder, args: held.append(args))
    checkpoints.save(make_state(1), told, None)
    checkpoints.begun = None  # nothing was
  told["trained"]["examples"]["sw"] = 10**6
  assert held[0]["meta"].item.items() >= (meta(1) | {"metric": None}).items()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # of Orbax
def test_a_damaged_step_is_named(tmp_path):
  with Checkpoints(tmp_path) as checkpoints:
    save_all(checkpoints, {1: None})
  for file in (tmp_path / "1" / "params").rglob("*"):
    if file.is_file() and file.parent.name == "d":
      file.write_bytes(b"")
  shardings = shardings_on(1, 1, 1).params
  with Checkpoints(tmp_path) as checkpoints, pytest.raises(UserError, match=r"/1 cannot be read"):
    checkpoints.restore_params(1, abstract_like(decoder.param_shapes(CFG), shardings))


def test_a_step_evaluated_after_it_was_saved_can_be_the_best(tmp_path):
  with Checkpoints(tmp_path, keep_latest=1, keep_best=1) as checkpoints:
    save_all(checkpoints, {1: 2.0, 2: None})  # 2: saved on a signal
  with Checkpoints(tmp_path, keep_latest=1, keep_best=1) as checkpoints:
    checkpoints.add_metric(2, 1.0)
    save_all(checkpoints, {3: 3.0})
  with Checkpoints(tmp_path, keep_latest=1, keep_best=1) as checkpoints:
    save_all(checkpoints, {4: 3.0})
    assert checkpoints.steps() == [2, 4]
    _, found = checkpoints.restore(2, abstract_like(shapes(), shardings_on(1, 1, 1)))
  assert found == meta(2) | {"metric": 1.0}
  assert resolve_step(tmp_path, "best") == 2
