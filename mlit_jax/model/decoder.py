"""The decoder: parameters as nested dicts with stacked layers, and its two forward passes."""

from __future__ import annotations

import functools
import math
import zlib
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from mlit_jax import mesh
from mlit_jax.model import attention, layers, rope
from mlit_jax.model.config import DecoderConfig
from mlit_jax.routing import Routing, routing_sums

REMAT = ("none", "attention_saved", "full")


class ParamSpec(NamedTuple):
  """What a parameter is before it exists; a leaf (see is_spec)."""

  shape: tuple[int, ...]
  axes: tuple[str, ...]
  std: float
  mean: float


class Cache(NamedTuple):
  """Keys and values of past tokens, [L, B, S, K, H]; slot s holds position s."""

  k_LBSKH: jax.Array
  v_LBSKH: jax.Array


def param_specs(cfg: DecoderConfig) -> dict:
  """Nested dict of ParamSpec, in the layout of the parameters."""
  specs: dict = {}
  for path, p in nnx.to_flat_state(nnx.state(layers.Decoder(cfg))):
    shape, axes = p.get_value().shape, p.axes
    if path[0] == "blocks":
      shape, axes = (cfg.num_layers, *shape), ("layers", *axes)
    node = specs
    for name in path[:-1]:
      node = node.setdefault(name, {})
    node[path[-1]] = ParamSpec(shape, axes, p.std, p.mean)
  return specs


def param_shapes(cfg: DecoderConfig) -> dict:
  """Nested dict of jax.ShapeDtypeStruct, float32."""
  return jax.tree.map(
    lambda s: jax.ShapeDtypeStruct(s.shape, jnp.float32), param_specs(cfg), is_leaf=is_spec
  )


def init_params(cfg: DecoderConfig, key: jax.Array) -> dict:
  """Fresh float32 parameters; each one's key depends on its path alone."""

  def init(path, s):
    name = "/".join(k.key for k in path)
    if s.std == 0:
      return jnp.full(s.shape, s.mean, jnp.float32)
    leaf_key = jax.random.fold_in(key, zlib.crc32(name.encode()))
    return s.mean + s.std * jax.random.normal(leaf_key, s.shape, jnp.float32)

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
) -> jax.Array:
  """logits_BTV, float32, of packed rows."""
  arrays = (tokens_BT, positions_BT, segments_BT)
  return apply_routed(params, cfg, *arrays, dtype=dtype, remat=remat)[0]


def apply_routed(
  params,
  cfg: DecoderConfig,
  tokens_BT,
  positions_BT,
  segments_BT,
  *,
  dtype=jnp.float32,
  remat="none",
) -> tuple[jax.Array, Routing | None]:
  """As apply; and where there are experts, the Routing of all tokens but padding."""
  x_BTD = embed(params, cfg, tokens_BT, dtype)
  ropes = rope.tables(cfg, positions_BT, rope.lengths(cfg, positions_BT, segments_BT))
  growth_BT = rope.query_growth(cfg, positions_BT)
  graph, structure = _block_graph(cfg)

  def layer(x_BTD, scanned):
    weights, window, kind = scanned
    block = _bind(graph, structure, weights)
    h_BTD = block.read(x_BTD)
    q_BTNH, k_BTKH, v_BTKH = block.attn.qkv(h_BTD, rope.pick(ropes, kind), growth_BT)
    mask_BTT = attention.visible(positions_BT, positions_BT, segments_BT, segments_BT, window)
    distance_BTT = attention.distance(positions_BT, positions_BT) if cfg.alibi else None
    o_BTD = block.attn(q_BTNH, k_BTKH, v_BTKH, mask_BTT, distance_BTT)
    x_BTD, routed = block.add(x_BTD, h_BTD, o_BTD)
    sums = routing_sums(*routed, segments_BT > 0) if routed else None
    return mesh.constrain(x_BTD, "batch", "length", "width"), sums

  x_BTD, sums = jax.lax.scan(_with_remat(layer, remat), x_BTD, (params["blocks"], *_kinds(cfg)))
  return unembed(params, cfg, x_BTD), jax.tree.map(lambda s: jnp.sum(s, axis=0), sums)


def init_cache(cfg: DecoderConfig, rows: int, slots: int, dtype=jnp.float32) -> Cache:
  """An empty cache for sequences of up to `slots` tokens."""
  shape = (cfg.num_layers, rows, slots, cfg.num_kv_heads, cfg.head_dim)
  return Cache(jnp.zeros(shape, dtype), jnp.zeros(shape, dtype))


def apply_cached(
  params, cfg: DecoderConfig, tokens_BT, positions_BT, cache: Cache, *, dtype=jnp.float32
) -> tuple[jax.Array, Cache]:
  """logits_BTV of new tokens at `positions_BT`, and the cache with them in it.

  Position -1 is padding: it is not written, and its logits mean nothing. A token at position p sees
  the slots up to p, so slots beyond a row's last token may hold anything.
  """
  B, T = tokens_BT.shape
  slots = cache.k_LBSKH.shape[2]
  rope.check_slots(cfg, slots)
  x_BTD = embed(params, cfg, tokens_BT, dtype)
  seen_BT = jnp.maximum(positions_BT, 0)
  ropes, growth_BT = rope.tables(cfg, seen_BT), rope.query_growth(cfg, seen_BT)
  graph, structure = _block_graph(cfg)
  slots_BS = jnp.broadcast_to(jnp.arange(slots)[None], (B, slots))
  one_BT, one_BS = jnp.ones((B, T), jnp.int32), jnp.ones((B, slots), jnp.int32)

  def layer(x_BTD, scanned):
    weights, window, kind, k_BSKH, v_BSKH = scanned
    block = _bind(graph, structure, weights)
    h_BTD = block.read(x_BTD)
    q_BTNH, k_BTKH, v_BTKH = block.attn.qkv(h_BTD, rope.pick(ropes, kind), growth_BT)
    new = k_BTKH.astype(k_BSKH.dtype), v_BTKH.astype(v_BSKH.dtype)
    k_BSKH = _beside(k_BSKH, new[0], positions_BT).astype(dtype)
    v_BSKH = _beside(v_BSKH, new[1], positions_BT).astype(dtype)
    mask_BTS = attention.visible(positions_BT, slots_BS, one_BT, one_BS, window)
    distance_BTS = attention.distance(positions_BT, slots_BS) if cfg.alibi else None
    o_BTD = block.attn(q_BTNH, k_BSKH, v_BSKH, mask_BTS, distance_BTS)
    return block.add(x_BTD, h_BTD, o_BTD)[0], new

  # Layers hand out the new keys and values alone: the cache is written once, in place, not copied layer
  # by layer through the scan.
  x_BTD, new = jax.lax.scan(
    layer, x_BTD, (params["blocks"], *_kinds(cfg), cache.k_LBSKH, cache.v_LBSKH)
  )
  cache = Cache(*(_write(old, x, positions_BT) for old, x in zip(cache, new, strict=True)))
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
  table_VD = mesh.gather(params["embed"]["table_VD"].astype(dtype), ("vocab", "embed"))
  x_BTD = table_VD[tokens_BT]
  if cfg.embed_scale != 1.0:
    x_BTD = x_BTD * jnp.asarray(cfg.embed_scale, dtype)
  if cfg.embed_norm:
    x_BTD = _bind(*_norm_graph(cfg), params["embed_norm"])(x_BTD)
  return mesh.constrain(x_BTD, "batch", "length", "width")


def unembed(params, cfg: DecoderConfig, x_BTD) -> jax.Array:
  """logits_BTV, float32."""
  final_norm = _bind(*_norm_graph(cfg), params["final_norm"])
  x_BTD = final_norm(x_BTD)
  if cfg.tied:
    table_VD = mesh.gather(params["embed"]["table_VD"].astype(x_BTD.dtype), ("vocab", "embed"))
    logits_BTV = layers.matmul(x_BTD, table_VD.T, preferred_element_type=jnp.float32)
  else:
    kernel_DV = mesh.gather(params["head"]["kernel_DV"].astype(x_BTD.dtype), ("embed", "vocab"))
    logits_BTV = layers.matmul(x_BTD, kernel_DV, preferred_element_type=jnp.float32)
  if cfg.logit_scale != 1.0:
    logits_BTV = logits_BTV * cfg.logit_scale
  if cfg.final_softcap is not None:
    logits_BTV = cfg.final_softcap * jnp.tanh(logits_BTV / cfg.final_softcap)
  return mesh.constrain(logits_BTV, "batch", "length", "vocab")


def is_spec(x) -> bool:
  """A leaf of a tree of specs (a NamedTuple is a tree of its own to JAX)."""
  return isinstance(x, ParamSpec)


def _kinds(cfg):
  """Per layer: its window, and which rotary table it turns by."""
  return jnp.asarray(cfg.windows, jnp.int32), jnp.asarray(rope.layer_kinds(cfg), jnp.int32)


def _with_remat(layer, remat: str):
  assert remat in REMAT, remat
  if remat == "none":
    return layer
  save = jax.checkpoint_policies.save_only_these_names("attn_out")
  return jax.checkpoint(layer, policy=None if remat == "full" else save, prevent_cse=False)


@functools.lru_cache
def _block_graph(cfg):
  graph, state = nnx.split(layers.Block(cfg))
  return graph, jax.tree.structure(state)


@functools.lru_cache
def _norm_graph(cfg):
  graph, state = nnx.split(layers.stream_norm(cfg))
  return graph, jax.tree.structure(state)


def _bind(graph, structure, weights: dict):
  """The module with these weights in it. Both trees sort their keys, so leaves come in one order."""
  return nnx.merge(graph, jax.tree.unflatten(structure, jax.tree.leaves(weights)))
