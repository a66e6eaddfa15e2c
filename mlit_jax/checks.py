"""What a config can get wrong beyond names and types; each check raises one UserError."""

from __future__ import annotations

import difflib

from mlit_jax import mesh as meshes
from mlit_jax.data.evalset import EvalSet
from mlit_jax.data.tokenizer import Tokenizer
from mlit_jax.errors import UserError
from mlit_jax.evals import summary
from mlit_jax.model import decoder
from mlit_jax.model.config import DecoderConfig
from mlit_jax.training.checkpoint import LOWER_IS_BETTER


def check_config(c) -> None:
  """What a config can get wrong beyond names and types."""
  if not c.workdir:
    raise UserError("workdir is empty; give --workdir DIR")
  if (c.steps > 0) == (c.epochs > 0):
    raise UserError(
      f"steps = {c.steps} and epochs = {c.epochs}: set exactly one of them to more than 0"
    )
  if not c.data.train or not c.data.mixture:
    raise UserError("data.train and data.mixture must be set, see configs/quickstart.py")
  if not c.model.path and not c.tokenizer.path:
    raise UserError("a model from scratch (model.path is empty) needs tokenizer.path")
  for key, allowed in (
    ("model.dtype", ("bfloat16", "float32")),
    ("model.remat", decoder.REMAT),
    ("data.groups", ("together", "independent")),
    ("data.bad_rows", ("error", "drop")),
  ):
    group, name = key.split(".")
    if c[group][name] not in allowed:
      raise UserError(f"{key} is {c[group][name]!r}; it must be one of {', '.join(allowed)}")
  for key in (
    "batch.rows",
    "batch.max_length",
    "batch.microbatches",
    "data.max_repeats",
    "log.every_steps",
  ):
    group, name = key.split(".")
    if c[group][name] < 1:
      raise UserError(f"{key} is {c[group][name]}; it must be at least 1")
  if c.batch.rows % c.batch.microbatches:
    raise UserError(
      f"batch.rows {c.batch.rows} is not a multiple of batch.microbatches {c.batch.microbatches}"
    )


def check_mesh(c, mesh) -> None:
  shards = meshes.batch_shards(mesh)
  if (c.batch.rows // c.batch.microbatches) % shards:
    raise UserError(
      f"batch.rows {c.batch.rows} / batch.microbatches {c.batch.microbatches} is not a multiple of the "
      f"{shards} shards of the batch (mesh.data * mesh.fsdp); change one of them"
    )


def check_best(metric: str, sets: list[EvalSet]) -> None:
  """Whether the evaluations will have the figure that `checkpoint.best` goes by."""
  known = [
    f"{s.name}/{lang}/{name}"
    for s in sets
    for lang in (*s.encoded.languages, summary.MEAN, summary.WORST)
    for name in summary.METRICS
    if s.questions or name in LOWER_IS_BETTER
  ]
  if metric and metric not in known:
    near = difflib.get_close_matches(metric, known, n=1, cutoff=0)
    raise UserError(
      f"checkpoint.best is {metric!r}, which no evaluation measures; it must be <set>/<language>/<metric>"
      + (f", such as {near[0]!r}" if near else ", and eval.sets is empty")
    )


def check_vocabulary(cfg: DecoderConfig, tokenizer: Tokenizer) -> None:
  if tokenizer.vocab_size > cfg.vocab_size:
    raise UserError(
      f"the tokenizer has {tokenizer.vocab_size} tokens, the model {cfg.vocab_size} rows. "
      "Set tokenizer.path to the tokenizer this model was trained with."
    )
