"""AdamW, Adafactor and Muon: the published rules, where their state lies, on any mesh, and begun again."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from mlit_jax import mesh as meshes
from mlit_jax.model import decoder
from mlit_jax.model.config import DecoderConfig
from mlit_jax.training import rules
from mlit_jax.training.checkpoint import Checkpoints, abstract_like
from mlit_jax.training.optimizer import OptimizerConfig, make_optimizer
from mlit_jax.training.step import State, make_train_step, state_shardings
from tests.few import few
from tests.training.test_step import LANGUAGES, ROWS, make_batch

CFG = DecoderConfig(
  family="qwen3", vocab_size=64, d_model=64, num_layers=2, num_heads=4, num_kv_heads=2, head_dim=32, d_ff=64,
  qk_norm=True, attn_bias=True, tied=False,
)  # fmt: skip
SPECS = decoder.param_specs(CFG)
# The others are compiled for tens of seconds.
KINDS = few(1, [
  ("adamw", "bfloat16", "bfloat16"),
  ("adamw", "float32", "bfloat16"),
  ("adamw", "int8", "float32"),
  ("muon", "int8", "bfloat16"),
  ("adafactor", "float32", "bfloat16"),
])  # fmt: skip
every_kind = pytest.mark.parametrize("name, moments, param_dtype", KINDS)


def optimizer_of(name, moments="float32", **changes):
  cfg = OptimizerConfig(
    **dict(learning_rate=1e-2, schedule="constant", warmup_steps=0, final_learning_rate=0.0, weight_decay=0.1,
           b1=0.9, b2=0.99, eps=1e-8, gradient_clip_norm=0.0, name=name, moments=moments) | changes
  )  # fmt: skip
  return make_optimizer(cfg, 10, SPECS, seed=3)


class Trainer:
  def __init__(
    self, name, moments, param_dtype, sizes=(1, 1, 1), microbatches=1, options=None, **changes
  ):
    self.mesh = meshes.make_mesh(*sizes, devices=jax.devices()[: int(np.prod(sizes))])
    optimizer = optimizer_of(name, moments, **changes)
    shapes = decoder.param_shapes(CFG, param_dtype)
    self.shardings = state_shardings(optimizer, meshes.param_shardings(SPECS, self.mesh), shapes, self.mesh)  # fmt: skip
    self.first = lambda params: State(jnp.zeros((), jnp.int32), params, optimizer.init(params))
    self.shapes = jax.eval_shape(self.first, shapes)
    params = decoder.init_params(CFG, jax.random.key(7), param_dtype)
    self.state = jax.jit(self.first, out_shardings=self.shardings)(params)
    self.step = make_train_step(
      lambda params, *arrays: decoder.hidden(params, CFG, *arrays),
      optimizer,
      self.shardings,
      self.mesh,
      num_languages=LANGUAGES,
      microbatches=microbatches,
      accumulation_dtype=jnp.dtype(param_dtype),
      clip_norm=1.0,
    )
    if options:  # of the compiler
      with jax.set_mesh(self.mesh):
        batch = meshes.put_batch(make_batch(0), self.mesh, ROWS)
        self.step = self.step.lower(self.state, batch).compile(options)

  def run(self, numbers):
    losses = []
    with jax.set_mesh(self.mesh):
      for i in numbers:
        self.state, metrics = self.step(
          self.state, meshes.put_batch(make_batch(i), self.mesh, ROWS)
        )
        losses.append(float(metrics.sums.nll.sum() / metrics.sums.trained.sum()))
    return losses


def updates_of(optimizer, params, grads_of_steps):
  state = optimizer.init(params)
  for step, grads in enumerate(grads_of_steps):
    params, state = optimizer.apply(grads, jnp.ones(()), state, params, jnp.int32(step))
  return params


def optax_of(transform, params, grads_of_steps):
  state = transform.init(params)
  for grads in grads_of_steps:
    updates, state = transform.update(grads, state, params)
    params = optax.apply_updates(params, updates)
  return params


def random_like(params, seed):
  rng = np.random.default_rng(seed)
  return jax.tree.map(lambda p: rng.standard_normal(p.shape).astype(np.float32), params)


@pytest.fixture(scope="module")
def params():
  return decoder.init_params(CFG, jax.random.key(7))


def test_adamw_is_that_of_optax(params, assert_close):
  grads = [random_like(params, i) for i in range(3)]
  decays = jax.tree.map_with_path(lambda path, _: not any(w in path[-1].key for w in ("scale", "bias")), params)  # fmt: skip
  theirs = optax_of(optax.adamw(1e-2, b2=0.99, weight_decay=0.1, mask=decays), params, grads)
  assert_close(updates_of(optimizer_of("adamw"), params, grads), theirs)


AS_MATRIX = {"q_DNH": (64, 128), "o_NHD": (128, 64), "up_DF": (64, 64), "k_DKH": (64, 64)}


@pytest.mark.parametrize("name", ["muon", "adafactor"])
@pytest.mark.slow
def test_matrices_of_layers_are_those_of_optax_one_by_one(params, name, assert_close):
  """Heads merged, each layer by itself: what optax makes of the same matrices when given them so."""
  transform = {
    "muon": optax.contrib.muon(1e-2, weight_decay=0.1, consistent_rms=0.2),
    "adafactor": optax.chain(
      optax.adafactor(None, min_dim_size_to_factor=8, multiply_by_parameter_scale=False),
      optax.add_decayed_weights(-0.1),
      optax.scale(1e-2),
    ),
  }[name]
  grads = [random_like(params, i) for i in range(3)]
  ours = updates_of(optimizer_of(name), params, grads)
  seen = set()
  for (path, new), old, *gs in zip(
    jax.tree_util.tree_leaves_with_path(ours["blocks"]),
    jax.tree.leaves(params["blocks"]),
    *(jax.tree.leaves(g["blocks"]) for g in grads),
    strict=True,
  ):
    shape = AS_MATRIX.get(path[-1].key)
    for layer in range(CFG.num_layers) if shape else ():
      cut = lambda x: x[layer].reshape(shape)  # noqa: B023, E731
      assert_close(cut(new), optax_of(transform, cut(old), [cut(g) for g in gs]), 1e-4)
      seen.add(path[-1].key)
  assert seen == set(AS_MATRIX)


def test_muon_leaves_tables_and_vectors_to_adamw(params, assert_close):
  grads = [random_like(params, i) for i in range(2)]
  adamw, muon = (updates_of(optimizer_of(name), params, grads) for name in ("adamw", "muon"))
  assert_close(muon["embed"], adamw["embed"])
  assert_close(muon["head"], adamw["head"])
  for norm in ("attn_norm", "mlp_norm"):
    assert_close(muon["blocks"][norm], adamw["blocks"][norm])
  assert_close(muon["blocks"]["attn"]["q_bias_NH"], adamw["blocks"]["attn"]["q_bias_NH"])
  state = optimizer_of("muon").init(params)
  assert set(state["blocks"]["attn"]["q_DNH"]) == {"m"} and set(state["embed"]["table_VD"]) == {"m", "v"}  # fmt: skip


def test_every_parameter_of_every_shape_is_a_matrix_or_not():
  of = rules.matrix_of
  assert of("q_DNH", ("embed", "heads", "head_dim")) == ((0,), (1, 2))
  assert of("o_NHD", ("heads", "head_dim", "embed")) == ((0, 1), (2,))
  assert of("up_EDF", ("expert", "embed", "mlp")) == ((1,), (2,))
  assert of("table_VLP", ("vocab", "layers", "layer_table")) == ((0,), (2,))
  assert of("scale_NH", ("heads", "head_dim")) is None and of("q_bias_NH", ("heads", "head_dim")) is None  # fmt: skip
  assert of("scale_D", ("embed",)) is None and of("alpha_p", ()) is None


def test_adafactor_keeps_a_row_and_a_column_of_each_layer(params):
  attn = optimizer_of("adafactor").init(params)["blocks"]["attn"]
  assert {n: a.shape for n, a in attn["q_DNH"].items()} == {"row": (2, 64), "column": (2, 4, 32)}
  assert {n: a.shape for n, a in attn["o_NHD"].items()} == {"row": (2, 4, 32), "column": (2, 64)}


@every_kind
def test_moments_lie_where_their_parameters_do(name, moments, param_dtype):
  trainer = Trainer(name, moments, param_dtype, sizes=(1, 4, 2))
  trainer.run(range(1))
  checked = 0
  for path, p in jax.tree_util.tree_leaves_with_path(trainer.state.params):
    state = trainer.state.opt_state
    for key in path:
      state = state[key.key]
    parts = 8 if name != "adafactor" else 1
    for what, array in state.items():
      local = array.addressable_shards[0].data.shape
      if array.ndim == p.ndim:
        assert array.sharding.spec == p.sharding.spec, (path, what)
        cut = [n // m for n, m in zip(p.shape, p.addressable_shards[0].data.shape, strict=True)]
        assert local == tuple(n // c for n, c in zip(array.shape, cut, strict=True)), (path, what)
        is_whole = p.addressable_shards[0].data.shape == p.shape
        assert is_whole or array.size > np.prod(local), (path, what)
        parts = min(parts, array.size // int(np.prod(local)))
      checked += 1
    if name != "adafactor" and rules.matrix_of(path[-1].key, tuple("embed" for _ in p.shape[-2:])):
      assert parts >= 2, path  # nothing of a matrix is whole on every device
  assert checked > 20


@pytest.mark.slow
@every_kind
def test_any_mesh_equals_one_device(name, moments, param_dtype):
  one, many = (Trainer(name, moments, param_dtype, sizes=sizes) for sizes in ((1, 1, 1), (2, 2, 2)))
  losses = [trainer.run(range(4)) for trainer in (one, many)]
  assert losses[0] == pytest.approx(losses[1], rel=2e-3), losses
  assert losses[0][-1] != pytest.approx(losses[0][0], rel=1e-2)  # something was learned
  first = jax.tree.map(np.asarray, jax.device_get([one.state.params, many.state.params]))
  a, b = (np.concatenate([np.float32(x).ravel() for x in jax.tree.leaves(p)]) for p in first)
  # Chance falls alike on both: but for values on a border, weights are the same to a step of their dtype.
  assert np.mean(np.abs(a - b) > 2e-2 * np.abs(a) + 2e-3) < 1e-2


@pytest.mark.slow
def test_the_same_bits_on_any_mesh():
  """One update from equal gradients: bit by bit the same weights in bfloat16."""
  out = []
  for sizes in ((1, 1, 1), (1, 4, 2), (2, 2, 2)):
    trainer = Trainer("adamw", "bfloat16", "bfloat16", sizes=sizes)
    optimizer = optimizer_of("adamw", "bfloat16", learning_rate=1e-5)
    grads = random_like(trainer.state.params, 0)
    apply = jax.jit(lambda g, s: optimizer.apply(g, jnp.ones(()), s.opt_state, s.params, s.step))  # noqa: B023
    grads = jax.device_put(grads, trainer.shardings.params)
    out.append(jax.device_get(apply(grads, trainer.state)[0]))
  for other in out[1:]:
    same = jax.tree.map(lambda a, b: np.mean(a.view(np.uint16) == b.view(np.uint16)), out[0], other)
    assert min(jax.tree.leaves(same)) > 0.999, same
  moved = jax.tree.map(lambda a, b: np.mean(a != np.asarray(b)), out[0], trainer.state.params)
  assert 0 < moved["blocks"]["mlp"]["up_DF"] < 0.5  # most steps are too small, some count


@every_kind
@pytest.mark.slow
def test_saved_and_begun_again_is_the_same_bit_by_bit(tmp_path, name, moments, param_dtype):
  trainer = Trainer(name, moments, param_dtype, sizes=(1, 2, 1))
  trainer.run(range(2))
  with Checkpoints(tmp_path) as checkpoints:
    checkpoints.save(trainer.state, {"step": 2, "plan": "p", "trained": {}}, None)
    checkpoints.wait()
  trainer.run(range(2, 4))
  again = Trainer(name, moments, param_dtype, sizes=(1, 2, 1))
  with Checkpoints(tmp_path) as checkpoints:
    again.state, _ = checkpoints.restore(2, abstract_like(again.shapes, again.shardings))
  again.run(range(2, 4))
  dtypes = {str(x.dtype) for x in jax.tree.leaves(again.state)}
  assert param_dtype in dtypes and (moments in dtypes or moments == "float32")
  pairs = itertools.zip_longest(jax.tree.leaves(trainer.state), jax.tree.leaves(again.state))
  assert all(np.asarray(a).tobytes() == np.asarray(b).tobytes() for a, b in pairs)


@pytest.mark.slow
def test_microbatches_add_up_in_bfloat16(assert_close):
  """Gradients summed in bfloat16 are near those of one batch, and not the same."""
  whole, parts = (Trainer("adamw", "float32", "bfloat16", microbatches=n) for n in (1, 4))
  for trainer in (whole, parts):
    trainer.run(range(1))
  a, b = (
    np.concatenate([np.asarray(s["m"]).ravel() for s in jax.tree.leaves(t.state.opt_state, is_leaf=lambda x: "m" in x)])
    for t in (whole, parts)
  )  # fmt: skip
  assert 1e-4 < np.linalg.norm(a - b) / np.linalg.norm(a) < 2e-2
