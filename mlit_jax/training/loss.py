"""The loss as sums per language; whoever reports it divides once."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from mlit_jax.batch import Batch
from mlit_jax.head import Head, head_logits
from mlit_jax.routing import Routing
from mlit_jax.training.head_loss import PLAIN, head_loss


class Sums(NamedTuple):
  """What a batch adds up to, per language [languages]; adds over microbatches, steps and hosts."""

  nll: jax.Array  # float32, negative log likelihood of trained tokens, in nats
  trained: jax.Array  # int32, trained tokens
  tokens: jax.Array  # int32, tokens
  examples: jax.Array  # int32, examples that begin
  routing: Routing | None = None  # of a model with experts; not per language


def batch_loss(
  forward: Callable, params, batch: Batch, num_languages: int, *, chunk: int, z_loss: float = 0.0
) -> tuple[jax.Array, Sums]:
  """What is to be made small, summed over the trained tokens of a batch, and the Sums; in those nll is without z.

  `forward(params, tokens, positions, segments)` gives x_BTD, the Head that makes logits of it, and the
  Routing or None. chunk, z_loss: see head_loss; a chunk of PLAIN is plain_loss.
  """
  loss, nll_BT, routing = _token_losses(forward, params, batch, chunk, z_loss)
  live_BT = batch.segments > 0

  def per_language(values_BT):
    return jax.ops.segment_sum(values_BT.reshape(-1), batch.language.reshape(-1), num_languages)

  sums = Sums(
    nll=per_language(nll_BT * batch.weights),
    trained=per_language((batch.weights > 0).astype(jnp.int32)),
    tokens=per_language(live_BT.astype(jnp.int32)),
    examples=per_language((live_BT & (batch.positions == 0)).astype(jnp.int32)),
    routing=routing,
  )
  return loss, sums


def row_losses(
  forward: Callable, params, batch: Batch, *, chunk: int
) -> tuple[jax.Array, jax.Array]:
  """nll_B in nats, float32, and trained_B, int32: what each row adds to the Sums."""
  _, nll_BT, _ = _token_losses(forward, params, batch, chunk)
  trained_BT = (batch.weights > 0).astype(jnp.int32)
  return jnp.sum(nll_BT * batch.weights, axis=1), jnp.sum(trained_BT, axis=1)


def _token_losses(forward, params, batch: Batch, chunk: int, z_loss: float = 0.0):
  x_BTD, head, routing = forward(params, batch.tokens, batch.positions, batch.segments)
  loss_of = plain_loss if chunk == PLAIN else functools.partial(head_loss, chunk=chunk)
  loss, nll_BT = loss_of(x_BTD, head, batch.targets, batch.weights, z_loss=z_loss)
  return loss, nll_BT, routing


def plain_loss(x_BTD, head: Head, targets_BT, weights_BT, *, z_loss: float = 0.0):
  """As head_loss, from all logits at once: what that is measured by."""
  logits_BTV = head_logits(x_BTD, head)
  nll_BT = token_nll(logits_BTV, targets_BT)
  loss_BT = nll_BT
  if z_loss:
    loss_BT += z_loss * jnp.square(jax.nn.logsumexp(logits_BTV, axis=-1))
  return jnp.sum(loss_BT * weights_BT), nll_BT


def token_nll(logits_BTV, targets_BT) -> jax.Array:
  """-log p(target), nll_BT, float32, in nats.

  A masked sum picks the target: a gather would fetch a vocabulary that is sharded, and its gradient
  would be a scatter into all of it.
  """
  logits_BTV = logits_BTV.astype(jnp.float32)
  vocab_V = jnp.arange(logits_BTV.shape[-1], dtype=targets_BT.dtype)
  gold_BTV = jnp.where(vocab_V[None, None] == targets_BT[:, :, None], logits_BTV, 0.0)
  return jax.nn.logsumexp(logits_BTV, axis=-1) - jnp.sum(gold_BTV, axis=-1)
