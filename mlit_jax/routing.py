"""Routing: what the experts of a model tell its training, as sums over tokens."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp


class Routing(NamedTuple):
  """Sums over tokens and layers; adds over microbatches, steps and hosts."""

  chosen_E: jax.Array  # int32, how often an expert was among a token's k
  probs_E: jax.Array  # float32, the router's probabilities of it
  tokens: jax.Array  # int32, tokens, counted once in every layer


def routing_sums(probs_BTE, choice_BTC, live_BT) -> Routing:
  """Routing of one layer, over the tokens that are live (no padding)."""
  experts_E = jnp.arange(probs_BTE.shape[-1], dtype=choice_BTC.dtype)
  hit_BTCE = choice_BTC[..., None] == experts_E[None, None, None]
  hit_BTCE &= live_BT[:, :, None, None]
  return Routing(
    jnp.sum(hit_BTCE, axis=(0, 1, 2), dtype=jnp.int32),
    jnp.sum(jnp.where(live_BT[..., None], probs_BTE, 0.0), axis=(0, 1)),
    jnp.sum(live_BT, dtype=jnp.int32),
  )


def balance_loss(routing: Routing):
  """E * sum over experts of (share of the choices' tokens) * (mean probability); k if all are alike.

  Switch Transformer (Fedus et al. 2021, eq. 4-6) with k choices and all layers in one sum, as
  load_balancing_loss_func of transformers. Of whatever was summed: the figure of a batch is the same
  however it was cut into microbatches and devices. Its gradient goes through the probabilities alone.
  """
  tokens = routing.tokens + (routing.tokens == 0)  # a batch of padding is balanced
  share_E, mean_E = routing.chosen_E / tokens, routing.probs_E / tokens
  return len(routing.chosen_E) * (share_E * mean_E).sum()
