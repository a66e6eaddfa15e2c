"""The loss as sums per language; whoever reports it divides once."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from mlit_jax.batch import Batch
from mlit_jax.routing import Routing


class Sums(NamedTuple):
  """What a batch adds up to, per language [languages]; adds over microbatches, steps and hosts."""

  nll: jax.Array  # float32, negative log likelihood of trained tokens, in nats
  trained: jax.Array  # int32, trained tokens
  tokens: jax.Array  # int32, tokens
  examples: jax.Array  # int32, examples that begin
  routing: Routing | None = None  # of a model with experts; not per language


def batch_sums(
  apply: Callable, params, batch: Batch, num_languages: int, *, routed: bool = False
) -> Sums:
  """Sums of one batch.

  `apply(params, tokens, positions, segments)` gives float32 logits_BTV, or if `routed` those and Routing.
  """
  out = apply(params, batch.tokens, batch.positions, batch.segments)
  logits_BTV, routing = out if routed else (out, None)
  nll_BT = token_nll(logits_BTV, batch.targets)
  live_BT = batch.segments > 0

  def per_language(values_BT):
    return jax.ops.segment_sum(values_BT.reshape(-1), batch.language.reshape(-1), num_languages)

  return Sums(
    nll=per_language(nll_BT * batch.weights),
    trained=per_language((batch.weights > 0).astype(jnp.int32)),
    tokens=per_language(live_BT.astype(jnp.int32)),
    examples=per_language((live_BT & (batch.positions == 0)).astype(jnp.int32)),
    routing=routing,
  )


def token_nll(logits_BTV, targets_BT) -> jax.Array:
  """-log p(target), nll_BT, float32, in nats.

  A masked sum picks the target: a gather would fetch a vocabulary that is sharded, and its gradient
  would be a scatter into all of it.
  """
  logits_BTV = logits_BTV.astype(jnp.float32)
  vocab_V = jnp.arange(logits_BTV.shape[-1], dtype=targets_BT.dtype)
  gold_BTV = jnp.where(vocab_V[None, None] == targets_BT[:, :, None], logits_BTV, 0.0)
  return jax.nn.logsumexp(logits_BTV, axis=-1) - jnp.sum(gold_BTV, axis=-1)
