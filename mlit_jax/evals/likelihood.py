"""How likely a model finds answers: sums per example, means taken once."""

import math
from collections.abc import Callable, Iterable

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from mlit_jax import mesh as meshes
from mlit_jax.attention.choice import Choice
from mlit_jax.batch import Batch
from mlit_jax.evals.rows import place
from mlit_jax.evals.statistics import Figure, ratio_figure
from mlit_jax.model import decoder
from mlit_jax.model.config import DecoderConfig
from mlit_jax.training.head_loss import head_scores, usual_chunk


def score(params, score_step: Callable, batches: Iterable, examples: Iterable[int]) -> dict:
  """{example index: (nll, tokens)}, each sum over the example's trained tokens, as score_step gives them.

  batches: pairs (Batch of numpy arrays, example_index_BS); column s of the index is the example
  that stands in segment s + 1 of the row, -1 where there is none. Every process passes the same.
  examples: the indices that must come out; one missing or scored twice is a fault of the batches.
  """
  scores: dict[int, tuple[float, ...]] = {}
  pending = []  # one batch runs while the sums of the one before are read
  for batch, example_index_BS in batches:
    _check_segments(batch, example_index_BS)
    pending.append((example_index_BS, score_step(params, batch)))
    if len(pending) > 1:
      _collect(*pending.pop(0), scores)
  for done in pending:
    _collect(*done, scores)
  differing = sorted(set(examples) ^ scores.keys())
  assert not differing, f"scored and wanted examples differ: {differing[:10]}"
  return scores


def make_score_step(
  cfg: DecoderConfig, mesh: Mesh, num_segments: int, dtype=jnp.bfloat16, *, misses: bool = False
) -> Callable:
  """score_step(params, batch) -> nll_BS, tokens_BS: float32 sums of segments 1..num_segments.

  With `misses` a third one: how many of the tokens are not the likeliest. batch holds numpy arrays, the same on every process; both results are on every process.
  """
  by_row = NamedSharding(mesh, meshes.BATCH_SPEC)
  replicated = NamedSharding(mesh, P())
  shards, chunk = meshes.batch_shards(mesh), usual_chunk(meshes.platform(mesh))
  attention = Choice.on(mesh, max_segments=num_segments)

  def sums(params, batch: Batch, rows: int):
    x_BTD, head, _ = decoder.hidden(
      params,
      cfg,
      batch.tokens,
      batch.positions,
      batch.segments,
      dtype=dtype,
      attention=attention,
    )
    nll_BT, best_BT = head_scores(
      x_BTD, head, batch.targets, batch.weights, chunk=chunk, best=misses
    )
    mine_BTS = batch.segments[:, :, None] == jnp.arange(1, num_segments + 1)[None, None, :]
    columns = [nll_BT * batch.weights, batch.weights]
    if misses:
      columns.append(jnp.where(best_BT != batch.targets, batch.weights, 0.0))
    return tuple(
      jnp.sum(jnp.where(mine_BTS, x_BT[:, :, None], 0.0), axis=1)[:rows] for x_BT in columns
    )

  compiled = jax.jit(sums, static_argnames="rows", out_shardings=replicated)

  def score_step(params, batch: Batch):
    rows = batch.tokens.shape[0]
    batch = jax.tree.map(
      lambda x_BT: place(_pad_rows(x_BT, shards, mesh.shape["context"]), by_row), batch
    )
    with jax.set_mesh(mesh):
      return compiled(params, batch, rows=rows)

  return score_step


def loss_figure(nll, tokens, *, seed: int = 0) -> Figure:
  """Nats per trained token over examples: sum of nll / sum of tokens."""
  return ratio_figure(nll, tokens, seed=seed)


def bits_per_byte_figure(nll, num_bytes, *, seed: int = 0) -> Figure:
  """Bits per UTF-8 byte of the trained text: comparable between tokenizers, within a language."""
  return ratio_figure(nll, num_bytes, seed=seed, scale=1 / math.log(2))


def _check_segments(batch: Batch, example_index_BS) -> None:
  """A segment beyond the columns would be lost without a word."""
  num_segments = example_index_BS.shape[1]
  assert batch.segments.max(initial=0) <= num_segments, (batch.segments.max(), num_segments)


def _collect(example_index_BS, sums, scores) -> None:
  sums = jax.device_get(sums)
  assert sums[0].shape == example_index_BS.shape, (sums[0].shape, example_index_BS.shape)
  for row, segment in np.argwhere(example_index_BS >= 0):
    example = int(example_index_BS[row, segment])
    assert example not in scores, f"example {example} was scored twice"
    scores[example] = tuple(float(sum_BS[row, segment]) for sum_BS in sums)


def _pad_rows(x_BT, shards: int, context: int):
  """Rows and columns of zeros (segment 0, weight 0) up to what the mesh divides."""
  return np.pad(x_BT, ((0, -x_BT.shape[0] % shards), (0, -x_BT.shape[1] % context)))
