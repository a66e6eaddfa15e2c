"""The rows of a key/value cache on the device: filled, advanced token by token, moved to another size."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from mlit_jax import mesh as meshes
from mlit_jax.evals.sampling import next_token
from mlit_jax.model import decoder
from mlit_jax.model.config import DecoderConfig

# What a row said in a step, besides tokens: nothing, as it had ended; or a stop token.
NOTHING, STOP = -1, -2
MOST_STEPS = 32  # between two looks of the host


class Programs:
  """The compiled programs, each once for a shape; all run within `jax.set_mesh`.

  A cache is a pytree of arrays [layers, rows, slots, ...].
  """

  def __init__(self, cfg: DecoderConfig, mesh: Mesh, dtype):
    self.cfg, self.mesh, self.dtype = cfg, mesh, dtype
    self.empty = jax.jit(self._empty, static_argnums=(0, 1))
    self.prefill = jax.jit(self._prefill)
    self.insert = jax.jit(self._insert, donate_argnums=0)
    self.resize = jax.jit(self._resize, static_argnums=2)
    self.advance = jax.jit(
      self._advance,
      static_argnames="kind",
      donate_argnums=1,
      out_shardings=(NamedSharding(mesh, P()), None),
    )
    self._cast_all = jax.jit(_cast_matrices, static_argnums=1)

  def cast(self, params):
    """Weights in the compute dtype, once for all tokens; norms and routers stay float32."""
    kept = jax.eval_shape(lambda p: p, params)
    if jax.eval_shape(lambda p: _cast_matrices(p, self.dtype), params) == kept:
      return params
    return self._cast_all(params, self.dtype)

  def by_row(self, x: np.ndarray) -> jax.Array:
    shards = meshes.batch_shards(self.mesh)
    first = meshes.RULES["batch"] if len(x) % shards == 0 else None
    return place(x, NamedSharding(self.mesh, P(first, *(None,) * (x.ndim - 1))))

  def everywhere(self, x) -> jax.Array:
    return place(np.asarray(x), NamedSharding(self.mesh, P()))

  def _empty(self, rows: int, slots: int):
    return self._kept(decoder.init_cache(self.cfg, rows, slots, self.dtype))

  def _prefill(self, params, tokens_PT, length_P):
    """A cache of T slots with all of each prompt but its last token, which the first step takes.

    So the logits of the prompt are never computed: [P, T, V] would be the largest array by far.
    """
    cache = self._empty(*tokens_PT.shape)
    place_T = jnp.arange(tokens_PT.shape[1], dtype=jnp.int32)[None, :]
    positions_PT = jnp.where(place_T < length_P[:, None] - 1, place_T, -1)
    _, cache = decoder.apply_cached(
      params, self.cfg, tokens_PT, positions_PT, cache, dtype=self.dtype
    )
    return self._kept(cache)

  def _insert(self, cache, new, row_P):
    """The cache with new rows in it; a row beyond the last is dropped. Slots beyond may hold anything."""

    def put(old, new):
      slots = min(old.shape[2], new.shape[2])
      return old.at[:, row_P, :slots].set(new[:, :, :slots], mode="drop")

    return self._kept(jax.tree.map(put, cache, new))

  def _resize(self, cache, row_B, slots: int):
    """Rows of the cache, in this order, with more slots or fewer."""

    def move(x):
      x = x[:, row_B, :slots]
      return jnp.pad(x, [(0, slots - x.shape[2] if axis == 2 else 0) for axis in range(x.ndim)])

    return self._kept(jax.tree.map(move, cache))

  def _advance(self, params, cache, rows_B6, steps_wake, stop_ids, values, *, kind):
    """(said_MB, cache): up to `steps` tokens of each row, until `wake` rows have ended.

    rows_B6: the last token, its position, tokens said so far, tokens still allowed, the number's words.
    """
    token_B, position_B, count_B, left_B = rows_B6[:, :4].T
    number_B2 = jax.lax.bitcast_convert_type(rows_B6[:, 4:], jnp.uint32)
    steps, wake = steps_wake

    def unfinished(state):
      step, _, left_B, _, _ = state
      return (step < steps) & (jnp.sum(left_B <= 0) < wake)

    def advance(state):
      step, token_B, left_B, said_MB, cache = state
      live_B = left_B > 0
      position_B1 = jnp.where(live_B, position_B + step, -1)[:, None]
      logits_B1V, cache = decoder.apply_cached(
        params, self.cfg, token_B[:, None], position_B1, cache, dtype=self.dtype
      )
      token_B = next_token(logits_B1V[:, 0], number_B2, count_B + step, values, kind)
      stops_B = jnp.any(token_B[:, None] == stop_ids[None, :], axis=1)
      said_B = jnp.where(live_B, jnp.where(stops_B, STOP, token_B), NOTHING)
      said_MB = jax.lax.dynamic_update_slice(said_MB, said_B[None], (step, 0))
      left_B = jnp.where(stops_B, 0, left_B - 1)
      return step + 1, token_B, left_B, said_MB, self._kept(cache)

    said_MB = jnp.full((MOST_STEPS, len(rows_B6)), NOTHING, jnp.int32)
    state = (jnp.int32(0), token_B, left_B, said_MB, cache)
    _, _, _, said_MB, cache = jax.lax.while_loop(unfinished, advance, state)
    return said_MB, cache

  def _kept(self, cache):
    """On the mesh as the rules say."""

    def keep(x):
      inner = ("kv_heads", "head_dim") if x.ndim == 5 else ("width",) * (x.ndim - 3)
      return meshes.constrain(x, "layers", "batch", "slots", *inner)

    return jax.tree.map(keep, cache)


def place(x: np.ndarray, sharding) -> jax.Array:
  """Put on the mesh what every process holds whole; meant, so the guard of training allows it."""
  with jax.transfer_guard_host_to_device("allow"):
    return jax.make_array_from_callback(x.shape, sharding, lambda index: x[index])


def _cast_matrices(params, dtype):
  def cast(path, x):
    kept = path[-1].key.startswith(("scale_", "bias_", "router_"))
    return x if kept else x.astype(dtype)

  return jax.tree.map_with_path(cast, params)
