import dataclasses
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mlit_jax.errors import UserError
from mlit_jax.evals import decoding
from mlit_jax.evals.decoding import Completion, Generator
from mlit_jax.mesh import make_mesh, param_shardings
from mlit_jax.model import decoder
from mlit_jax.model.config import DecoderConfig

V = 61
SIZES = dict(
  vocab_size=V, d_model=16, num_layers=3, num_heads=4, num_kv_heads=2, head_dim=8, d_ff=24
)
PLAIN = DecoderConfig(family="llama", tied=False, **SIZES)
WINDOWS = DecoderConfig(
  family="gemma3_text",
  windows=(3, 0, 3),
  rope_local_theta=100.0,
  qk_norm=True,
  post_norms=True,
  norm_plus_one=True,
  embed_scale=4.0,
  activation="gelu_tanh",
  final_softcap=5.0,
  **SIZES,
)
NEW = 9
NEVER = (-2, -3)  # as many stop tokens as elsewhere, so that nothing is compiled anew
PROMPTS = [
  [5, 9, 1],
  [7],
  [3, 3, 8, 20, 41, 2, 60, 11],
  [50, 2, 13, 4, 4],
  [33, 34],
  [12] * 4,
  [1, 0],
]


def make_params(cfg):
  """Weights large enough that answers differ between prompts and do not repeat one token."""
  params = decoder.init_params(cfg, jax.random.key(3))
  return jax.tree.map_with_path(
    lambda path, x: x if path[-1].key.startswith("scale_") else 3 * x, params
  )


def one_device_mesh():
  return make_mesh(1, 1, 1, devices=jax.devices()[:1])


@functools.cache  # compiled functions are shared between tests
def make_generator(cfg, mesh=None, *, buckets=(4, 8), rows=3, new=NEW, dtype=jnp.float32):
  return Generator(
    cfg,
    mesh or one_device_mesh(),
    max_new_tokens=new,
    prompt_buckets=buckets,
    rows=rows,
    dtype=dtype,
  )


def by_plain_loop(cfg, params, prompts, length=20):
  """Greedy answers by running the whole texts through the decoder for every token."""
  apply = jax.jit(functools.partial(decoder.apply, cfg=cfg))
  texts = [list(prompt) for prompt in prompts]
  place_BT = np.broadcast_to(np.arange(length, dtype=np.int32), (len(texts), length))
  for _ in range(NEW):
    tokens_BT = np.array([text + [0] * (length - len(text)) for text in texts], np.int32)
    segments_BT = (place_BT < np.array([[len(text)] for text in texts])).astype(np.int32)
    logits_BTV = apply(params, tokens_BT=tokens_BT, positions_BT=place_BT, segments_BT=segments_BT)
    for text, logits_TV in zip(texts, logits_BTV, strict=True):
      text.append(int(np.argmax(logits_TV[len(text) - 1])))
  return [text[len(prompt) :] for text, prompt in zip(texts, prompts, strict=True)]


def cut(tokens, stop_ids):
  """What is left of an answer that must end at the first stop token."""
  for i, token in enumerate(tokens):
    if token in stop_ids:
      return Completion(tokens[:i], True)
  return Completion(tokens, False)


@pytest.mark.parametrize("cfg", [PLAIN, WINDOWS], ids=["plain", "windows"])
def test_greedy_equals_a_plain_loop(cfg):
  params = make_params(cfg)
  free = by_plain_loop(cfg, params, PROMPTS)
  assert len({tuple(tokens) for tokens in free}) == len(PROMPTS)  # else the test shows little
  # Stop tokens that occur: in some answers early, in others late or never.
  stop_ids = (free[0][2], free[2][5])
  wanted = [cut(tokens, stop_ids) for tokens in free]
  assert {c.stopped for c in wanted} == {True, False}
  generator = make_generator(cfg)
  assert generator.generate(params, PROMPTS, stop_ids=NEVER) == [cut(t, NEVER) for t in free]
  assert generator.generate(params, PROMPTS, stop_ids=stop_ids) == wanted
  for prompt, completion in zip(PROMPTS, wanted, strict=True):
    assert list(generator.stream(params, prompt, stop_ids=stop_ids)) == completion.tokens


def test_a_stop_token_at_once_is_an_empty_answer():
  params = make_params(PLAIN)
  generator = make_generator(PLAIN)
  (first,) = generator.generate(params, [PROMPTS[0]], stop_ids=NEVER)
  stop_ids = np.array([first.tokens[0]] * 2)
  assert generator.generate(params, [PROMPTS[0]], stop_ids=stop_ids) == [Completion([], True)]
  assert list(generator.stream(params, PROMPTS[0], stop_ids=stop_ids)) == []
  (no_stops,) = generator.generate(params, [PROMPTS[0]], stop_ids=())
  assert no_stops == first and not first.stopped
  assert generator.generate(params, [], stop_ids=NEVER) == []


SAMPLED = dict(stop_ids=(4, 17), temperature=1.3, top_p=0.95)


def test_sampled_answers_do_not_depend_on_batch_or_padding():
  params = make_params(WINDOWS)
  wanted = make_generator(WINDOWS).generate(params, PROMPTS, seed=11, **SAMPLED)
  assert len({tuple(c.tokens) for c in wanted}) == len(PROMPTS)
  for rows, buckets in [(1, (8,)), (16, (32,)), (2, (2, 16))]:
    generator = make_generator(WINDOWS, rows=rows, buckets=buckets)
    assert generator.generate(params, PROMPTS, seed=11, **SAMPLED) == wanted, (rows, buckets)


def test_sampling_is_a_function_of_seed_and_index():
  params, generator = make_params(PLAIN), make_generator(PLAIN)
  once = generator.generate(params, PROMPTS, seed=5, **SAMPLED)
  assert generator.generate(params, PROMPTS, seed=5, **SAMPLED) == once
  assert generator.generate(params, PROMPTS, seed=6, **SAMPLED) != once
  same = generator.generate(params, [PROMPTS[0]] * 6, seed=5, **SAMPLED)
  assert len({tuple(c.tokens) for c in same}) > 3
  assert list(generator.stream(params, PROMPTS[0], seed=5, **SAMPLED)) == once[0].tokens


def test_samples_follow_the_distribution():
  params = make_params(PLAIN)
  prompt = PROMPTS[2]
  positions_BT = jnp.arange(len(prompt))[None]
  logits_BTV = decoder.apply(
    params, PLAIN, jnp.array([prompt]), positions_BT, jnp.ones_like(positions_BT)
  )
  wanted_V = np.asarray(jax.nn.softmax(logits_BTV[0, -1] / 0.7))
  generator = make_generator(PLAIN, rows=500, buckets=(8,), new=1)
  answers = generator.generate(params, [prompt] * 1000, stop_ids=NEVER, temperature=0.7)
  found_V = np.bincount([c.tokens[0] for c in answers], minlength=V) / 1000
  assert np.abs(found_V - wanted_V).max() < 0.05


def test_a_narrow_nucleus_is_greedy():
  params, generator = make_params(PLAIN), make_generator(PLAIN)
  greedy = generator.generate(params, PROMPTS, stop_ids=NEVER)
  assert generator.generate(params, PROMPTS, stop_ids=NEVER, temperature=1.0, top_p=1e-6) == greedy


@pytest.mark.parametrize("sizes", [(2, 2, 2), (1, 8, 1)])
def test_eight_devices_answer_like_one(sizes):
  params = make_params(WINDOWS)
  wanted = make_generator(WINDOWS).generate(params, PROMPTS, seed=2, **SAMPLED)
  mesh = make_mesh(*sizes, devices=jax.devices()[:8])
  sharded = jax.device_put(params, param_shardings(decoder.param_specs(WINDOWS), mesh))
  generator = make_generator(WINDOWS, mesh)
  with jax.set_mesh(mesh), jax.transfer_guard("disallow"):  # as in training
    assert generator.generate(sharded, PROMPTS, seed=2, **SAMPLED) == wanted
    streamed = list(generator.stream(sharded, PROMPTS[0], seed=2, **SAMPLED))
  assert streamed == wanted[0].tokens


def test_bfloat16_casts_once_and_streams_the_same():
  params, generator = make_params(WINDOWS), make_generator(WINDOWS, dtype=jnp.bfloat16)
  (answer,) = generator.generate(params, [PROMPTS[2]], stop_ids=NEVER)
  assert list(generator.stream(params, PROMPTS[2], stop_ids=NEVER)) == answer.tokens
  assert params["embed"]["table_VD"].dtype == jnp.float32
  cached = generator.programs.cast(params)
  assert cached["embed"]["table_VD"].dtype == jnp.bfloat16
  assert cached["final_norm"]["scale_D"].dtype == jnp.float32


def test_a_norms_bias_stays_float32_and_other_biases_do_not():
  cfg = dataclasses.replace(PLAIN, norm="layer", norm_bias=True, attn_bias=True)
  cached = make_generator(cfg, dtype=jnp.bfloat16).programs.cast(make_params(cfg))
  assert cached["final_norm"]["bias_D"].dtype == jnp.float32
  assert cached["blocks"]["attn"]["q_bias_NH"].dtype == jnp.bfloat16


def test_one_compilation_for_each_bucket():
  params, generator = make_params(PLAIN), make_generator(PLAIN, rows=2)
  for n, seed in itertools.product((1, 4, 7), (0, 1)):
    generator.generate(
      params, PROMPTS[:n], seed=seed, temperature=0.5 + seed, top_p=0.9, stop_ids=(1,)
    )
  assert generator.programs.prefill._cache_size() == 2
  assert generator.programs.advance._cache_size() == 1


def test_prompts_that_cannot_be_answered_are_named():
  params, generator = make_params(PLAIN), make_generator(PLAIN)
  with pytest.raises(UserError, match="prompt 1 has 9 tokens; the longest that fits is 8"):
    generator.generate(params, [[1], [1] * 9], stop_ids=NEVER)
  with pytest.raises(UserError, match="prompt 0 has no tokens"):
    generator.generate(params, [[]], stop_ids=NEVER)
  for bad in (dict(temperature=-1.0), dict(top_p=0.0), dict(top_p=1.5), dict(seed=-1)):
    with pytest.raises(UserError, match=next(iter(bad))):
      generator.generate(params, [[1]], stop_ids=NEVER, **bad)


def test_a_subset_in_another_order_gets_the_same_answers():
  """By the numbers of its prompts; without them, by where they stand."""
  params, generator = make_params(PLAIN), make_generator(PLAIN)
  ids = [10**15 + 7 * i for i in range(len(PROMPTS))]
  wanted = generator.generate(params, PROMPTS, seed=4, ids=ids, **SAMPLED)
  some = [5, 0, 3, 2]
  found = generator.generate(
    params, [PROMPTS[i] for i in some], seed=4, ids=[ids[i] for i in some], **SAMPLED
  )
  assert found == [wanted[i] for i in some]
  without = generator.generate(params, [PROMPTS[i] for i in some], seed=4, **SAMPLED)
  assert without != found


@pytest.mark.slow
def test_more_steps_than_the_cache_has_room_for_at_first(monkeypatch):
  """The cache grows and rows shrink on the way; neither changes an answer."""
  params = make_params(WINDOWS)
  kwargs = dict(stop_ids=(), max_new_tokens=[150, 40, 3, 70, 9, 20, 33])
  wanted = make_generator(WINDOWS, new=150).generate(params, PROMPTS, **kwargs)
  assert [len(c.tokens) for c in wanted] == kwargs["max_new_tokens"]
  monkeypatch.setattr(decoding, "FEWEST_SLOTS", 8)
  monkeypatch.setattr(decoding, "WORTH_SHRINKING", 2)
  generator = make_generator.__wrapped__(WINDOWS, new=150, rows=4)
  sizes = []
  resize = generator.programs.resize
  monkeypatch.setattr(
    generator.programs, "resize", lambda *a: sizes.append((len(a[1]), a[2])) or resize(*a)
  )
  assert generator.generate(params, PROMPTS, **kwargs) == wanted
  assert len({slots for _, slots in sizes}) > 2 and {rows for rows, _ in sizes} == {4, 1}


def test_few_steps_where_answers_differ_in_length(monkeypatch):
  """Five short answers pass through the second row while the first gives its long one."""
  params, generator = make_params(PLAIN), make_generator.__wrapped__(PLAIN, rows=2, new=60)
  steps = []
  advance = generator.programs.advance

  def counting(*args, **kwargs):
    said_MB, cache = advance(*args, **kwargs)
    steps.append(int((np.asarray(said_MB) != -1).any(axis=1).sum()))
    return said_MB, cache

  monkeypatch.setattr(generator.programs, "advance", counting)
  limits = [10, 10, 60, 10, 10, 10]
  prompts = [prompt for prompt in PROMPTS if len(prompt) <= 4] + [[9]]  # of one bucket
  out = generator.generate(params, prompts, stop_ids=(), max_new_tokens=limits)
  assert [len(c.tokens) for c in out] == limits
  assert sum(steps) == 60


def letters(tokens):
  return "".join(chr(65 + t) for t in tokens)  # one character each, in the order of the vocabulary


@pytest.mark.parametrize("steps", [1, 3, 8])
def test_stop_strings_cut_exactly_wherever_the_host_looks(monkeypatch, steps):
  monkeypatch.setattr(decoding, "STEPS_WITH_TEXTS", steps)
  params, generator = make_params(PLAIN), make_generator(PLAIN)
  free = generator.generate(params, PROMPTS, stop_ids=NEVER)
  stops = [letters(free[0].tokens[2:5]), letters(free[2].tokens[5:7])]  # of three tokens, and two
  found = generator.generate(params, PROMPTS, stop_ids=NEVER, stop_texts=stops, decode=letters)
  for completion, whole in zip(found, free, strict=True):
    text = letters(whole.tokens)
    ends = [text.find(s) + len(s) for s in stops if s in text]
    if not ends:
      assert completion == whole
      continue
    kept = min(text.find(s) for s in stops if s in text[: min(ends)])
    assert completion == Completion(whole.tokens[:kept], True, text[:kept])
  assert found[0].tokens == free[0].tokens[:2] and found[0].stopped
  with pytest.raises(UserError, match="stop strings"):
    generator.generate(params, PROMPTS, stop_ids=NEVER, stop_texts="ab", decode=letters)


def test_limits_of_prompts_are_checked():
  params, generator = make_params(PLAIN), make_generator(PLAIN)
  for wrong in (0, NEW + 1):
    with pytest.raises(UserError, match=f"max_new_tokens is {wrong}; it must be 1 to {NEW}"):
      generator.generate(params, [[1], [2]], stop_ids=NEVER, max_new_tokens=[1, wrong])
