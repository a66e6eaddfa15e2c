"""The train step: sums, one division, the same on any mesh; the optimizer and its learning rate."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from mlit_jax import mesh as meshes
from mlit_jax.batch import Batch
from mlit_jax.errors import UserError
from mlit_jax.model import decoder
from mlit_jax.model.config import DecoderConfig
from mlit_jax.training.optimizer import OptimizerConfig, from_optax, make_optimizer, make_schedule
from mlit_jax.training.step import State, make_train_step, state_shardings
from tests.few import few

ROWS, T, LANGUAGES = 8, 12, 3
CFG = DecoderConfig(
  family="qwen3", vocab_size=40, d_model=16, num_layers=2, num_heads=4, num_kv_heads=2, head_dim=4, d_ff=24, qk_norm=True
)  # fmt: skip


def make_batch(seed=0) -> Batch:
  """Two examples and some padding in a row; from 0 to 10 trained tokens, uneven on purpose."""
  rng = np.random.default_rng(seed)
  tokens = rng.integers(0, CFG.vocab_size, (ROWS, T)).astype(np.int32)
  positions, segments, language = (np.zeros((ROWS, T), np.int32) for _ in range(3))
  weights = np.zeros((ROWS, T), np.float32)
  for r, trained in enumerate([1, 9, 2, 7, 3, 10, 0, 6]):
    first = 4 + r % 3
    for segment, (a, b) in enumerate([(0, first), (first, T - 1)], start=1):
      positions[r, a:b], segments[r, a:b] = np.arange(b - a), segment
      language[r, a:b] = (r + segment) % 2 * 2  # 0 and 2: language 1 has no token here
    weights[r, np.setdiff1d(np.arange(T - 1), [first - 1])[:trained]] = 1
  targets = np.where(segments > 0, np.roll(tokens, -1, axis=1), 0).astype(np.int32)
  tokens[segments == 0] = 0
  return Batch(tokens, targets, weights, positions, segments, language)


def apply(params, *arrays, dtype=jnp.float32):
  return decoder.apply(params, CFG, *arrays, dtype=dtype)


def make_params():
  rng = np.random.default_rng(7)
  return jax.tree.map(
    lambda a: a + 0.2 * rng.standard_normal(a.shape).astype(np.float32),
    decoder.init_params(CFG, jax.random.key(7)),
  )


class Trainer:
  """A step on a mesh, put together as the entry point does it; `options` are the compiler's."""

  def __init__(
    self,
    optimizer,
    *,
    sizes=(1, 1, 1),
    microbatches=1,
    clip_norm=0.0,
    dtype=jnp.float32,
    options=None,
  ):
    self.options = options
    self.mesh = meshes.make_mesh(*sizes, devices=jax.devices()[: int(np.prod(sizes))])
    shardings = state_shardings(
      optimizer,
      meshes.param_shardings(decoder.param_specs(CFG), self.mesh),
      decoder.param_shapes(CFG),
      self.mesh,
    )
    self.state = jax.jit(
      lambda params: State(jnp.zeros((), jnp.int32), params, optimizer.init(params)),
      out_shardings=shardings,
    )(make_params())
    self.step = make_train_step(
      lambda params, *arrays: decoder.hidden(params, CFG, *arrays, dtype=dtype),
      optimizer,
      shardings,
      self.mesh,
      num_languages=LANGUAGES,
      microbatches=microbatches,
      clip_norm=clip_norm,
    )

  def run(self, *batches):
    """The metrics of each step, on the host."""
    out = []
    with jax.set_mesh(self.mesh):
      for batch in batches:
        batch = meshes.put_batch(batch, self.mesh, ROWS)
        if self.options:
          compiled = self.step.lower(self.state, batch).compile(compiler_options=self.options)
          self.step, self.options = compiled, None
        self.state, metrics = self.step(self.state, batch)
        out.append(jax.device_get(metrics))
    return out


def momentum():
  """After one step its trace is the gradient."""
  return from_optax(optax.sgd(0.1, momentum=0.9))


def gradient(trainer):
  return jax.device_get(trainer.state.opt_state[0].trace)


@pytest.fixture(scope="module")
def whole(as_for_users):
  """Three steps of the whole batch on one device, and the gradient of the first."""
  trainer = Trainer(momentum(), options=as_for_users)
  metrics = trainer.run(make_batch(0))
  first = gradient(trainer)
  metrics += trainer.run(make_batch(1), make_batch(2))
  return metrics, first, jax.device_get(trainer.state)


def test_the_loss_is_the_mean_over_all_trained_tokens(whole, assert_close):
  """Against a gradient taken without any of the step's code."""
  batch = make_batch(0)

  @jax.jit
  @jax.value_and_grad
  def mean_nll(params):
    logits = apply(params, batch.tokens, batch.positions, batch.segments)
    nll = optax.softmax_cross_entropy_with_integer_labels(logits, batch.targets)
    return jnp.sum(nll * batch.weights) / batch.weights.sum()

  loss, grads = mean_nll(make_params())
  metrics, first, _ = whole
  assert_close(metrics[0].sums.nll.sum() / metrics[0].sums.trained.sum(), loss)
  assert_close(first, jax.device_get(grads))
  assert_close(metrics[0].grad_norm, optax.tree.norm(grads))


@pytest.mark.parametrize("microbatches", [2, 8])
def test_microbatches_equal_the_whole(whole, assert_close, microbatches):
  trainer = Trainer(momentum(), microbatches=microbatches)
  metrics = trainer.run(make_batch(0))
  assert_close(gradient(trainer), whole[1])
  assert_close(metrics[0], whole[0][0])


@pytest.mark.parametrize(
  "sizes, microbatches", few(1, [((2, 2, 2), 1), ((1, 4, 2), 1), ((2, 1, 1), 4)])
)
def test_any_mesh_equals_one_device(whole, assert_close, as_for_users, sizes, microbatches):
  """Sums over many tokens are a digit more exact in vectors, so the machine code is that of users."""
  trainer = Trainer(momentum(), sizes=sizes, microbatches=microbatches, options=as_for_users)
  if sizes[1] > 1:
    up = trainer.state.params["blocks"]["mlp"]["up_DF"]
    assert up.addressable_shards[0].data.size * sizes[1] * sizes[2] == up.size, "not sharded at all"
  metrics = trainer.run(make_batch(0), make_batch(1), make_batch(2))
  assert_close(metrics, whole[0])
  assert_close(jax.device_get(trainer.state), whole[2])


def test_sums_per_language_are_a_recount(whole):
  batch = make_batch(0)
  sums = whole[0][0].sums
  logits = np.asarray(
    apply(make_params(), batch.tokens, batch.positions, batch.segments), np.float64
  )
  chosen = np.take_along_axis(logits, batch.targets[..., None], -1)[..., 0]
  nll = np.log(np.exp(logits).sum(-1)) - chosen
  for lang in range(LANGUAGES):
    here = (batch.language == lang) & (batch.segments > 0)
    assert sums.tokens[lang] == here.sum()
    assert sums.trained[lang] == (batch.weights[here] > 0).sum()
    assert sums.examples[lang] == len(
      {(r, s) for r, s in zip(np.nonzero(here)[0], batch.segments[here])}
    )
    np.testing.assert_allclose(sums.nll[lang], (nll * batch.weights)[here].sum(), rtol=1e-5)
  assert sums.tokens[1] == 0 and sums.tokens[0] and sums.tokens[2]
  assert sums.tokens.sum() == (batch.segments > 0).sum() and sums.examples.sum() == 2 * ROWS


def test_a_step_compiles_once():
  compiled = []
  on = jax.monitoring.register_event_duration_secs_listener
  on(lambda event, _, **__: compiled.append(event) if "backend_compile" in event else None)
  trainer = Trainer(adamw(), sizes=(2, 2, 2), microbatches=2, clip_norm=1.0)
  batches = [make_batch(i) for i in range(4)]
  trainer.run(batches[0])
  assert compiled, "the listener hears nothing"
  before = len(compiled)
  trainer.run(*batches[1:])
  assert len(compiled) == before
  assert trainer.step._cache_size() == 1
  assert int(trainer.state.step) == 4


@pytest.mark.parametrize("factor", [0.1, 10.0])
def test_clipping(whole, assert_close, factor):
  norm = float(whole[0][0].grad_norm)
  trainer = Trainer(momentum(), clip_norm=factor * norm)
  metrics = trainer.run(make_batch(0))
  assert_close(metrics[0].grad_norm, norm)  # as it was before
  scale = min(1.0, factor)
  assert_close(gradient(trainer), jax.tree.map(lambda g: g * scale, whole[1]))


def test_a_batch_of_padding_changes_nothing(assert_close):
  batch = make_batch(0)
  zero = jax.tree.map(np.zeros_like, batch)
  trainer = Trainer(from_optax(optax.sgd(1.0)))
  trainer.run(zero)
  assert_close(jax.device_get(trainer.state.params), jax.device_get(make_params()), tolerance=0)


def adamw(steps=10, cfg=CFG, **changes):
  return make_optimizer(settings(**changes), steps, decoder.param_specs(cfg))


def one_update(optimizer, params, grads):
  """How far each parameter is moved."""
  new, _ = optimizer.apply(
    grads, jnp.ones(()), optimizer.init(params), params, jnp.zeros((), jnp.int32)
  )
  return jax.tree.map(jnp.subtract, new, params)


def settings(**changes) -> OptimizerConfig:
  return OptimizerConfig(
    **dict(learning_rate=1e-2, schedule="constant", warmup_steps=0, final_learning_rate=0.0, weight_decay=0.0,
           b1=0.9, b2=0.999, eps=1e-8, gradient_clip_norm=1.0) | changes
  )  # fmt: skip


def test_weights_move_at_a_learning_rate_of_1e_minus_6():
  """In bfloat16 a weight of 1 would not: its next neighbour is 0.004 away."""
  trainer = Trainer(adamw(learning_rate=1e-6), dtype=jnp.bfloat16)
  trainer.run(make_batch(0))
  for path, (old, new) in jax.tree_util.tree_leaves_with_path(
    jax.tree.map(lambda *x: x, jax.device_get(make_params()), jax.device_get(trainer.state.params)),
    is_leaf=lambda x: isinstance(x, tuple),
  ):
    assert new.dtype == np.float32, path
    # Rows of the table that stand in no text have no gradient only if untied; CFG is tied.
    assert (old != new).mean() > 0.9, path
    assert np.abs(new - old).max() < 1.5e-6, path
  moments = jax.tree.leaves(jax.device_get(trainer.state.opt_state))
  assert all(x.dtype in (np.float32, np.int32) for x in moments)


@pytest.mark.parametrize(
  "choices, matrices, vectors",
  [
    (dict(qk_norm=True, post_norms=True), 9, 10),
    (
      dict(
        norm="layer", norm_bias=True, embed_norm=True, gated=False, out_bias=True, mlp_bias=True
      ),
      8,
      14,
    ),
  ],
)
def test_matrices_decay_and_norms_and_biases_do_not(choices, matrices, vectors):
  cfg = DecoderConfig(
    family="qwen3", vocab_size=40, d_model=16, num_layers=2, num_heads=4, num_kv_heads=2, head_dim=4, d_ff=24,
    attn_bias=True, tied=False, **choices,
  )  # fmt: skip
  params = jax.tree.map(lambda s: jnp.ones(s.shape), decoder.param_shapes(cfg))
  still = jax.tree.map(jnp.zeros_like, params)
  updates = one_update(adamw(cfg=cfg, weight_decay=0.1), params, still)
  kinds = {True: 0, False: 0}
  for path, value in jax.tree_util.tree_leaves_with_path(updates):
    axes = "/".join(k.key for k in path)
    decays = not ("norm" in axes or "bias" in axes)
    kinds[decays] += 1
    np.testing.assert_allclose(value, -1e-2 * 0.1 if decays else 0.0, rtol=1e-4, err_msg=axes)
  assert kinds == {True: matrices, False: vectors}


def test_scalars_do_not_decay_and_buffers_do_not_train():
  cfg = DecoderConfig(
    family="apertus", vocab_size=40, d_model=16, num_layers=2, num_heads=4, num_kv_heads=2, head_dim=4, d_ff=24,
    activation="xielu", gated=False,
  )  # fmt: skip
  params = decoder.init_params(cfg, jax.random.key(0))
  optimizer, batch = adamw(cfg=cfg, weight_decay=0.1), make_batch()
  arrays = batch.tokens, batch.positions, batch.segments
  zeros = jax.tree.map(jnp.zeros_like, params)
  still = one_update(optimizer, params, zeros)["blocks"]["mlp"]["xielu"]
  assert all(not x.any() for x in still.values())
  grads = jax.grad(lambda p: jnp.sum(decoder.apply(p, cfg, *arrays)[..., 0]))(params)
  updates = one_update(optimizer, params, grads)["blocks"]["mlp"]["xielu"]
  moves = {name: bool((x != 0).all()) for name, x in updates.items()}
  assert moves == {"alpha_p": True, "alpha_n": True, "beta": False, "eps": False}
  assert not updates["beta"].any() and not updates["eps"].any()


def test_learning_rates():
  def rates(steps, **changes):
    schedule = make_schedule(settings(learning_rate=8.0, **changes), steps)
    return [float(schedule(s)) for s in range(steps + 1)]

  assert rates(3) == [8.0] * 4
  assert rates(8, warmup_steps=4)[:6] == pytest.approx([2, 4, 6, 8, 8, 8])
  assert rates(4, warmup_steps=1) == [8.0] * 5
  cosine = rates(12, schedule="cosine", warmup_steps=4, final_learning_rate=2.0)
  assert cosine[:5] == pytest.approx([2, 4, 6, 8, 8])
  assert cosine[8] == pytest.approx(5.0)  # half way down
  assert cosine[12] == pytest.approx(2.0)
  assert cosine[4:] == sorted(cosine[4:], reverse=True)
  assert rates(12, schedule="linear", warmup_steps=4)[4:] == pytest.approx(
    [8, 7, 6, 5, 4, 3, 2, 1, 0]
  )
  assert rates(2, schedule="cosine")[-1] == pytest.approx(0.0, abs=1e-6)


@pytest.mark.parametrize("changes", [dict(schedule="cosin"), dict(warmup_steps=5)])
def test_a_schedule_that_cannot_be(changes):
  with pytest.raises(UserError) as e:
    make_schedule(settings(**changes), 5)
  assert str(next(iter(changes.values()))) in str(e.value) and next(iter(changes)) in str(e.value)
