"""From logits to the next token: which tokens may be drawn, and with what key."""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from mlit_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Sampling:
  """How tokens are drawn. Temperature 0 is greedy; top_p 1, top_k 0 and min_p 0 leave all tokens in.

  `kind` shapes the compiled function, `values` are its arguments.
  """

  temperature: float = 0.0
  top_p: float = 1.0
  top_k: int = 0
  min_p: float = 0.0
  seed: int = 0

  def __post_init__(self):
    if not (self.temperature >= 0 and np.isfinite(self.temperature)):
      raise UserError(f"temperature is {self.temperature}; it must be 0 (greedy) or more.")
    if not 0 < self.top_p <= 1:
      raise UserError(f"top_p is {self.top_p}; it must be above 0 and at most 1 (1: all tokens).")
    if not 0 <= self.top_k < 2**31:
      raise UserError(f"top_k is {self.top_k}; it must be 0 (all tokens) or more.")
    if not 0 <= self.min_p <= 1:
      raise UserError(f"min_p is {self.min_p}; it must be at least 0 (all tokens) and at most 1.")
    if not 0 <= self.seed < 2**31:
      raise UserError(f"seed is {self.seed}; it must be at least 0 and below 2**31.")

  @property
  def kind(self) -> Kind:
    drawn = self.temperature > 0
    return Kind(
      greedy=not drawn,
      top_k=drawn and self.top_k > 0,
      top_p=drawn and self.top_p < 1,
      min_p=drawn and self.min_p > 0,
    )

  @property
  def values(self) -> Values:
    return Values(
      np.float32(self.temperature),
      np.float32(self.top_p),
      np.int32(self.top_k),
      np.float32(self.min_p),
      np.int32(self.seed),
    )


class Kind(NamedTuple):
  """Which of the filters take part."""

  greedy: bool
  top_k: bool
  top_p: bool
  min_p: bool


class Values(NamedTuple):
  temperature: jax.Array
  top_p: jax.Array
  top_k: jax.Array
  min_p: jax.Array
  seed: jax.Array


def next_token(logits_BV, number_B2, count_B, values: Values, kind: Kind) -> jax.Array:
  """token_B. A draw depends on the row's logits, its number, how many tokens it has, and the seed.

  The filters follow one another as in transformers: temperature, top_k, top_p, min_p.
  """
  if kind.greedy:
    return likeliest(logits_BV)
  logits_BV = logits_BV / values.temperature
  if kind.top_k:
    logits_BV = keep_top_k(logits_BV, values.top_k)
  if kind.top_p:
    logits_BV = keep_top_p(logits_BV, values.top_p)
  if kind.min_p:
    logits_BV = keep_min_p(logits_BV, values.min_p)
  keys_B = jax.vmap(_key, in_axes=(None, 0, 0))(values.seed, number_B2, count_B)
  return jax.vmap(jax.random.categorical)(keys_B, logits_BV).astype(jnp.int32)


def likeliest(logits_BV) -> jax.Array:
  """argmax, the first of equals: as a maximum and a minimum, 0.1 ms on CPU where jnp.argmax takes 0.9."""
  V = logits_BV.shape[-1]
  top_B1 = jnp.max(logits_BV, axis=-1, keepdims=True)
  index_BV = jnp.where(logits_BV == top_B1, jnp.arange(V, dtype=jnp.int32)[None], V - 1)
  return jnp.min(index_BV, axis=-1)


def keep_top_k(logits_BV, top_k) -> jax.Array:
  """-inf outside the top_k largest; what equals the last of them stays too."""
  return _keep_fewest(logits_BV, lambda probs_BV: jnp.sum(probs_BV > 0, axis=-1) >= top_k)


def keep_top_p(logits_BV, top_p) -> jax.Array:
  """-inf outside the fewest tokens whose probability reaches top_p; there is always one."""
  return _keep_fewest(logits_BV, lambda probs_BV: jnp.sum(probs_BV, axis=-1) >= top_p)


def keep_min_p(logits_BV, min_p) -> jax.Array:
  """-inf where the probability is below min_p times that of the likeliest token."""
  top_B1 = jnp.max(logits_BV, axis=-1, keepdims=True)
  return jnp.where(logits_BV >= top_B1 + jnp.log(min_p), logits_BV, -jnp.inf)


def words_of(number: int) -> tuple[int, int]:
  """A number of 64 bits as the two of 32 that a key is folded with."""
  return number & 0xFFFFFFFF, number >> 32 & 0xFFFFFFFF


def _key(seed, number_2, count):
  key = jax.random.fold_in(jax.random.key(seed), number_2[0])
  return jax.random.fold_in(jax.random.fold_in(key, number_2[1]), count)


def _keep_fewest(logits_BV, enough) -> jax.Array:
  """-inf outside the likeliest tokens, as few as are `enough`: a function of probabilities, 0 if left out.

  The least probability that stays is found bit by bit, from the highest on: the bits of floats that are
  not negative are in their order. On CPU 1.3 ms for [32, 6144], where a sort takes 32.
  """
  probs_BV = jax.nn.softmax(logits_BV, axis=-1)
  bits_BV = jax.lax.bitcast_convert_type(probs_BV, jnp.int32)

  def set_bit(i, least_B):
    tried_B = least_B | (jnp.int32(1) << (30 - i))
    kept_BV = jnp.where(bits_BV >= tried_B[:, None], probs_BV, 0.0)
    return jnp.where(enough(kept_BV), tried_B, least_B)

  least_B = jax.lax.fori_loop(0, 31, set_bit, jnp.zeros(len(logits_BV), jnp.int32))
  return jnp.where(bits_BV >= least_B[:, None], logits_BV, -jnp.inf)
