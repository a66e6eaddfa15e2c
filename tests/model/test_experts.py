"""Experts: every pair of a token and its expert is computed, wherever it lies, and nothing else."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mlit_jax import mesh as meshes
from mlit_jax.errors import UserError
from mlit_jax.model import decoder, experts
from mlit_jax.model.config import DecoderConfig, from_hf

CFG = DecoderConfig(
  family="mixtral", vocab_size=40, d_model=16, num_layers=2, num_heads=4, num_kv_heads=2, head_dim=4, d_ff=12,
  num_experts=8, experts_per_token=2,
)  # fmt: skip


def made_up(B, T, E, C, spread=1.0, D=8, F=6, seed=0):
  """x, choices, their weights, and the three weights of the experts; spread=0 chooses the last C alone."""
  rng = np.random.default_rng(seed)
  x_BTD = rng.standard_normal((B, T, D), np.float32)
  scores_BTE = spread * rng.standard_normal((B, T, E)) + np.arange(E)
  choice_BTC = np.argsort(-scores_BTE, axis=-1)[..., :C].astype(np.int32)
  weight_BTC = rng.random((B, T, C), np.float32)
  gate_EDF, up_EDF, down_EFD = (
    rng.standard_normal(shape, np.float32) for shape in [(E, D, F), (E, D, F), (E, F, D)]
  )
  return tuple(map(jnp.asarray, (x_BTD, choice_BTC, weight_BTC, gate_EDF, up_EDF, down_EFD)))


def every_expert_on_every_token(x_BTD, choice_BTC, weight_BTC, gate_EDF, up_EDF, down_EFD):
  hit_BTCE = choice_BTC[..., None] == jnp.arange(len(gate_EDF))[None, None, None]
  weight_BTE = jnp.sum(hit_BTCE * weight_BTC[..., None], axis=2)
  gate_BTEF = jnp.einsum("BTD,EDF->BTEF", x_BTD, gate_EDF)
  h_BTEF = jax.nn.silu(gate_BTEF) * jnp.einsum("BTD,EDF->BTEF", x_BTD, up_EDF)
  return jnp.einsum("BTEF,EFD,BTE->BTD", h_BTEF, down_EFD, weight_BTE)


def value_and_grads(run, args):
  """Of a sum that weighs each output differently, by all but the choices."""
  weights = np.random.default_rng(1).standard_normal(args[0].shape, np.float32)
  fn = lambda x, *rest: jnp.vdot(run(x, args[1], *rest), weights)  # noqa: E731
  return jax.jit(jax.value_and_grad(fn, argnums=(0, 1, 2, 3, 4)))(args[0], *args[2:])


CASES = [
  dict(B=2, T=12, E=4, C=2),
  dict(B=1, T=1, E=16, C=4),  # experts without a token
  dict(B=3, T=50, E=5, C=1),
  dict(B=2, T=40, E=4, C=4),
  dict(B=2, T=50, E=8, C=2, spread=0.0),  # all tokens to the same two
  dict(B=2, T=300, E=3, C=2, spread=9.0),  # several blocks of an expert
]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_values_and_gradients_are_those_of_every_expert_on_every_token(case, assert_close):
  args = made_up(**case)
  if case.get("spread") == 0.0:
    assert set(np.unique(args[1])) == {case["E"] - 1, case["E"] - 2}
  expected = value_and_grads(every_expert_on_every_token, args)
  assert_close(value_and_grads(experts.run, args), expected)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_what_a_tpu_computes_is_the_same(case, monkeypatch, assert_close):
  args = made_up(**case)
  expected = value_and_grads(experts.run, args)
  monkeypatch.setattr(jax.lax, "platform_dependent", lambda *args, tpu, default: tpu(*args))
  assert "ragged_dot" in str(jax.make_jaxpr(lambda *a: experts.run(*a))(*args))
  assert_close(value_and_grads(experts.run, args), expected)


def test_parts_of_the_experts_add_up(assert_close):
  x, choice, weight, *params = made_up(2, 40, E=6, C=3)
  whole = experts.run(x, choice, weight, *params)
  cuts = [(0, 1), (1, 5), (5, 6)]
  parts = [experts.run(x, choice, weight, *(p[a:b] for p in params), a) for a, b in cuts]
  assert_close(sum(parts), whole)


def test_slots():
  """Five tokens with two of three experts each, of which ours are the first two; blocks of 8."""
  choice_NC = jnp.asarray([[1, 0], [1, 2], [2, 1], [0, 1], [2, 1]])
  slots = experts.make_slots(choice_NC, 2)
  S = len(slots.token_S)
  assert experts.block_rows(10, 2) == 8 and S % (8 * experts.AT_ONCE) == 0
  assert int(slots.used) == 2 and slots.expert_A[:2].tolist() == [0, 1]
  assert slots.token_S[:2].tolist() == [0, 3]
  assert slots.token_S[8:13].tolist() == [0, 1, 2, 3, 4]
  assert slots.slot_NC.tolist() == [[8, 0], [9, S], [S, 10], [1, 11], [S, 12]]
  assert (np.delete(slots.token_S, [0, 1, 8, 9, 10, 11, 12]) == 5).all()


@pytest.mark.parametrize("norm", [True, False])
def test_the_router(norm, assert_close):
  """The chosen experts' probabilities, divided by their sum or not."""
  from flax import nnx

  from mlit_jax.model.layers import Moe

  cfg = dataclasses.replace(CFG, norm_choices=norm)
  moe = Moe(cfg)
  graph, state = nnx.split(moe)
  rng = np.random.default_rng(0)
  state = jax.tree.map(lambda s: jnp.asarray(rng.standard_normal(s.shape, np.float32)), state)
  moe = nnx.merge(graph, state)
  x_BTD = jnp.asarray(rng.standard_normal((2, 9, 16), np.float32))
  out_BTD, (probs_BTE, choice_BTC) = moe(x_BTD)
  scores_BTE = np.asarray(x_BTD, np.float64) @ np.asarray(moe.router_DE[...], np.float64)
  expected_BTE = np.exp(scores_BTE) / np.exp(scores_BTE).sum(-1, keepdims=True)
  assert_close(probs_BTE, expected_BTE)
  order_BTE = np.argsort(-expected_BTE, axis=-1)
  assert (choice_BTC == order_BTE[..., :2]).all()
  weight_BTC = np.take_along_axis(expected_BTE, order_BTE[..., :2], -1)
  if norm:
    weight_BTC = weight_BTC / weight_BTC.sum(-1, keepdims=True)
  params = (moe.gate_EDF[...], moe.up_EDF[...], moe.down_EFD[...])
  weight_BTC = jnp.asarray(weight_BTC, jnp.float32)
  assert_close(out_BTD, every_expert_on_every_token(x_BTD, choice_BTC, weight_BTC, *params))


def test_the_router_is_float32_whatever_the_computation():
  """Or bfloat16 would choose other experts where two are close."""
  params = decoder.init_params(CFG, jax.random.key(0))
  tokens_BT = jnp.arange(12, dtype=jnp.int32)[None]
  text = str(
    jax.make_jaxpr(
      lambda p: decoder.apply(p, CFG, tokens_BT, tokens_BT, tokens_BT + 1, dtype=jnp.bfloat16)
    )(params)
  )
  top_k = next(line for line in text.splitlines() if "top_k" in line)
  assert "f32[1,12,2]" in top_k


@pytest.mark.parametrize("sizes", [dict(expert=8, fsdp=1), dict(fsdp=2, expert=2, tensor=2)])
def test_cached_decoding_on_a_mesh_equals_one_device(sizes, assert_close):
  """Also of rows that the mesh does not divide."""
  params = decoder.init_params(CFG, jax.random.key(0))
  run = jax.jit(decoder.apply_cached, static_argnums=1)
  for B in (1, 8):
    tokens_BT = np.random.default_rng(B).integers(0, 40, (B, 5), np.int32)
    positions_BT = np.broadcast_to(np.arange(5, dtype=np.int32), (B, 5))
    cache = decoder.init_cache(CFG, B, 8)
    expected = run(params, CFG, tokens_BT, positions_BT, cache)
    mesh = meshes.make_mesh(**sizes)
    shardings = meshes.param_shardings(decoder.param_specs(CFG), mesh)
    with jax.set_mesh(mesh):
      found = run(jax.device_put(params, shardings), CFG, tokens_BT, positions_BT, cache)
    assert_close(jax.device_get(found), jax.device_get(expected))


QWEN = dict(
  model_type="qwen3_moe", vocab_size=40, hidden_size=16, intermediate_size=48, moe_intermediate_size=12,
  num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, rms_norm_eps=1e-6, hidden_act="silu",
  num_experts=8, num_experts_per_tok=2,
)  # fmt: skip
MIXTRAL = {k: v for k, v in QWEN.items() if k not in ("num_experts", "moe_intermediate_size")} | {
  "model_type": "mixtral",
  "num_local_experts": 8,
}


def test_configs():
  """What the hub's files say, and what follows where they say nothing."""
  cfg = from_hf(
    QWEN | {"sliding_window": 4096, "use_sliding_window": False, "max_window_layers": 48}
  )
  assert (cfg.d_ff, cfg.num_experts, cfg.experts_per_token) == (12, 8, 2)
  assert cfg.windows == (0, 0) and not cfg.norm_choices and cfg.router_loss_weight == 0.001
  assert from_hf(QWEN | {"norm_topk_prob": True}).norm_choices
  assert from_hf(QWEN | {"sliding_window": 7, "use_sliding_window": True}).windows == (7, 7)
  cfg = from_hf(MIXTRAL | {"router_aux_loss_coef": 0.02, "sliding_window": None})
  assert (cfg.d_ff, cfg.num_experts, cfg.experts_per_token) == (48, 8, 2)
  assert cfg.norm_choices and cfg.router_loss_weight == 0.02 and cfg.rope_theta == 1e6


@pytest.mark.parametrize(
  "config, word",
  [
    (QWEN | {"decoder_sparse_step": 2}, "decoder_sparse_step"),
    (QWEN | {"mlp_only_layers": [0]}, "mlp_only_layers"),
    (QWEN | {"num_experts": 0}, "num_experts"),
    (QWEN | {"num_local_experts": 4}, "num_local_experts"),
    (QWEN | {"hidden_act": "gelu"}, "hidden_act"),
    (QWEN | {"layer_types": ["full_attention"] * 2}, "layer_types"),
    (MIXTRAL | {"router_jitter_noise": 0.1}, "router_jitter_noise"),
  ],
  ids=lambda x: x if isinstance(x, str) else "",
)
def test_what_is_not_supported(config, word):
  with pytest.raises(UserError, match=f"not supported: .*{word}"):
    from_hf(config)


def test_more_experts_per_token_than_there_are():
  with pytest.raises(UserError, match="9 experts per token, of 8"):
    from_hf(QWEN | {"num_experts_per_tok": 9})
