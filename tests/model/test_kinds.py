"""Layers of several shapes: which stacks there are, in which stretches they are walked, and on a mesh."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mlit_jax import mesh as meshes
from mlit_jax.errors import UserError
from mlit_jax.model import decoder, kinds
from mlit_jax.model.config import DecoderConfig
from tests.few import few

SIZES = dict(vocab_size=40, d_model=16, num_heads=4, num_kv_heads=2, head_dim=8, d_ff=24)
GLOBAL = dict(global_head_dim=12, global_kv_heads=4, borrowing_d_ff=48)


def config(pattern, borrowing=0, **kwargs):
  """ "llg": two layers with a window, one without."""
  windows = tuple({"l": 3, "g": 0}[letter] for letter in pattern)
  return DecoderConfig(
    family="gemma4_text",
    **SIZES,
    **GLOBAL,
    num_layers=len(pattern),
    windows=windows,
    num_borrowing=borrowing,
    **kwargs,
  )


L, G, LB, GB = (
  "blocks_local",
  "blocks_global",
  "blocks_local_borrowing",
  "blocks_global_borrowing",
)
# (pattern, borrowing) -> [(repeats, runs)]
WALKS = {
  ("lllllg" * 10, 0): [(10, ((L, 5), (G, 1)))],
  ("llllg" * 7, 20): [(3, ((L, 4), (G, 1))), (4, ((LB, 4), (GB, 1)))],
  ("llgllgl" + "g", 0): [(2, ((L, 2), (G, 1))), (1, ((L, 1),)), (1, ((G, 1),))],
  ("ggg", 1): [(1, ((G, 2),)), (1, ((GB, 1),))],
  ("glglggl", 2): [(2, ((G, 1), (L, 1))), (1, ((G, 1),)), (1, ((GB, 1),)), (1, ((LB, 1),))],
  ("lgllg" * 3, 0): [(3, ((L, 1), (G, 1), (L, 2), (G, 1)))],
}


def test_a_decoder_of_one_kind_is_one_scan():
  cfg = DecoderConfig(family="gemma3_text", **SIZES, num_layers=4, windows=(3, 3, 0, 3))
  assert kinds.kinds(cfg) == (kinds.Kind("blocks", cfg, (0, 1, 2, 3)),)
  assert kinds.stretches(cfg) == (kinds.Stretch(1, (("blocks", 4),)),)


@pytest.mark.parametrize("walk", few(3, [(w,) for w in reversed(WALKS)]), ids=str)
def test_every_layer_comes_in_its_place_once(walk):
  """With a layer that is no more than its number, forward and backward."""
  cfg = config(*walk)
  assert [tuple(stretch) for stretch in kinds.stretches(cfg)] == WALKS[walk]
  of_stack = {k.stack: np.asarray(k.layers, np.float32) for k in kinds.kinds(cfg)}
  assert sorted(np.concatenate(list(of_stack.values()))) == list(range(cfg.num_layers))

  def layer(kind, carry, number):
    assert kind.stack in of_stack
    return 0.9 * carry + jnp.sin(number), carry

  def walked(numbers):
    return kinds.scan_layers(cfg, layer, jnp.float32(0.0), numbers)

  def one_by_one(numbers):
    carry, given = jnp.float32(0.0), {}
    for i in range(cfg.num_layers):
      stack, at = next((k.stack, k.layers.index(i)) for k in kinds.kinds(cfg) if i in k.layers)
      carry, out = layer(kinds.kinds(cfg)[0], carry, numbers[stack][at])
      given.setdefault(stack, []).append(out)
    return carry, {stack: jnp.stack(outs) for stack, outs in given.items()}

  close = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-6)  # noqa: E731
  jax.tree.map(close, walked(of_stack), one_by_one(of_stack))
  grads = [jax.grad(lambda n, run=run: run(n)[0])(of_stack) for run in (walked, one_by_one)]
  jax.tree.map(close, *grads)


def test_each_kind_has_its_own_shapes_and_the_borrowing_ones_no_keys():
  cfg = config("lglglg", 2, global_keys_as_values=True)
  specs = decoder.param_specs(cfg)
  shapes = {
    stack: {name: s.shape for name, s in specs[stack]["attn"].items() if decoder.is_spec(s)}
    for stack in (L, G, LB, GB)
  }
  assert shapes[L]["q_DNH"] == (2, 16, 4, 8) and shapes[L]["v_DKH"] == (2, 16, 2, 8)
  assert shapes[G]["q_DNH"] == (2, 16, 4, 12) and shapes[G]["k_DKH"] == (2, 16, 4, 12)
  assert "v_DKH" not in shapes[G]
  assert set(shapes[LB]) == set(shapes[GB]) == {"q_DNH", "o_NHD"}
  assert specs[LB]["mlp"]["up_DF"].shape == (1, 16, 48) and specs[L]["mlp"]["up_DF"].shape[-1] == 24
  assert [k.lender for k in kinds.kinds(cfg)] == [None, None, L, G]
  assert set(decoder.init_cache(cfg, 1, 4)) == {L, G}  # nothing is kept twice


@pytest.mark.parametrize(
  "pattern, changes, message",
  [
    ("llgg", dict(num_borrowing=4), "the last 4 of 4 layers cannot read"),
    ("gggl", dict(num_borrowing=1), "none of the same kind"),
    ("llgg", dict(global_kv_heads=3), "not a multiple of global_kv_heads 3"),
    ("llgg", dict(global_head_dim=0), "global_head_dim of a gemma4_text decoder is 0"),
    ("llgg", dict(num_borrowing=-1), "the last -1 of 4"),
  ],
)
def test_shapes_that_cannot_be_are_refused(pattern, changes, message):
  with pytest.raises(UserError, match=message):
    dataclasses.replace(config(pattern), **changes)


@pytest.mark.slow
@pytest.mark.parametrize("sizes", [dict(fsdp=4, tensor=2), dict(data=2, fsdp=2, tensor=2)], ids=str)
def test_sharded_equals_one_device(sizes, assert_close):
  """Logits, gradients and a cached pass: the second embedding and borrowed keys on a mesh."""
  cfg = config(
    "lglglg", 2, qk_norm=True, value_norm=True, query_scale=1.0, rope_local_theta=1e4,
    layer_input_dim=8, layer_scalar=True, embed_scale=50.0,
  )  # fmt: skip
  params = decoder.init_params(cfg, jax.random.key(0))
  tokens_BT = np.random.default_rng(0).integers(0, 40, (8, 6), np.int32)
  positions_BT = np.broadcast_to(np.arange(6, dtype=np.int32), (8, 6))
  segments_BT = np.ones((8, 6), np.int32)
  weights_BTV = np.random.default_rng(1).standard_normal((8, 6, 40)).astype(np.float32)

  @jax.jit
  def run(params):
    def weighed(params):
      arrays = (tokens_BT, positions_BT, segments_BT)
      return jnp.vdot(decoder.apply(params, cfg, *arrays, remat="full"), weights_BTV)

    cache = decoder.init_cache(cfg, 8, 8)
    cached = decoder.apply_cached(params, cfg, tokens_BT, positions_BT, cache)
    return jax.value_and_grad(weighed)(params), cached

  expected = jax.device_get(run(params))
  mesh = meshes.make_mesh(**sizes)
  shardings = meshes.param_shardings(decoder.param_specs(cfg), mesh)
  spread = shardings["layer_inputs"]["table_VLP"].spec
  assert spread == jax.sharding.PartitionSpec("tensor", None, ("fsdp", "context"))
  with jax.set_mesh(mesh):
    found = run(jax.device_put(params, shardings))
  # Sharp attention through six layers multiplies what another order of sums changes.
  assert_close(jax.device_get(found), expected, tolerance=2e-4)
