"""The proofs of every family, for each variant of tests/families.py: a new variant gets all of them.

Of one variant at a time there is one model, one import and one tuned export, and every forward pass has
the same shape, so that each variant compiles four programs.
"""

import pathlib
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")

import torch

from mlit_jax.errors import UserError
from mlit_jax.model import decoder
from mlit_jax.model.config import DecoderConfig, from_hf, text_config
from mlit_jax.weights import load, names, save, source, table, verify
from tests import families
from tests.families import alone, assert_same_logits, forward, our_logits
from tests.few import only

# Beyond the windows (3 to 5) and beyond the 16 positions of the scaled RoPEs.
PROMPT, NEW = 64, 32
LENGTH = PROMPT + NEW

FLOAT32 = torch.float32

forward_cached = jax.jit(decoder.apply_cached, static_argnums=1)


class Made(NamedTuple):
  folder: pathlib.Path
  model: object  # of transformers
  source: object  # what source.read_source gives
  cfg: DecoderConfig
  params: dict
  tuned: dict
  out: pathlib.Path  # the tuned model, exported
  tuned_model: object  # the export as transformers reads it
  tokens_BT: np.ndarray  # a row in each of the twelve scripts


# In the fast suite every family has one variant, and what takes longest five.
FIRST = {families.one_of(keys["model_type"]) for keys in families.VARIANTS.values()}
SOME = ("llama", "bloom", "gemma3_text", "cohere2", "mixtral")
for_some = pytest.mark.parametrize("made", only(SOME, families.VARIANTS), indirect=True)


@pytest.fixture(scope="module", params=only(FIRST, families.VARIANTS))
def made(request, tmp_path_factory):
  folder = tmp_path_factory.mktemp(request.param)
  model = families.make_model(folder / "in", request.param)
  s = source.read_source(folder / "in")
  cfg = from_hf(s.config)
  params = load.load_params(folder / "in", cfg)
  tuned = families.tuned(params)
  out = save.save_folder(
    tuned, cfg, folder / "out", files=s.files, dtypes=s.dtypes, carried=s.carried
  )
  tokens_BT = families.rows_in_twelve_languages(out, LENGTH)
  return Made(folder / "in", model, s, cfg, params, tuned, out, families.load_model(out), tokens_BT)


def room(cfg):
  """(prompt, new tokens) that a cache may hold: frequencies that change with the length end it."""
  scaling = dict(cfg.rope_scaling or ())
  if scaling.get("rope_type") in ("dynamic", "longrope"):
    total = scaling["original_max_position_embeddings"]
    return total - 12, 12
  return PROMPT, NEW


def test_logits_are_those_of_transformers(made):
  assert made.cfg.vocab_size > 261  # the tokenizer's: the rest is padding, and is kept
  ours_BTV = our_logits(made.params, made.cfg, made.tokens_BT)
  assert_same_logits(ours_BTV, families.hf_logits(made.model, made.tokens_BT))


@for_some
def test_gradients_are_those_of_transformers(made):
  """Of every parameter, of a sum that weighs every logit differently."""
  arrays = alone(made.tokens_BT[::4])
  weights_BTV = np.random.default_rng(0).standard_normal(
    (*arrays[0].shape, made.cfg.vocab_size), np.float32
  )
  _assert_same_gradients(made.cfg, made.params, made.model, arrays, weights_BTV, 1e-3)


def _assert_same_gradients(cfg, params, model, arrays, weights_BTV, tolerance):
  loss = jax.jit(jax.grad(lambda p: jnp.vdot(decoder.apply(p, cfg, *arrays), weights_BTV)))
  ours = table.flatten(loss(params))
  model.zero_grad()
  logits_BTV = model(input_ids=torch.tensor(arrays[0])).logits
  (logits_BTV * torch.tensor(weights_BTV)).sum().backward()
  named = dict(model.named_parameters())
  carried = {name for name in named if names.is_carried(cfg, name)}
  assert not any(named[name].grad is not None for name in carried)
  theirs = {name: p.grad for name, p in named.items() if name not in carried}
  theirs = {name: grad.numpy() for name, grad in families.as_saved(model, theirs).items()}
  largest = max(np.abs(grad).max() for grad in theirs.values())
  seen = set()
  for name, tensor in table.tensors_of(cfg, names.prefix_of(cfg, theirs)).items():
    grad = in_their_layout(ours, tensor)
    if name not in theirs:  # a buffer, which does not train
      assert name in dict(model.named_buffers()) and not grad.any(), name
      continue
    scale = np.abs(theirs[name]).max()
    assert scale > 0, name
    # Rounding is all that is left of a key's bias in a layer without positions: softmax ignores it.
    atol = max(tolerance * scale, 1e-6 * largest)
    np.testing.assert_allclose(grad, theirs[name], rtol=0, atol=atol, err_msg=name)
    seen.add(name)
  assert seen == set(theirs)


@for_some
def test_logits_in_float64(made, monkeypatch):
  """Both sides say float32 where half precision would not do; here that word means float64."""
  tokens_BT = made.tokens_BT[::4]
  monkeypatch.setattr(torch, "float32", torch.float64)
  monkeypatch.setattr(torch, "float", torch.float64)
  monkeypatch.setattr(torch.Tensor, "float", torch.Tensor.double)
  torch.set_default_dtype(torch.float64)
  try:
    model = families.random_model_like(made.model)
    with torch.no_grad():
      theirs_BTV = model(input_ids=torch.tensor(tokens_BT)).logits.numpy()
  finally:
    torch.set_default_dtype(FLOAT32)
  with jax.enable_x64(True):
    monkeypatch.setattr(jnp, "float32", jnp.float64)
    params = jax.tree.map(lambda a: np.asarray(a, np.float64), made.params)
    run = jax.jit(lambda p, *arrays: decoder.apply(p, made.cfg, *arrays, dtype=jnp.float64))
    ours_BTV = np.asarray(run(params, *alone(tokens_BT)))
  assert ours_BTV.dtype == theirs_BTV.dtype == np.float64
  assert_same_logits(ours_BTV, theirs_BTV, 1e-9)


def test_export_of_import_is_the_source_byte_for_byte(made, tmp_path):
  s = made.source
  save.save_folder(
    made.params,
    made.cfg,
    tmp_path / "out",
    files=s.files,
    dtypes=s.dtypes,
    layout=s.layout,
    carried=s.carried,
  )
  assert families.bytes_of(tmp_path / "out") == families.bytes_of(made.folder)


@for_some
def test_import_is_bitwise_from_shards_in_bfloat16(made, tmp_path):
  """Cast there and back, so that the two dtypes and the several files are those of the hub."""
  s = made.source
  files = save.with_dtype(s.files, "bfloat16")
  kwargs = dict(files=files, dtypes="bfloat16", carried=s.carried)
  save.save_folder(made.params, made.cfg, tmp_path / "in", max_shard_bytes=40_000, **kwargs)
  s = source.read_source(tmp_path / "in")
  assert len(s.layout.headers) > 1
  params = load.load_params(tmp_path / "in", made.cfg)
  kwargs = dict(files=s.files, dtypes=s.dtypes, layout=s.layout, carried=s.carried)
  save.save_folder(params, made.cfg, tmp_path / "out", **kwargs)
  assert families.bytes_of(tmp_path / "out") == families.bytes_of(tmp_path / "in")
  named = families.as_saved(made.model, made.model.state_dict())
  named = {n: p.to(torch.bfloat16).float() for n, p in named.items()}
  for name, tensor in table.tensors_of(made.cfg, names.prefix_of(made.cfg, named)).items():
    ours = in_their_layout(table.flatten(params), tensor)
    np.testing.assert_array_equal(ours, named[name].numpy(), err_msg=name)


def in_their_layout(leaves, tensor: table.Theirs) -> np.ndarray:
  return table.to_theirs([np.asarray(leaves[row.ours])[i] for row, i in tensor.parts], tensor)


def test_tuned_logits_agree_in_every_language(made):
  ours_BTV = our_logits(made.tuned, made.cfg, made.tokens_BT)
  assert_same_logits(ours_BTV, families.hf_logits(made.tuned_model, made.tokens_BT))


@for_some
def test_tuned_logits_agree_after_an_export_in_bfloat16(made, tmp_path):
  files = save.with_dtype(made.source.files, "bfloat16")
  kwargs = dict(files=files, dtypes="bfloat16", carried=made.source.carried)
  out = save.save_folder(made.tuned, made.cfg, tmp_path / "out", **kwargs)
  theirs_BTV = families.hf_logits(families.load_model(out), made.tokens_BT)
  rounded = verify.rounded(made.tuned, made.cfg, "bfloat16")
  assert_same_logits(our_logits(rounded, made.cfg, made.tokens_BT), theirs_BTV)


@for_some
def test_cached_decoding_continues_as_transformers_does_and_equals_the_full_pass(made):
  """Rows of different lengths at once; then 32 greedy tokens each."""
  prompts_BT = made.tokens_BT[::3]
  num_prompt, num_new = room(made.cfg)
  lengths = num_prompt - np.arange(len(prompts_BT)) % 3
  tokens_BT = prompts_BT[:, :num_prompt].copy()
  positions_BT = np.broadcast_to(np.arange(num_prompt, dtype=np.int32), tokens_BT.shape).copy()
  positions_BT[positions_BT >= lengths[:, None]] = -1
  cache = decoder.init_cache(made.cfg, len(tokens_BT), num_prompt + num_new)
  logits, cache = forward_cached(made.tuned, made.cfg, tokens_BT, positions_BT, cache)
  steps = [np.asarray(logits)[np.arange(len(lengths)), lengths - 1]]
  for t in range(num_new - 1):
    new_BT = steps[-1].argmax(-1).astype(np.int32)[:, None]
    logits, cache = forward_cached(
      made.tuned, made.cfg, new_BT, (lengths + t).astype(np.int32)[:, None], cache
    )
    steps.append(np.asarray(logits)[:, 0])
  ours_BTV = np.stack(steps, axis=1)
  continuation_BT = ours_BTV.argmax(-1)
  kinds = set()
  for r in range(len(lengths)):
    prompt = torch.tensor(prompts_BT[r : r + 1, : lengths[r]])
    theirs = made.tuned_model.generate(
      prompt, max_new_tokens=num_new, do_sample=False, eos_token_id=None
    )[0, lengths[r] :]
    assert continuation_BT[r].tolist() == theirs.tolist()
    kinds |= set(theirs.tolist())
  assert len(kinds) > 4  # else agreement would mean little
  rows_BT = np.zeros((len(lengths), num_prompt + num_new), np.int32)
  for r, n in enumerate(lengths):
    rows_BT[r, :n], rows_BT[r, n : n + num_new] = prompts_BT[r, :n], continuation_BT[r]
  full_BTV = np.asarray(forward(made.tuned, made.cfg, *alone(rows_BT)))
  for r, n in enumerate(lengths):
    expected = full_BTV[r, n - 1 : n - 1 + num_new]
    np.testing.assert_allclose(ours_BTV[r], expected, rtol=0, atol=1e-4 * np.abs(expected).max())


@pytest.mark.parametrize("kind", ["dynamic", "longrope"])
def test_a_cache_beyond_the_original_length_is_refused_where_frequencies_change(kind):
  variant = {"dynamic": "llama_dynamic", "longrope": "phi3_longrope"}[kind]
  cfg = families.config_of(variant)
  length = dict(cfg.rope_scaling)["original_max_position_embeddings"]
  params = decoder.param_shapes(cfg)
  one = jnp.zeros((1, 1), jnp.int32)
  for slots, fits in ((length, True), (length + 1, False)):
    run = lambda p, n=slots: decoder.apply_cached(p, cfg, one, one, decoder.init_cache(cfg, 1, n))  # noqa: E731
    if fits:
      jax.eval_shape(run, params)
    else:
      with pytest.raises(UserError, match="not supported: decoding"):
        jax.eval_shape(run, params)


def test_packed_rows_equal_separate_rows(made):
  """Row r holds the beginnings of examples r and r + 1, then padding."""
  B = len(made.tokens_BT)
  first, second = 20 + np.arange(B), 50 + np.arange(B)[::-1] % (LENGTH - 82)
  apart = [beginnings(made.tokens_BT, first), beginnings(np.roll(made.tokens_BT, -1, 0), second)]
  packed = [np.zeros((B, LENGTH), np.int32) for _ in range(3)]
  for r in range(B):
    for segment, (n, at) in enumerate(((first[r], 0), (second[r], first[r]))):
      for array, separate in zip(packed, apart[segment], strict=True):
        array[r, at : at + n] = separate[r, :n]
      packed[2][r, at : at + n] = segment + 1
  packed_BTV = np.asarray(forward(made.tuned, made.cfg, *packed))
  apart_BTV = [np.asarray(forward(made.tuned, made.cfg, *arrays)) for arrays in apart]
  for r in range(B):
    for segment, (n, at) in enumerate(((first[r], 0), (second[r], first[r]))):
      expected, found = apart_BTV[segment][r, :n], packed_BTV[r, at : at + n]
      np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5 * np.abs(expected).max())


def beginnings(tokens_BT, lengths_B):
  """(tokens, positions, segments) of the first tokens of each row, then padding."""
  arrays = alone(tokens_BT)
  live_BT = arrays[1] < lengths_B[:, None]
  return [np.where(live_BT, array, 0).astype(np.int32) for array in arrays]


def test_configs_as_published_are_read_alike(made):
  """transformers 4 wrote neither layer_types nor rope_parameters: what it left out is derived alike."""
  import transformers

  config = made.source.config
  text = text_config(config)
  old = {k: v for k, v in text.items() if k not in ("layer_types", "no_rope_layers")}
  rope = dict(old.pop("rope_parameters", {}))
  if "full_attention" not in rope and rope:
    old["rope_theta"] = rope.pop("rope_theta")
    old["rope_scaling"] = None if rope["rope_type"] == "default" else rope
    if "partial_rotary_factor" in rope:
      old["partial_rotary_factor"] = rope.pop("partial_rotary_factor")
  elif rope:
    old["rope_parameters"] = rope
  differs = next(iter(old.pop("per_layer_config", {}).values()), {})
  if differs:  # the hub's Gemma 4 has keys of its own for what global layers have
    old["global_head_dim"] = differs["head_dim"]
    old["num_global_key_value_heads"] = differs.get("num_key_value_heads")
  old = old if text is config else config | {"text_config": old}
  kept = {k: v for k, v in old.items() if k != "model_type"}
  again = transformers.AutoConfig.for_model(config["model_type"], **kept).to_dict()
  expected = from_hf(again)
  assert from_hf(old) == expected


@pytest.mark.parametrize("variant", families.VARIANTS)
def test_parameters_are_those_of_the_golden_file(variant):
  """`python -m tests.families` writes the files again; what changed is in the diff."""
  path = families.GOLDEN / f"{variant}.txt"
  expected = path.read_text().splitlines() if path.exists() else []
  found = families.golden_lines(variant)
  changed = [f"- {x}" for x in expected if x not in found]
  changed += [f"+ {x}" for x in found if x not in expected]
  assert found == expected, "\n".join([f"{path}:", *changed])


def test_every_family_has_three_variants_and_no_golden_file_is_left_over():
  from mlit_jax.model.families import FAMILIES

  kinds = [v["model_type"] for v in families.VARIANTS.values()]
  assert set(kinds) == set(FAMILIES)
  assert {p.stem for p in families.GOLDEN.glob("*.txt")} == set(families.VARIANTS)
  assert not {kind: kinds.count(kind) for kind in FAMILIES if kinds.count(kind) < 3}
