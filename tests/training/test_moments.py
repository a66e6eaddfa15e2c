"""What is kept in less than float32 still moves: rounding by chance, bfloat16 and eight bits."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mlit_jax.training import moments, rounding
from mlit_jax.training.moments import Kept
from mlit_jax.training.rules import AdamW


def key():
  """Anew: a key is used once."""
  return jax.random.key(11)


SPEC = Kept((64, 96), ("embed", "mlp"), jnp.dtype("float32"))


def bits_of(step, shape=SPEC.shape):
  return rounding.random_bits(jax.random.fold_in(key(), step), shape)


def test_rounding_by_chance_is_right_on_average():
  values = np.float32([1.0, 1.001, -1.001, 3e-5, -7.7, 1e-30, 65504.5])
  rounded = jax.vmap(lambda i: rounding.to_bfloat16(values, rounding.low(bits_of(i, values.shape))))
  out = np.asarray(rounded(jnp.arange(20_000)), np.float64)
  spacing = np.abs(values) * 2.0**-7
  assert (np.abs(out.mean(0) - values) < 0.02 * spacing).all()
  assert (out[:, 0] == 1.0).all()  # bfloat16 has it
  assert all(len(np.unique(column)) == 2 for column in out[:, 1:].T)  # its two neighbours


def test_rounding_keeps_what_is_no_number():
  values = jnp.float32([jnp.nan, -jnp.nan, jnp.inf, -jnp.inf, -0.0, 0.0])
  for bits in (0, 0xFFFF):
    out = np.asarray(rounding.to_bfloat16(values, jnp.full(6, bits, jnp.uint32)), np.float32)
    assert np.isnan(out[:2]).all() and (out[2:4] == [np.inf, -np.inf]).all()
    assert (out[4:] == 0).all() and np.signbit(out[4]) and not np.signbit(out[5])


@pytest.mark.parametrize("learning_rate", [1e-6, 1e-5, 1e-4])
def test_weights_in_bfloat16_go_where_they_are_sent(learning_rate):
  """100 equal steps move weights of N(0, .02) as far as asked; rounded to nearest 1 % at 1e-6 (also asserted)."""
  start = rounding.to_bfloat16(
    0.02 * jax.random.normal(key(), (512, 512)), jnp.zeros((512, 512), jnp.uint32)
  )

  def step(i, ps):
    by_chance, nearest = ps
    bits = rounding.low(bits_of(i, start.shape))
    by_chance = rounding.to_bfloat16(by_chance.astype(jnp.float32) - learning_rate, bits)
    return by_chance, (nearest.astype(jnp.float32) - learning_rate).astype(jnp.bfloat16)

  ends = jax.lax.fori_loop(0, 100, step, (start, start))
  shares = [
    float(jnp.mean(start.astype(jnp.float32) - end.astype(jnp.float32)) / (100 * learning_rate))
    for end in ends
  ]
  assert abs(shares[0] - 1) < 0.02, shares
  if learning_rate == 1e-6:
    assert shares[1] < 0.05, shares


@pytest.mark.parametrize("how", ["bfloat16", "int8"])
@pytest.mark.slow
def test_second_moments_follow_gradients_that_shrink(how):
  """b2 = .999. Gradients of one size for 4,000 steps, then half of them of a tenth: to the true value.

  The other half stays, and with it the scales of the tiles: otherwise eight bits would shrink with theirs.
  """
  rule = AdamW(b1=0.9, b2=0.999, eps=1e-8, kept_as=how)
  sizes = jnp.exp(jax.random.normal(key(), SPEC.shape))  # from 1/40 to 40
  shrinks = np.random.default_rng(0).random(SPEC.shape) < 0.5
  state = {name: jnp.zeros(k.shape, k.dtype) for name, k in rule.kept(SPEC).items()}

  @jax.jit
  def run(state, first, factor):
    def step(i, state):
      t = (first + i + 1).astype(jnp.float32)
      return rule.update(factor * sizes, state, t, bits_of(first + i))[1]

    return jax.lax.fori_loop(0, 4000, step, state)

  def ratios(state, true):
    """Mean and spread of what was found over what is true, of those that shrink and of the others."""
    found = moments.load(state, "v") / (jnp.square(sizes) * true)
    return [(float(jnp.mean(found[of])), float(jnp.std(found[of]))) for of in (shrinks, ~shrinks)]

  true = 1 - 0.999**4000
  state = run(state, jnp.int32(0), jnp.ones(SPEC.shape))
  for mean, spread in ratios(state, true):
    assert abs(mean - 1) < 0.03 and spread < 0.1, (mean, spread)
  first_ratio = moments.load(state, "m") / sizes
  assert abs(float(jnp.mean(first_ratio)) - 1) < 0.01
  state = run(state, jnp.int32(4000), jnp.where(shrinks, 0.1, 1.0))
  left = true * 0.999**4000
  true_then = jnp.where(shrinks, left + 0.01 * true, left + true)
  for mean, spread in ratios(state, true_then):
    # Chance makes single ones stray: by a third of the moment in eight bits, a sixth of a step's length.
    assert abs(mean - 1) < 0.05 and spread < (0.2 if how == "bfloat16" else 0.45), (mean, spread)


def test_eight_bits_keep_values_of_very_different_size():
  """Within a step of the codes, 6.8 % of a mean and of a second moment; the largest of a tile exactly."""
  x = jax.random.normal(key(), SPEC.shape) * jnp.exp(
    jax.random.normal(jax.random.key(1), SPEC.shape)
  )
  kept = moments.kept("m", SPEC, "int8", signed=True) | moments.kept(
    "v", SPEC, "int8", signed=False
  )
  assert kept["m"].shape == kept["v"].shape == (64, 96)
  assert kept["m_scale"].shape == kept["v_scale"].shape == (8, 3)  # tiles of 8 x 32
  like = {name: jnp.zeros(k.shape, k.dtype) for name, k in kept.items()}
  for name, value, step in (("m", x, 12 / 126), ("v", jnp.square(x), 2 * 12 / 254)):
    state = moments.store(like, name, value, rounding.low(bits_of(0)))
    assert {n: (a.shape, a.dtype) for n, a in state.items()} == {
      n: (k.shape, k.dtype) for n, k in kept.items() if n.startswith(name)
    }
    found = moments.load(state, name)
    big = jnp.abs(x) > 2.0**-11 * jnp.max(jnp.abs(x))
    assert float(jnp.max(jnp.abs(jnp.log2(found / value))[big])) <= step * 1.001
    assert (jnp.sign(found)[big] == jnp.sign(value)[big]).all()
    tiles = lambda a: a.reshape(8, 8, 3, 32)  # noqa: E731
    np.testing.assert_allclose(
      jnp.max(tiles(jnp.abs(found)), axis=(1, 3)), jnp.max(tiles(jnp.abs(value)), axis=(1, 3)), rtol=1e-6
    )  # fmt: skip
    # And what is decoded is on average what was put in.
    again = lambda i: moments.load(moments.store(like, name, value, rounding.low(bits_of(i))), name)  # noqa: B023, E731
    many = jax.lax.map(again, jnp.arange(200))
    mean = np.mean(many, axis=0)
    assert float(jnp.sum(mean * jnp.sign(value)) / jnp.sum(jnp.abs(value))) == pytest.approx(1, abs=2e-3)  # fmt: skip


def test_a_second_moment_is_never_lost():
  """A gradient far below its neighbours': 0 to divide by would throw its weight far away."""
  v = jnp.full(SPEC.shape, 1e-16).at[0, 0].set(1.0).at[1, 1].set(0.0)
  kept = moments.kept("v", SPEC, "int8", signed=False)
  like = {name: jnp.zeros(k.shape, k.dtype) for name, k in kept.items()}
  found = moments.load(moments.store(like, "v", v, rounding.low(bits_of(0))), "v")
  assert found[0, 0] == 1.0 and found[1, 1] == 0.0
  assert (found[0, 1:8] > 0).all() and (found[20:] > 0).all()


def test_nothing_at_all_stays_nothing():
  kept = moments.kept("v", SPEC, "int8", signed=False) | moments.kept(
    "m", SPEC, "int8", signed=True
  )
  like = {name: jnp.zeros(k.shape, k.dtype) for name, k in kept.items()}
  for name in ("m", "v"):
    state = moments.store(like, name, jnp.zeros(SPEC.shape), rounding.low(bits_of(0)))
    assert not any(a.any() for a in state.values())
    assert not moments.load(state, name).any()


def test_tiles_do_not_depend_on_the_mesh_and_fit_odd_sizes():
  tile = lambda shape, axes: moments.tile_of(Kept(shape, axes, None))  # noqa: E731
  assert tile((4096, 32, 128), ("embed", "heads", "head_dim")) == (8, 1, 32)
  assert tile((128256, 4096), ("vocab", "embed")) == (16, 8)
  assert tile((64, 2048, 768), ("expert", "embed", "mlp")) == (1, 8, 32)
  assert tile((50257, 6), ("vocab", "embed")) == (1, 2)
