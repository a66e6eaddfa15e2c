"""The decoder on tiny models of each kind: packing, causality, padding, cache, remat, declarations."""

import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from mlit_jax import mesh
from mlit_jax.model import decoder, kinds, layers
from mlit_jax.model.config import DecoderConfig
from tests.few import only

SIZES = dict(vocab_size=50, d_model=24, num_heads=4, head_dim=8, d_ff=40)
LLAMA3 = dict(
  rope_type="llama3",
  factor=8.0,
  low_freq_factor=1.0,
  high_freq_factor=4.0,
  original_max_position_embeddings=8,
)
CONFIGS = {
  "llama": DecoderConfig(
    family="llama", **SIZES, num_layers=2, num_kv_heads=2, tied=False, rope_scaling=tuple(sorted(LLAMA3.items()))
  ),
  "qwen3": DecoderConfig(family="qwen3", **SIZES, num_layers=2, num_kv_heads=1, qk_norm=True, attn_bias=True),
  "gemma3": DecoderConfig(
    family="gemma3_text", **SIZES, num_layers=4, num_kv_heads=2, norm_plus_one=True, post_norms=True,
    qk_norm=True, activation="gelu_tanh", embed_scale=24**0.5, query_scale=0.3, rope_theta=1e6,
    rope_scaling=(("factor", 8.0), ("rope_type", "linear")), rope_local_theta=1e4, windows=(3, 3, 0, 3),
    final_softcap=3.0, attn_softcap=5.0,
  ),
  "gemma3_global": DecoderConfig(
    family="gemma3_text", **SIZES, num_layers=2, num_kv_heads=2, norm_plus_one=True, post_norms=True,
    qk_norm=True, activation="gelu_tanh", rope_local_theta=1e4,
  ),
  "cohere": DecoderConfig(
    family="cohere", **SIZES, num_layers=2, num_kv_heads=2, norm="layer", parallel=True, qk_norm=True,
    qk_norm_per_head=True, rope_interleaved=True, attn_bias=True, out_bias=True, logit_scale=0.5,
  ),
  "cohere2": DecoderConfig(
    family="cohere2", **SIZES, num_layers=3, num_kv_heads=1, norm="layer", parallel=True, tied=False,
    rope_interleaved=True, rotary_dim=6, windows=(3, 0, 3), position_free=(False, True, False),
  ),
  "bloom": DecoderConfig(  # without the bias of keys, which the softmax ignores where nothing rotates
    family="bloom", **SIZES, num_layers=2, num_kv_heads=4, norm="layer", norm_bias=True, embed_norm=True,
    activation="gelu_tanh", gated=False, alibi=True, out_bias=True, mlp_bias=True,
  ),
  "alibi": DecoderConfig(  # what BLOOM does not have: grouped heads, windows, no biases
    family="bloom", **SIZES, num_layers=2, num_kv_heads=2, norm="layer", residual_after_norm=True, alibi=True,
    tied=False, windows=(3, 3),
  ),
  "apertus": DecoderConfig(
    family="apertus", **SIZES, num_layers=2, num_kv_heads=2, tied=False, qk_norm=True,
    activation="xielu", gated=False,
  ),
  "olmo": DecoderConfig(
    family="olmo3", **SIZES, num_layers=3, num_kv_heads=2, norm_late_cast=True, pre_norms=False,
    post_norms=True, qk_norm=True, qk_norm_full=True, rope_local_theta=1e4, windows=(3, 0, 3),
  ),
  "gemma4": DecoderConfig(
    # Few layers and small scores: nothing but the norms of queries and keys bounds them, and with random ones
    # rounding alone grows beyond 1e-5.
    family="gemma4_text", **SIZES, num_layers=4, num_kv_heads=2, norm_late_cast=True, post_norms=True,
    qk_norm=True, value_norm=True, query_scale=0.1, activation="gelu_tanh", rope_local_theta=1e4,
    windows=(3, 0, 3, 0), layer_scalar=True, layer_input_dim=6, global_head_dim=12,
    global_kv_heads=1, global_keys_as_values=True, num_borrowing=2, borrowing_d_ff=20,
    rope_scaling=(("factor", 1.0), ("partial_rotary_factor", 0.5), ("rope_type", "proportional")),
  ),
  "gemma4_irregular": DecoderConfig(
    family="gemma4_text", **SIZES, num_layers=7, num_kv_heads=2, norm_late_cast=True, post_norms=True,
    qk_norm=True, value_norm=True, query_scale=0.2, activation="gelu_tanh", rope_local_theta=1e4,
    windows=(0, 3, 3, 0, 3, 0, 3), global_head_dim=12, global_kv_heads=4, borrowing_d_ff=40,
  ),
}  # fmt: skip
BUFFERS = ("beta", "eps", "layer_scalar")  # of xIELU and Gemma 4: parameters that do not train
LENGTHS = [7, 1, 5, 9]
T = 16  # of the packed rows: 7 + 1 + 5, and 9
# Gradients of Gemma 4's scores, which nothing but norms bounds: 1.1e-5 by rounding on JAX 0.12, 1.4e-6 with the
# activations in float64.
GRADIENT_TOLERANCE = {"gemma4_text": 3e-5}
every_config = pytest.mark.parametrize("cfg", CONFIGS, indirect=True)
most_configs_slowly = pytest.mark.parametrize(
  "cfg", only(("llama", "gemma3"), CONFIGS), indirect=True
)


@pytest.fixture
def cfg(request) -> DecoderConfig:
  return CONFIGS[request.param]


def make_params(cfg, seed=0):
  """Random values in every parameter: norms and biases too, which start at a constant.

  Not in xIELU's eps: away from 0 it is the size of a step at 0, which rounding decides.
  """
  rng = np.random.default_rng(seed)
  return jax.tree.map_with_path(
    lambda path, a: (
      a if path[-1].key == "eps" else a + 0.3 * rng.standard_normal(a.shape).astype(np.float32)
    ),
    decoder.init_params(cfg, jax.random.key(seed)),
  )


def examples():
  rng = np.random.default_rng(1)
  return [rng.integers(0, SIZES["vocab_size"], n) for n in LENGTHS]


def packed():
  """(tokens, positions, segments) of rows [0 1 2] and [3], and where each example lies."""
  tokens, positions, segments = (np.zeros((2, T), np.int32) for _ in range(3))
  places, start = [], 0
  for i, ids in enumerate(examples()):
    row = int(i == 3)
    start = 0 if i in (0, 3) else start
    at = slice(start, start + len(ids))
    tokens[row, at], positions[row, at] = ids, np.arange(len(ids))
    segments[row, at] = 1 if i == 3 else i + 1
    places.append((row, at))
    start += len(ids)
  return (tokens, positions, segments), places


def alone(ids):
  return ids[None], np.arange(len(ids), dtype=np.int32)[None], np.ones((1, len(ids)), np.int32)


def one_a_row():
  """The same examples, each in a row of its own."""
  arrays = [np.zeros((len(LENGTHS), max(LENGTHS)), np.int32) for _ in range(3)]
  for r, ids in enumerate(examples()):
    for array, values in zip(arrays, alone(ids), strict=True):
      array[r, : len(ids)] = values[0]
  return arrays


def weigh(logits, seed):
  """A scalar that depends on every logit, differently."""
  return jnp.sum(
    logits * np.random.default_rng(seed).standard_normal(logits.shape).astype(np.float32)
  )


@most_configs_slowly
def test_packed_equals_unpacked(cfg, assert_close):
  params = make_params(cfg)
  arrays, places = packed()

  @jax.jit
  def packed_loss(params):
    logits_BTV = decoder.apply(params, cfg, *arrays)
    parts = [logits_BTV[row, at] for row, at in places]
    return sum(weigh(x, i) for i, x in enumerate(parts)), parts

  @jax.jit
  def unpacked_loss(params):
    logits_BTV = decoder.apply(params, cfg, *one_a_row())
    parts = [x[: len(ids)] for x, ids in zip(logits_BTV, examples(), strict=True)]
    return sum(weigh(x, i) for i, x in enumerate(parts)), parts

  (_, ours), grads = jax.value_and_grad(packed_loss, has_aux=True)(params)
  (_, theirs), expected = jax.value_and_grad(unpacked_loss, has_aux=True)(params)
  assert_close(ours, theirs)
  assert_close(grads, expected, GRADIENT_TOLERANCE.get(cfg.family, 1e-5))
  for path, grad in jax.tree_util.tree_leaves_with_path(grads):
    assert (np.abs(grad).max() > 0) == (path[-1].key not in BUFFERS), path


@most_configs_slowly
def test_each_token_sees_exactly_its_past(cfg):
  """d logits[t] / d x[s] over the embedded tokens: zero for the future, other examples and padding."""
  params = make_params(cfg)
  (tokens, positions, segments), _ = packed()
  marks = jnp.zeros((cfg.vocab_size, cfg.d_model))

  # One row of the table for each place of the row, so that the table's gradient tells the places apart.
  ids = np.arange(T, dtype=np.int32)[None]
  table = params["embed"]["table_VD"][tokens[0]]
  params["embed"]["table_VD"] = marks.at[:T].set(table)

  @jax.jit
  @jax.vmap
  def reach(t):
    def f(table_VD):
      new = params | {"embed": {"table_VD": table_VD}}
      if cfg.tied:  # the head must not move with the table
        new["head"] = {"kernel_DV": jax.lax.stop_gradient(params["embed"]["table_VD"].T)}
      open_cfg = dataclasses.replace(cfg, tied=False)
      logits_BTV = decoder.apply(new, open_cfg, ids, positions[:1], segments[:1])
      return weigh(logits_BTV[0, t], 3)

    return jnp.abs(jax.grad(f)(params["embed"]["table_VD"])[:T]).max(axis=1) > 0

  seen_TS = np.asarray(reach(jnp.arange(T)))
  t, s = np.meshgrid(np.arange(T), np.arange(T), indexing="ij")
  same = segments[0][t] == segments[0][s]
  window = sum(w - 1 for w in cfg.windows) if all(cfg.windows) else T  # one global layer sees all
  expected = same & (s <= t) & (t - s <= window)
  live = segments[0] > 0
  np.testing.assert_array_equal(seen_TS[live], expected[live])


def test_a_window_of_w_sees_w_tokens():
  cfg = dataclasses.replace(CONFIGS["gemma3"], windows=(3,), num_layers=1)
  params = make_params(cfg)
  ids = np.arange(8, dtype=np.int32)

  def logits(ids):
    return np.asarray(decoder.apply(params, cfg, *alone(ids)))[0, -1]

  for distance in range(8):
    other = ids.copy()
    other[-1 - distance] = 40
    assert (np.abs(logits(other) - logits(ids)).max() > 0) == (distance < 3), distance


@most_configs_slowly
def test_padding_leaks_nothing(cfg):
  params = make_params(cfg)
  (tokens, positions, segments), places = packed()
  run = jax.jit(lambda tokens, positions: decoder.apply(params, cfg, tokens, positions, segments))
  other_tokens, other_positions = tokens.copy(), positions.copy()
  other_tokens[segments == 0] = 33
  other_positions[segments == 0] = 5
  one, two = run(tokens, positions), run(other_tokens, other_positions)
  assert np.isfinite(one).all()
  for row, at in places:
    np.testing.assert_array_equal(one[row, at], two[row, at])


@most_configs_slowly
def test_cached_equals_full(cfg, assert_close):
  """Two prompts of different lengths at once, then one token after the other."""
  params = make_params(cfg)
  rows = [examples()[3], examples()[0]]  # 9 and 7 tokens
  full = [np.asarray(decoder.apply(params, cfg, *alone(ids)))[0] for ids in rows]
  step = jax.jit(
    lambda tokens, positions, cache: decoder.apply_cached(params, cfg, tokens, positions, cache)
  )
  prompts = [5, 3]
  tokens, positions = np.zeros((2, 6), np.int32), np.full((2, 6), -1, np.int32)
  for r, n in enumerate(prompts):
    tokens[r, :n], positions[r, :n] = rows[r][:n], np.arange(n)
  logits, cache = step(tokens, positions, decoder.init_cache(cfg, 2, 12))
  for r, n in enumerate(prompts):
    assert_close(logits[r, :n], full[r][:n])
  for k in range(4):
    at = [n + k for n in prompts]
    new = np.array([[rows[r][at[r]]] for r in range(2)], np.int32)
    logits, cache = step(new, np.array(at, np.int32)[:, None], cache)
    for r in range(2):
      assert_close(logits[r, 0], full[r][at[r]])


@most_configs_slowly
def test_remat_changes_no_gradient_and_saves_what_it_says(cfg, assert_close):
  params = make_params(cfg)
  arrays, _ = packed()

  def grad_of(remat):
    return jax.grad(lambda p: weigh(decoder.apply(p, cfg, *arrays, remat=remat), 5))

  expected = jax.jit(grad_of("none"))(params)
  jaxprs = {remat: str(jax.make_jaxpr(grad_of(remat))(params)) for remat in decoder.REMAT}
  for remat in ("dots_saved", "attention_saved", "full"):
    tolerance = GRADIENT_TOLERANCE.get(cfg.family, 1e-5)
    assert_close(jax.jit(grad_of(remat))(params), expected, tolerance)
  # Each is a program of its own; a model compared with itself would pass the above.
  assert len(set(jaxprs.values())) == len(decoder.REMAT)
  assert "<host>" in jaxprs["offload"] and "<host>" not in jaxprs["attention_saved"]
  words = (" tanh ", "logistic", "expm1")
  exps = {remat: sum(map(text.count, words)) for remat, text in jaxprs.items()}
  assert exps["none"] < exps["full"]


@every_config
def test_names_say_the_axes_and_every_axis_has_a_rule(cfg):
  specs = jax.tree_util.tree_leaves_with_path(decoder.param_specs(cfg), is_leaf=decoder.is_spec)
  stacks = {kind.stack: kind for kind in kinds.kinds(cfg)}
  assert len(specs) > 8
  for path, s in specs:
    names = [k.key for k in path]
    suffix = re.search(r"(?:_([A-Z]+))?$", names[-1])[1] or ""
    stacked = names[0] in stacks
    of, L = (
      (stacks[names[0]].cfg, len(stacks[names[0]].layers)) if stacked else (cfg, cfg.num_layers)
    )
    letters = dict(
      D=of.d_model, N=of.num_heads, K=of.num_kv_heads, H=of.head_dim, F=of.d_ff, V=of.vocab_size,
      P=of.layer_input_dim, L=L,
    )  # fmt: skip
    assert len(suffix) + stacked == len(s.shape) == len(s.axes), (names, s)
    assert s.shape == (*([L] * stacked), *(letters[x] for x in suffix)), (names, s)
    assert (s.axes[0] == "layers") == stacked
    assert set(s.axes) <= set(mesh.RULES), (names, s.axes)
    mesh.spec(s.axes)
  shapes = decoder.param_shapes(cfg)
  assert decoder.count_params(cfg) == sum(x.size for x in jax.tree.leaves(shapes))


def test_xielu_of_a_fresh_model_and_its_gradient_far_from_zero():
  """Worked, with alpha = 0.8 and beta = 0.5: 0.8 * 2 ** 2 + 0.5 * 2 and 0.8 * (e ** -1 - 1 + 1) - 0.5."""
  specs = decoder.param_specs(CONFIGS["apertus"])["blocks"]["mlp"]["xielu"]
  graph, state = nnx.split(layers.Xielu())
  values = {name: jnp.float32(s.mean) for name, s in specs.items()}
  xielu = nnx.merge(graph, jax.tree.unflatten(jax.tree.structure(state), jax.tree.leaves(values)))
  found = xielu(jnp.array([2.0, -1.0, 0.0]))
  np.testing.assert_allclose(found, [4.2, 0.8 / np.e - 0.5, 0.0], rtol=1e-5, atol=1e-6)
  slopes = jax.grad(lambda x: jnp.sum(xielu(x)))(jnp.array([-1e4, 1e4]))
  np.testing.assert_allclose(slopes, [0.5 - 0.8, 1.6e4 + 0.5], rtol=1e-5)


def test_an_axis_without_a_rule_is_an_error():
  with pytest.raises(KeyError):
    mesh.spec(("embed", "nonsense"))


def test_a_parameter_starts_the_same_whatever_else_there_is(monkeypatch):
  cfg = CONFIGS["llama"]
  key = jax.random.key(3)
  plain = decoder.init_params(cfg, key)
  more = decoder.init_params(dataclasses.replace(cfg, attn_bias=True, qk_norm=True, tied=True), key)
  for path, value in jax.tree_util.tree_leaves_with_path(plain):
    node = more
    for k in path:
      node = node.get(k.key)
      if node is None:
        assert path[0].key == "head"
        break
    else:
      np.testing.assert_array_equal(value, node)

  def reverse(tree):
    if not isinstance(tree, dict):
      return tree
    return {k: reverse(v) for k, v in reversed(tree.items())}

  specs = reverse(decoder.param_specs(cfg))
  monkeypatch.setattr(decoder, "param_specs", lambda _: specs)
  again = decoder.init_params(cfg, key)
  jax.tree.map(np.testing.assert_array_equal, again, plain)
  # And no two start alike: equal shapes with one key would.
  block = plain["blocks"]
  assert not np.array_equal(block["attn"]["k_DKH"], block["attn"]["v_DKH"])
  assert not np.array_equal(block["mlp"]["gate_DF"][0], block["mlp"]["gate_DF"][1])
