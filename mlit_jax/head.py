"""Head: how hidden states become logits; the model hands it to whoever needs the logits, or only their loss."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from mlit_jax import mesh

_STATIC = dict(static=True)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Head:
  """logits = softcap * tanh(scale * x @ kernel / softcap), or without the cap where that is None.

  kernel is a parameter as it lies on the mesh, not yet cast: the table (vocab, embed) where it is tied to
  the embedding, else (embed, vocab).
  """

  kernel: jax.Array
  axes: tuple[str, str] = dataclasses.field(metadata=_STATIC)
  scale: float = dataclasses.field(default=1.0, metadata=_STATIC)
  softcap: float | None = dataclasses.field(default=None, metadata=_STATIC)


def head_logits(x_BTD, head: Head) -> jax.Array:
  """logits_BTV, float32."""
  kernel = mesh.gather(head.kernel.astype(x_BTD.dtype), head.axes)
  x_ND = x_BTD.reshape(-1, x_BTD.shape[-1])  # on CPU twice as fast as a product of three axes
  logits_NV = scale_and_cap(multiply(x_ND, kernel, head.axes), head.scale, head.softcap)
  logits_BTV = logits_NV.reshape(*x_BTD.shape[:-1], -1)
  return mesh.constrain(logits_BTV, "batch", "length", "vocab")


def multiply(x_ND, kernel, axes: tuple[str, str]) -> jax.Array:
  """x @ kernel, float32 whatever they are."""
  kernel_DV = kernel if axes == ("embed", "vocab") else kernel.T
  return jnp.matmul(x_ND, kernel_DV, preferred_element_type=jnp.float32)


def scale_and_cap(logits, scale: float, softcap: float | None) -> jax.Array:
  """What becomes of the products."""
  if scale != 1.0:
    logits = logits * scale
  return logits if softcap is None else softcap * jnp.tanh(logits / softcap)
