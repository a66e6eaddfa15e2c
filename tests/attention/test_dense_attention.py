"""ALiBi: the slopes, and what they do to scores."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mlit_jax.attention import dense
from mlit_jax.attention.scoring import Scoring
from mlit_jax.model import decoder
from mlit_jax.model.config import DecoderConfig


@pytest.mark.parametrize(
  "num_heads, exponents",
  [
    (1, [8]),
    (2, [4, 8]),
    (8, [1, 2, 3, 4, 5, 6, 7, 8]),
    (3, [4, 8, 2]),
    (6, [2, 4, 6, 8, 1, 3]),
    (12, [1, 2, 3, 4, 5, 6, 7, 8, 0.5, 1.5, 2.5, 3.5]),
  ],
)
def test_slopes_are_those_of_the_paper(num_heads, exponents):
  assert dense.alibi_slopes(num_heads) == pytest.approx([2.0**-e for e in exponents])


def test_a_score_is_less_by_slope_times_distance(assert_close):
  """Against softmax written out, head by head: grouped heads, two segments, positions in each."""
  B, T, N, K, H = 2, 9, 6, 3, 5
  rng = np.random.default_rng(0)
  q, k, v = (rng.standard_normal((B, T, heads, H)).astype(np.float32) for heads in (N, K, K))
  segments_BT = np.array([[1] * 5 + [2] * 4, [1] * 2 + [2] * 7])
  positions_BT = np.array([[0, 1, 2, 3, 4, 0, 1, 2, 3], [0, 1, 0, 1, 2, 3, 4, 5, 6]])
  mask_BTT = dense.visible(positions_BT, positions_BT, segments_BT, segments_BT, 0)
  slopes = dense.alibi_slopes(N)
  distance_BTT = jnp.asarray(dense.distance(positions_BT, positions_BT))
  found = dense.attend(
    q, k, v, mask_BTT, scoring=Scoring(0.3), slopes_N=jnp.array(slopes), distance_BTS=distance_BTT
  )
  expected = np.zeros((B, T, N, H))
  for b, t, n in np.ndindex(B, T, N):
    seen = [s for s in range(t + 1) if segments_BT[b, s] == segments_BT[b, t]]
    scores = [0.3 * q[b, t, n] @ k[b, s, n // 2] - slopes[n] * (t - s) for s in seen]
    weights = np.exp(scores) / np.exp(scores).sum()
    expected[b, t, n] = sum(w * v[b, s, n // 2] for w, s in zip(weights, seen, strict=True))
  assert_close(found, expected)


def test_a_model_with_alibi_does_no_rotary_work():
  sizes = dict(
    vocab_size=9, d_model=6, num_layers=2, num_heads=2, num_kv_heads=2, head_dim=3, d_ff=5
  )
  cfg = DecoderConfig(family="bloom", alibi=True, **sizes)
  params, tokens_BT = decoder.param_shapes(cfg), jax.ShapeDtypeStruct((1, 4), jnp.int32)
  cache = jax.eval_shape(lambda: decoder.init_cache(cfg, 1, 8))
  programs = [
    jax.make_jaxpr(lambda p, t: decoder.apply(p, cfg, t, t, t))(params, tokens_BT),
    jax.make_jaxpr(lambda p, t, c: decoder.apply_cached(p, cfg, t, t, c))(params, tokens_BT, cache),
  ]
  for program in programs:
    assert " cos " not in str(program) and " sin " not in str(program)
