"""Batch: the contract between data and model."""

from __future__ import annotations

import dataclasses

import jax
import numpy as np

Array = jax.Array | np.ndarray


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Batch:
  """Rows of packed examples; every field is [B, T] (rows, positions).

  tokens     int32    the input
  targets    int32    the next token of the same segment, 0 where there is none
  weights    float32  1 where the target is trained on, else 0
  positions  int32    place of the token in its segment, from 0
  segments   int32    which example of the row, from 1; 0 is padding
  language   int32    id of the token's language, or of its language and source, so that any metric can
                      be split by it
  """

  tokens: Array
  targets: Array
  weights: Array
  positions: Array
  segments: Array
  language: Array


def check_batch(batch: Batch, rows: int, max_length: int) -> None:
  """Assert the shapes and dtypes where a batch enters the device; a wrong one is a fault of ours."""
  for field in dataclasses.fields(batch):
    value = getattr(batch, field.name)
    want = np.float32 if field.name == "weights" else np.int32
    assert value.shape == (rows, max_length), (field.name, value.shape, (rows, max_length))
    assert value.dtype == want, (field.name, value.dtype)


def empty_batch(rows: int, max_length: int) -> Batch:
  """A batch of padding, to be filled."""
  zeros = {f.name: np.zeros((rows, max_length), np.int32) for f in dataclasses.fields(Batch)}
  return Batch(**zeros | {"weights": np.zeros((rows, max_length), np.float32)})
