"""The decoder: parameters as nested dicts with stacked layers, and its two forward passes."""

from __future__ import annotations

import functools
import math
import zlib
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from mlit_jax import mesh
from mlit_jax.attention import dense
from mlit_jax.attention.choice import PLAIN, Choice, Needs, attend
from mlit_jax.attention.scoring import SAVED, Rows, Scoring, is_saved
from mlit_jax.head import Head, head_logits
from mlit_jax.loops import once
from mlit_jax.model import kinds, layers, rope
from mlit_jax.model.config import DecoderConfig
from mlit_jax.model.lookup import look_up
from mlit_jax.routing import Routing, routing_sums

# What the backward pass finds ready, from most memory to least; see docs/memory.md.
REMAT = ("none", "dots_saved", "attention_saved", "offload", "full")
_KV_AXES = ("batch", "length", "kv_heads", "head_dim")


class ParamSpec(NamedTuple):
  """What a parameter is before it exists; a leaf (see is_spec)."""

  shape: tuple[int, ...]
  axes: tuple[str, ...]
  std: float
  mean: float


class Cache(NamedTuple):
  """Keys and values of past tokens in layers of one stack; slot s holds position s."""

  k_LBSKH: jax.Array
  v_LBSKH: jax.Array


def param_specs(cfg: DecoderConfig) -> dict:
  """Nested dict of ParamSpec, in the layout of the parameters."""
  specs = _specs(layers.Decoder(cfg))
  for kind in kinds.kinds(cfg):
    specs[kind.stack] = _specs(layers.Block(kind.cfg), stacked=len(kind.layers))
  return specs


def param_shapes(cfg: DecoderConfig, dtype=jnp.float32) -> dict:
  """Nested dict of jax.ShapeDtypeStruct."""
  return jax.tree.map(
    lambda s: jax.ShapeDtypeStruct(s.shape, dtype), param_specs(cfg), is_leaf=is_spec
  )


def init_params(cfg: DecoderConfig, key: jax.Array, dtype=jnp.float32) -> dict:
  """Fresh parameters; each one's key depends on its path alone."""

  def init(path, s):
    name = "/".join(k.key for k in path)
    if s.std == 0:
      return jnp.full(s.shape, s.mean, dtype)
    leaf_key = jax.random.fold_in(key, zlib.crc32(name.encode()))
    return (s.mean + s.std * jax.random.normal(leaf_key, s.shape, jnp.float32)).astype(dtype)

  return jax.tree.map_with_path(init, param_specs(cfg), is_leaf=is_spec)


@functools.lru_cache
def count_params(cfg: DecoderConfig) -> int:
  """Number of parameters."""
  sizes = jax.tree.map(lambda s: math.prod(s.shape), param_specs(cfg), is_leaf=is_spec)
  return sum(jax.tree.leaves(sizes))


def apply(
  params,
  cfg: DecoderConfig,
  tokens_BT,
  positions_BT,
  segments_BT,
  *,
  dtype=jnp.float32,
  remat="none",
  attention=PLAIN,
) -> jax.Array:
  """logits_BTV, float32, of packed rows."""
  arrays = (tokens_BT, positions_BT, segments_BT)
  found = hidden(params, cfg, *arrays, dtype=dtype, remat=remat, attention=attention)
  return head_logits(*found[:2])


def hidden(
  params,
  cfg: DecoderConfig,
  tokens_BT,
  positions_BT,
  segments_BT,
  *,
  dtype=jnp.float32,
  remat="none",
  attention=PLAIN,
  together=False,
  unrolled=False,
) -> tuple[jax.Array, Head, Routing | None]:
  """x_BTD after the last norm and the Head that makes logits of it: a loss need not have them all at once.

  And where there are experts, the Routing of all tokens but padding. Two ways to the same that a CPU takes faster:
  together: products of one input as one; unrolled: layer after layer in a longer program in place of a loop.
  """
  attend_in = _attention(cfg, attention, Rows(positions_BT, segments_BT), dtype)
  x_BTD = embed(params, cfg, tokens_BT, dtype)
  lengths_BT = rope.lengths(cfg, positions_BT, segments_BT)
  find_ropes = functools.partial(_ropes, cfg, positions_BT, lengths_BT)
  # A loop over layers computes them before it begins. Positions are 0 or more, and -1 where decoding pads.
  ropes = once(find_ropes, positions_BT[0, 0] >= -1) if unrolled else find_ropes()
  growth_BT = rope.query_growth(cfg, positions_BT)

  def layer(kind, carry, part):
    x_BTD, kept = carry

    def run(x_BTD, lent, part):
      block, window, rope_kind, input_BTP = _open(kind, part, together)
      h_BTD = block.read(x_BTD)
      rope_BTH = rope.pick(ropes[kind.stack], rope_kind)
      q_BTNH, k_BTKH, v_BTKH = block.attn.queries_keys_values(h_BTD, rope_BTH, growth_BT, lent)
      o_BTNH = attend_in[kind.stack](q_BTNH, k_BTKH, v_BTKH, window=window)
      o_BTD = block.attn.out(o_BTNH)
      x_BTD, routed = block.add(x_BTD, h_BTD, o_BTD, input_BTP)
      sums = routing_sums(*routed, segments_BT > 0) if routed else None
      lends = (k_BTKH, v_BTKH) if kind.stack in kept else None
      return mesh.constrain(x_BTD, "batch", "length", "width"), lends, sums

    x_BTD, lends, sums = _with_remat(run, remat)(x_BTD, kept.get(kind.lender), part)
    return (x_BTD, _keep(kept, kind, lends)), sums

  stacks = _stacks(params, cfg, _layer_inputs(params, cfg, tokens_BT, x_BTD))
  kept = {
    kind.stack: _no_kv((*tokens_BT.shape, kind.cfg.num_kv_heads, kind.cfg.head_dim), dtype)
    for kind in _lenders(cfg)
  }
  (x_BTD, _), sums = kinds.scan_layers(cfg, layer, (x_BTD, kept), stacks, unrolled)
  return last_norm(params, cfg, x_BTD), head_of(params, cfg), _total(sums)


def init_cache(cfg: DecoderConfig, rows: int, slots: int, dtype=jnp.float32) -> dict[str, Cache]:
  """An empty cache for sequences of up to `slots` tokens: one for each stack of layers with own keys."""
  out = {}
  for kind in kinds.kinds(cfg):
    if not kind.lender:
      shape = (len(kind.layers), rows, slots, kind.cfg.num_kv_heads, kind.cfg.head_dim)
      out[kind.stack] = Cache(jnp.zeros(shape, dtype), jnp.zeros(shape, dtype))
  return out


def apply_cached(
  params, cfg: DecoderConfig, tokens_BT, positions_BT, cache: dict[str, Cache], *, dtype=jnp.float32
) -> tuple[jax.Array, dict[str, Cache]]:
  """logits_BTV of new tokens at `positions_BT`, and the cache with them in it.

  Position -1 is padding: it is not written, and its logits mean nothing. A token at position p sees
  the slots up to p, so slots beyond a row's last token may hold anything.
  """
  B, T = tokens_BT.shape
  slots = next(iter(cache.values())).k_LBSKH.shape[2]
  rope.check_slots(cfg, slots)
  x_BTD = embed(params, cfg, tokens_BT, dtype)
  seen_BT = jnp.maximum(positions_BT, 0)
  ropes, growth_BT = _ropes(cfg, seen_BT), rope.query_growth(cfg, seen_BT)
  slots_BS = jnp.broadcast_to(jnp.arange(slots)[None], (B, slots))
  one_BT, one_BS = jnp.ones((B, T), jnp.int32), jnp.ones((B, slots), jnp.int32)

  def layer(kind, carry, scanned):
    (x_BTD, kept), (part, stored) = carry, scanned
    block, window, rope_kind, input_BTP = _open(kind, part)
    h_BTD = block.read(x_BTD)
    rope_BTH = rope.pick(ropes[kind.stack], rope_kind)
    q_BTNH = block.attn.queries(h_BTD, rope_BTH, growth_BT)
    new = None
    if kind.lender:
      k_BSKH, v_BSKH = kept[kind.lender]
    else:
      new = Cache(*(x.astype(stored[0].dtype) for x in block.attn.keys_values(h_BTD, rope_BTH)))
      k_BSKH, v_BSKH = (
        _beside(old, x, positions_BT).astype(dtype) for old, x in zip(stored, new, strict=True)
      )
    o_BTNH = dense.attend(
      q_BTNH,
      k_BSKH,
      v_BSKH,
      dense.visible(positions_BT, slots_BS, one_BT, one_BS, window),
      scoring=_scoring(kind.cfg),
      slopes_N=_slopes(kind.cfg),
      distance_BTS=dense.distance(positions_BT, slots_BS) if cfg.alibi else None,
    )
    o_BTD = block.attn.out(o_BTNH)
    x_BTD, _ = block.add(x_BTD, h_BTD, o_BTD, input_BTP)
    return (x_BTD, _keep(kept, kind, (k_BSKH, v_BSKH))), new

  stacks = _stacks(params, cfg, _layer_inputs(params, cfg, tokens_BT, x_BTD))
  stacks = {stack: (part, cache.get(stack)) for stack, part in stacks.items()}
  kept = {kind.stack: _no_kv(cache[kind.stack].k_LBSKH.shape[1:], dtype) for kind in _lenders(cfg)}
  # Layers hand out the new keys and values alone: the cache is written once, in place, not copied layer
  # by layer through the scan.
  (x_BTD, _), new = kinds.scan_layers(cfg, layer, (x_BTD, kept), stacks)
  cache = {
    stack: Cache(*(_write(old, x, positions_BT) for old, x in zip(stored, new[stack], strict=True)))
    for stack, stored in cache.items()
  }
  return unembed(params, cfg, x_BTD), cache


def _beside(old_BSKH, new_BTKH, positions_BT) -> jax.Array:
  """One layer's past with the new tokens in it. Of one token by a choice, which fuses; a scatter does not."""
  if positions_BT.shape[1] > 1:
    return _write(old_BSKH[None], new_BTKH[None], positions_BT)[0]
  slots = jnp.arange(old_BSKH.shape[1])
  here_BS = slots[None] == positions_BT
  return jnp.where(here_BS[:, :, None, None], new_BTKH, old_BSKH)


def _write(old_LBSKH, new_LBTKH, positions_BT) -> jax.Array:
  """The cache with the new tokens in it."""
  slots = old_LBSKH.shape[2]
  rows_BT = jnp.broadcast_to(jnp.arange(len(positions_BT))[:, None], positions_BT.shape)
  write_BT = jnp.where(positions_BT < 0, slots, positions_BT)  # out of bounds, hence dropped
  return old_LBSKH.at[:, rows_BT, write_BT].set(new_LBTKH, mode="drop")


def embed(params, cfg: DecoderConfig, tokens_BT, dtype) -> jax.Array:
  """x_BTD. The scale is rounded to the compute dtype, as the published Gemma code does."""
  x_BTD = look_up(params["embed"]["table_VD"], ("vocab", "embed"), tokens_BT, dtype)
  if cfg.embed_scale != 1.0:
    x_BTD = x_BTD * jnp.asarray(cfg.embed_scale, dtype)
  if cfg.embed_norm:
    x_BTD = _bind(*_graph(layers.stream_norm, cfg), params["embed_norm"])(x_BTD)
  return mesh.constrain(x_BTD, "batch", "length", "width")


def unembed(params, cfg: DecoderConfig, x_BTD) -> jax.Array:
  """logits_BTV, float32."""
  return head_logits(last_norm(params, cfg, x_BTD), head_of(params, cfg))


def last_norm(params, cfg: DecoderConfig, x_BTD) -> jax.Array:
  """What the head reads."""
  return _bind(*_graph(layers.stream_norm, cfg), params["final_norm"])(x_BTD)


def head_of(params, cfg: DecoderConfig) -> Head:
  """The embedding's own table where they are tied."""
  if cfg.tied:
    kernel, axes = params["embed"]["table_VD"], ("vocab", "embed")
  else:
    kernel, axes = params["head"]["kernel_DV"], ("embed", "vocab")
  return Head(kernel, axes, cfg.logit_scale, cfg.final_softcap)


def is_spec(x) -> bool:
  """A leaf of a tree of specs (a NamedTuple is a tree of its own to JAX)."""
  return isinstance(x, ParamSpec)


def _specs(module: nnx.Module, stacked: int = 0) -> dict:
  """Of a module's parameters; of so many like it along a first axis."""
  specs: dict = {}
  for path, p in nnx.to_flat_state(nnx.state(module)):
    shape, axes = p.get_value().shape, p.axes
    if stacked:
      shape, axes = (stacked, *shape), ("layers", *axes)
    node = specs
    for name in path[:-1]:
      node = node.setdefault(name, {})
    node[path[-1]] = ParamSpec(shape, axes, p.std, p.mean)
  return specs


def _stacks(params, cfg, inputs_BTLP) -> dict[str, tuple]:
  """By stack, of each layer: its weights, its window, which rotary table it turns by, and its input."""
  out = {}
  for kind in kinds.kinds(cfg):
    window_L = jnp.asarray(kind.cfg.windows, jnp.int32)
    rope_kind_L = jnp.asarray(rope.layer_kinds(kind.cfg), jnp.int32)
    input_LBTP = None
    if inputs_BTLP is not None:
      input_LBTP = inputs_BTLP[:, :, np.asarray(kind.layers)].transpose(2, 0, 1, 3)
    out[kind.stack] = (params[kind.stack], window_L, rope_kind_L, input_LBTP)
  return out


def _open(kind, part, together=False):
  """The layer of one slice of `_stacks`, and the rest of the slice."""
  weights, *rest = part
  return _bind(*_graph(layers.Block, kind.cfg, together), weights), *rest


def _ropes(cfg, positions_BT, lengths_BT=None) -> dict[str, list]:
  return {k.stack: rope.tables(k.cfg, positions_BT, lengths_BT) for k in kinds.kinds(cfg)}


def _layer_inputs(params, cfg, tokens_BT, x_BTD):
  """What each layer gets of each token besides the stream, inputs_BTLP; None in most families."""
  if not cfg.layer_input_dim:
    return None
  return _bind(*_graph(layers.LayerInputs, cfg), params["layer_inputs"])(tokens_BT, x_BTD)


def attention_backends(cfg: DecoderConfig, choice: Choice, length: int, dtype) -> dict:
  """By stack, what its layers need of attention and the Backend that computes it. UserError: none can."""
  out = {}
  for kind in kinds.kinds(cfg):
    needs = attention_needs(kind.cfg, choice, length, dtype)
    out[kind.stack] = needs, choice.backend(needs)
  return out


def _attention(cfg, choice: Choice, rows: Rows, dtype) -> dict:
  """By stack, `run(q_BTNH, k_BTKH, v_BTKH, window=window)` of attention, o_BTNH."""
  slopes_N = _slopes(cfg)
  backends = attention_backends(cfg, choice, rows.segments_BT.shape[1], dtype)
  return {
    stack: functools.partial(
      attend, backend, prepared=backend.prepare(rows, needs), needs=needs, slopes_N=slopes_N
    )
    for stack, (needs, backend) in backends.items()
  }


def attention_needs(cfg: DecoderConfig, choice: Choice, length: int, dtype) -> Needs:
  """Of layers of one kind."""
  return Needs(
    choice.platform,
    jnp.dtype(dtype),
    length,
    cfg.num_heads,
    cfg.num_kv_heads,
    cfg.head_dim,
    _scoring(cfg),
    tuple(sorted(set(cfg.windows))),
    cfg.alibi,
    choice.max_segments,
    choice.capability,
    choice.row_parts(cfg.num_heads),
  )


def _scoring(cfg) -> Scoring:
  return Scoring(cfg.query_scale, cfg.attn_softcap)


def _slopes(cfg):
  return jnp.asarray(dense.alibi_slopes(cfg.num_heads), jnp.float32) if cfg.alibi else None


def _lenders(cfg) -> list:
  """The kinds whose last layer's keys and values are read by later layers."""
  lenders = {kind.lender for kind in kinds.kinds(cfg)}
  return [kind for kind in kinds.kinds(cfg) if kind.stack in lenders]


def _no_kv(shape, dtype):
  """Keys and values before the first layer that lends its own."""
  return tuple(mesh.constrain(jnp.zeros(shape, dtype), *_KV_AXES) for _ in range(2))


def _keep(kept: dict, kind, kv) -> dict:
  """`kept` with the keys and values of the latest layer of each kind that lends."""
  if kind.stack not in kept:
    return kept
  return kept | {kind.stack: tuple(mesh.constrain(a, *_KV_AXES) for a in kv)}


def _total(sums: dict[str, Routing | None]) -> Routing | None:
  """Over all layers."""
  of_stacks = [jax.tree.map(lambda s: jnp.sum(s, axis=0), of_stack) for of_stack in sums.values()]
  return functools.reduce(lambda a, b: jax.tree.map(jnp.add, a, b), of_stacks)


def _with_remat(layer, remat: str):
  assert remat in REMAT, remat
  if remat == "none":
    return layer
  policies = jax.checkpoint_policies
  policy = {
    "full": None,
    "attention_saved": is_saved,
    # Products with weights, which have no batch axes; attention's two have, and are quadratic in length.
    "dots_saved": policies.save_from_both_policies(
      policies.dots_with_no_batch_dims_saveable, is_saved
    ),
    "offload": policies.save_and_offload_only_these_names(
      names_which_can_be_saved=[],
      names_which_can_be_offloaded=[SAVED],
      offload_src="device",
      offload_dst="pinned_host",
    ),
  }[remat]
  return jax.checkpoint(layer, policy=policy, prevent_cse=False)


@functools.lru_cache
def _graph(make, *args):
  graph, state = nnx.split(make(*args))
  return graph, jax.tree.structure(state)


def _bind(graph, structure, weights: dict):
  """The module with these weights in it. Both trees sort their keys, so leaves come in one order."""
  return nnx.merge(graph, jax.tree.unflatten(structure, jax.tree.leaves(weights)))
