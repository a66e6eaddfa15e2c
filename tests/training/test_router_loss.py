"""The load-balance loss of experts: its figure, its gradient, and the same step on any mesh."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from mlit_jax import mesh as meshes
from mlit_jax.batch import Batch
from mlit_jax.model import decoder
from mlit_jax.model.config import DecoderConfig
from mlit_jax.routing import Routing, balance_loss
from mlit_jax.training import flops
from mlit_jax.training.optimizer import from_optax
from mlit_jax.training.step import State, make_train_step, split_rows, state_shardings
from tests.few import few
from tests.training.test_step import LANGUAGES, ROWS, make_batch

WEIGHT = 0.5  # large, so that the gradient is felt
CFG = DecoderConfig(
  family="mixtral", vocab_size=40, d_model=16, num_layers=2, num_heads=4, num_kv_heads=2, head_dim=4, d_ff=24,
  num_experts=8, experts_per_token=2, router_loss_weight=WEIGHT,
)  # fmt: skip
SIX = dataclasses.replace(CFG, num_experts=6)  # which no mesh of 4 divides


def make_params(cfg):
  rng = np.random.default_rng(7)
  return jax.tree.map(
    lambda a: a + 0.2 * rng.standard_normal(a.shape).astype(np.float32),
    decoder.init_params(cfg, jax.random.key(7)),
  )


def one_step(cfg, *, sizes=None, microbatches=1):
  """(metrics, gradient, where the experts lie) of a step of plain SGD, put together as job.py does it."""
  sizes = sizes or dict(fsdp=1)
  mesh = meshes.make_mesh(**sizes, devices=jax.devices()[: int(np.prod(list(sizes.values())))])
  optimizer = from_optax(optax.sgd(0.1, momentum=0.9))  # after one step its trace is the gradient
  param_shardings = meshes.param_shardings(decoder.param_specs(cfg), mesh)
  shardings = state_shardings(optimizer, param_shardings, decoder.param_shapes(cfg), mesh)
  state = jax.jit(
    lambda params: State(jnp.zeros((), jnp.int32), params, optimizer.init(params)),
    out_shardings=shardings,
  )(make_params(cfg))
  step = make_train_step(
    lambda params, *arrays: decoder.hidden(params, cfg, *arrays, remat="attention_saved"),
    optimizer,
    shardings,
    mesh,
    num_languages=LANGUAGES,
    microbatches=microbatches,
    num_experts=cfg.num_experts,
    router_loss_weight=cfg.router_loss_weight,
  )
  with jax.set_mesh(mesh):
    state, metrics = step(state, meshes.put_batch(make_batch(0), mesh, ROWS))
  gate = state.params["blocks"]["moe"]["gate_EDF"]
  return jax.device_get(metrics), jax.device_get(state.opt_state[0].trace), gate


def loss_and_grad(cfg, batch: Batch, scale_router=1.0, trained=None):
  """Without any of the step's code: mean nll over `trained` tokens, and the balance as written in papers."""

  @jax.jit
  @jax.value_and_grad
  def loss(params):
    arrays = (batch.tokens, batch.positions, batch.segments)
    routing = decoder.hidden(params, cfg, *arrays)[2]
    logits = decoder.apply(params, cfg, *arrays)
    nll = optax.softmax_cross_entropy_with_integer_labels(logits, batch.targets)
    share_E = routing.chosen_E / (batch.segments > 0).sum() / cfg.num_layers
    prob_E = routing.probs_E / (batch.segments > 0).sum() / cfg.num_layers
    aux = cfg.num_experts * jnp.sum(share_E * prob_E)
    total = batch.weights.sum() if trained is None else trained
    return jnp.sum(nll * batch.weights) / total + cfg.router_loss_weight * scale_router * aux

  return jax.device_get(loss(make_params(cfg)))


@pytest.fixture(scope="module")
def whole():
  return {cfg: one_step(cfg) for cfg in (CFG, SIX)}


def test_the_loss_is_nll_and_balance(whole, assert_close):
  metrics, grads, _ = whole[CFG]
  loss, expected = loss_and_grad(CFG, make_batch(0))
  sums = metrics.sums
  assert_close(sums.nll.sum() / sums.trained.sum() + WEIGHT * balance_loss(sums.routing), loss)
  assert_close(grads, expected)
  _, without = loss_and_grad(dataclasses.replace(CFG, router_loss_weight=0.0), make_batch(0))
  router = lambda g: g["blocks"]["moe"]["router_DE"]  # noqa: E731
  assert np.abs(router(without) - router(grads)).max() > 0.1 * np.abs(router(grads)).max()


@pytest.mark.parametrize(
  "cfg, sizes, split",
  few(
    2,
    [
      (CFG, dict(fsdp=2, expert=2, tensor=2), 8),
      (SIX, dict(fsdp=2, expert=4), 2),  # every device has all six
      (CFG, dict(fsdp=1, expert=8), 8),
      (CFG, dict(fsdp=2, expert=4), 8),
      (CFG, dict(data=2, fsdp=1, expert=2, tensor=2), 4),
      (CFG, dict(data=2, fsdp=2, tensor=2), 4),
      (SIX, dict(fsdp=1, expert=2, tensor=4), 8),
    ],
  ),
  ids=str,
)
def test_any_mesh_equals_one_device(whole, assert_close, cfg, sizes, split):
  metrics, grads, gate = one_step(cfg, sizes=sizes)
  assert gate.addressable_shards[0].data.size * split == gate.size
  assert_close(metrics, whole[cfg][0])
  assert_close(grads, whole[cfg][1])


@pytest.mark.parametrize("microbatches, sizes", [(4, None), (2, dict(fsdp=1, expert=4))])
@pytest.mark.slow
def test_microbatches(whole, assert_close, microbatches, sizes):
  """The figure is that of the whole; of the gradient each has its share of tokens and its own balance."""
  metrics, grads, _ = one_step(CFG, sizes=sizes, microbatches=microbatches)
  assert_close(metrics.sums, whole[CFG][0].sums)
  batch = make_batch(0)
  parts = split_rows(batch, microbatches)
  trained, tokens = batch.weights.sum(), (batch.segments > 0).sum()
  expected = None
  for p in range(microbatches):
    part = jax.tree.map(lambda x, p=p: x[p], parts)
    _, grad = loss_and_grad(CFG, part, (part.segments > 0).sum() / tokens, trained)
    expected = grad if expected is None else jax.tree.map(np.add, expected, grad)
  assert_close(grads, expected)
  far = jax.tree.map(lambda a, b: np.abs(a - b).max() / np.abs(b).max(), grads, whole[CFG][1])
  assert far["blocks"]["moe"]["router_DE"] < 0.3  # near that of the whole, which it is not


def test_padding_is_not_counted(whole):
  routing, batch = whole[CFG][0].sums.routing, make_batch(0)
  tokens = (batch.segments > 0).sum()
  assert tokens < batch.segments.size
  assert routing.tokens == tokens * CFG.num_layers
  assert routing.chosen_E.sum() == routing.tokens * CFG.experts_per_token
  np.testing.assert_allclose(routing.probs_E.sum(), routing.tokens, rtol=1e-5)


@pytest.mark.parametrize("array", [np.asarray, jnp.asarray])
def test_the_balance_loss(array):
  even = Routing(array([30, 30, 30, 30]), array([15.0, 15.0, 15.0, 15.0]), array(60))
  assert balance_loss(even) == pytest.approx(2.0)  # k
  one = Routing(array([60, 0, 0, 60]), array([30.0, 0.0, 0.0, 30.0]), array(60))
  assert balance_loss(one) == pytest.approx(4.0)
  assert balance_loss(Routing(array([0, 0]), array([0.0, 0.0]), array(0))) == 0.0


def test_it_is_that_of_transformers():
  """load_balancing_loss_func of random scores, under a mask."""
  torch = pytest.importorskip("torch")
  theirs = pytest.importorskip("transformers.models.mixtral.modeling_mixtral")
  rng = np.random.default_rng(0)
  scores_LBTE = 2 * rng.standard_normal((3, 2, 9, 6), np.float32)
  mask_BT = np.arange(9)[None] < np.array([[9], [4]])
  expected = theirs.load_balancing_loss_func(
    tuple(torch.tensor(s.reshape(-1, 6)) for s in scores_LBTE), 6, 2, torch.tensor(mask_BT)
  )
  from mlit_jax.routing import routing_sums

  sums = []
  for scores_BTE in scores_LBTE:
    probs_BTE = jax.nn.softmax(scores_BTE, axis=-1)
    sums.append(routing_sums(probs_BTE, jax.lax.top_k(probs_BTE, 2)[1], mask_BT))
  routing = jax.tree.map(lambda *s: sum(s), *sums)
  np.testing.assert_allclose(balance_loss(routing), expected.item(), rtol=1e-6)


@pytest.mark.parametrize("variant", ["mixtral", "qwen3_moe"])
def test_the_loss_and_its_gradient_are_those_of_transformers(tmp_path, variant):
  """With output_router_logits, which is how its models add the same loss to theirs; rows end in padding."""
  pytest.importorskip("transformers")
  import torch

  from mlit_jax.model.config import from_hf
  from mlit_jax.weights import load, source, table
  from tests import families

  model = families.make_model(tmp_path, variant, router_aux_loss_coef=WEIGHT)
  cfg = from_hf(source.read_source(tmp_path).config)
  assert cfg.router_loss_weight == WEIGHT
  params = load.load_params(tmp_path, cfg)
  B, T = 3, 40
  lengths_B = np.array([40, 23, 31])
  tokens_BT = np.random.default_rng(0).integers(0, cfg.vocab_size, (B, T), np.int32)
  positions_BT = np.broadcast_to(np.arange(T, dtype=np.int32), (B, T))
  live_BT = positions_BT < lengths_B[:, None]
  out = model(
    input_ids=torch.tensor(tokens_BT),
    attention_mask=torch.tensor(live_BT.astype(np.int64)),
    labels=torch.tensor(np.where(live_BT, tokens_BT, -100)).long(),
    output_router_logits=True,
  )
  out.loss.backward()
  theirs = families.as_saved(model, {name: p.grad for name, p in model.named_parameters()})
  targets_BT = np.roll(tokens_BT, -1, axis=1)
  trained_BT = live_BT & np.roll(live_BT, -1, axis=1) & (positions_BT < T - 1)
  batch = Batch(
    tokens_BT,
    targets_BT,
    trained_BT.astype(np.float32),
    positions_BT,
    live_BT.astype(np.int32),
    0 * tokens_BT,
  )
  step_loss, grads = _loss_of_a_step(cfg, params, batch)
  np.testing.assert_allclose(step_loss, out.loss.item(), rtol=1e-5)
  ours = table.flatten(grads)
  for name, tensor in table.tensors_of(cfg).items():
    parts = [np.asarray(ours[row.ours])[i] for row, i in tensor.parts]
    expected = theirs[name].numpy()
    np.testing.assert_allclose(
      table.to_theirs(parts, tensor),
      expected,
      rtol=0,
      atol=1e-3 * np.abs(expected).max(),
      err_msg=name,
    )


def _loss_of_a_step(cfg, params, batch):
  mesh = meshes.make_mesh(fsdp=1, devices=jax.devices()[:1])
  optimizer = from_optax(optax.sgd(0.1, momentum=0.9))
  param_shardings = meshes.param_shardings(decoder.param_specs(cfg), mesh)
  shardings = state_shardings(optimizer, param_shardings, decoder.param_shapes(cfg), mesh)
  step = make_train_step(
    lambda params, *arrays: decoder.hidden(params, cfg, *arrays),
    optimizer,
    shardings,
    mesh,
    num_languages=1,
    num_experts=cfg.num_experts,
    router_loss_weight=cfg.router_loss_weight,
  )
  params = jax.tree.map(jnp.array, params)
  state = jax.device_put(State(jnp.zeros((), jnp.int32), params, optimizer.init(params)), shardings)
  with jax.set_mesh(mesh):
    state, metrics = step(state, meshes.put_batch(batch, mesh, len(batch.tokens)))
  sums = metrics.sums
  loss = sums.nll.sum() / sums.trained.sum() + cfg.router_loss_weight * balance_loss(sums.routing)
  return float(loss), jax.device_get(state.opt_state[0].trace)


def test_flops_count_the_experts_that_a_token_reaches():
  dense = dataclasses.replace(CFG, num_experts=0, experts_per_token=0, d_ff=2 * CFG.d_ff)
  router = 6.0 * CFG.num_layers * CFG.d_model * CFG.num_experts * 30
  assert flops.step_flops(CFG, [10, 20]) == flops.step_flops(dense, [10, 20]) + router
