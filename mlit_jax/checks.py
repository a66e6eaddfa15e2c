"""What a config can get wrong beyond names and types; each check raises one UserError."""

from __future__ import annotations

import collections
import difflib
import json
import math
import os
import re
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from mlit_jax import mesh as meshes
from mlit_jax.attention import choice as attention
from mlit_jax.config import flatten, nested
from mlit_jax.data.choice import GROUPS
from mlit_jax.data.encoded import Encoded
from mlit_jax.data.evalset import EvalSet
from mlit_jax.data.tokenizer import Tokenizer
from mlit_jax.errors import UserError
from mlit_jax.evals import summary
from mlit_jax.evals.suites.suite import Suite, metric_names
from mlit_jax.metrics import LOWER_IS_BETTER, MEAN, WORST
from mlit_jax.model import decoder
from mlit_jax.model.config import DecoderConfig, media_tokens, text_config
from mlit_jax.training import moments, optimizer, watch
from mlit_jax.training.profile import parse_steps
from mlit_jax.training.trackers import check_trackers

ANY = math.inf
# Key -> (least, below): what a number may be.
RANGES = {
  "seed": (0, 2**31),
  "steps": (0, ANY),
  "epochs": (0, ANY),
  "model.loss_chunk": (-1, ANY),
  "data.seed": (-1, 2**31),
  "data.max_repeats": (1, ANY),
  "data.workers": (0, ANY),
  "batch.rows": (1, ANY),
  "batch.max_length": (1, ANY),
  "batch.microbatches": (1, ANY),
  "optimizer.learning_rate": (0, ANY),
  "optimizer.final_learning_rate": (0, ANY),
  "optimizer.warmup_steps": (0, ANY),
  "optimizer.weight_decay": (0, ANY),
  "optimizer.b1": (0, 1),
  "optimizer.b2": (0, 1),
  "optimizer.gradient_clip_norm": (0, ANY),
  "optimizer.z_loss": (0, ANY),
  "optimizer.max_skipped": (0, ANY),
  "eval.every_steps": (0, ANY),
  "eval.generate_rows": (0, ANY),
  "eval.patience": (0, ANY),
  "eval.max_seconds": (0, ANY),
  "eval.suite_items": (0, ANY),
  "eval.max_new_tokens": (1, ANY),
  "eval.temperature": (0, ANY),
  "checkpoint.every_steps": (0, ANY),
  "checkpoint.keep_latest": (1, ANY),
  "checkpoint.keep_best": (0, ANY),
  "watchdog.step_seconds": (0, ANY),
  "watchdog.other_seconds": (0, ANY),
  "watchdog.peer_seconds": (0, ANY),
  "log.every_steps": (1, ANY),
  "log.spikes": (0, ANY),
  "log.peak_tflops": (0, ANY),
  "debug.recheck_every": (-1, ANY),
}


def check_config(c) -> None:
  """What a config can get wrong beyond names and types."""
  try:
    json.dumps(nested(c))
  except TypeError as e:
    raise UserError(
      f"the config cannot be kept as JSON ({e}). Use plain values: str(path) for a Path."
    ) from e
  if not c.workdir:
    raise UserError("workdir is empty; give --workdir DIR")
  values = flatten(c)
  for key, (least, below) in RANGES.items():
    if not least <= values[key] < below:
      raise UserError(
        f"{key} is {values[key]}; it must be at least {least}"
        + (f" and below {below}" if below < ANY else "")
      )
  parse_steps(c.profile.steps)
  if not 0 < c.eval.top_p <= 1:
    raise UserError(f"eval.top_p is {c.eval.top_p}; it must be above 0 and at most 1")
  if not 0 < c.optimizer.eps < ANY:
    raise UserError(f"optimizer.eps is {c.optimizer.eps}; it must be above 0, such as 1e-8")
  if isinstance(c.data.mixture, Mapping) and (c.steps > 0) == (c.epochs > 0):
    raise UserError(
      f"steps = {c.steps} and epochs = {c.epochs}: set exactly one of them to more than 0"
    )
  if not c.data.train or not c.data.mixture:
    raise UserError("data.train and data.mixture must be set, see configs/quickstart.py")
  if c.model.path and c.model.sizes:
    raise UserError(
      f"model.path is {c.model.path!r} and model.sizes is {dict(c.model.sizes)!r}, but a model has either a base or "
      "sizes: set model.sizes = {} to tune that model, or model.path = '' for a new one"
    )
  if not c.model.path and not c.tokenizer.path:
    raise UserError("a model from scratch (model.path is empty) needs tokenizer.path")
  for key, allowed in (
    ("model.dtype", ("bfloat16", "float32")),
    ("model.param_dtype", ("float32", "bfloat16")),
    ("model.remat", decoder.REMAT),
    ("model.attention", attention.NAMES),
    ("batch.accumulation_dtype", ("float32", "bfloat16")),
    ("optimizer.name", optimizer.NAMES),
    ("optimizer.schedule", optimizer.SCHEDULES),
    ("optimizer.moments", moments.FORMATS),
    ("optimizer.nonfinite", watch.POLICIES),
    ("data.groups", GROUPS),
    ("data.bad_rows", ("error", "drop")),
  ):
    if values[key] not in allowed:
      raise UserError(f"{key} is {values[key]!r}; it must be one of {', '.join(allowed)}")
  if c.optimizer.name == "adafactor" and c.optimizer.moments != "float32":
    raise UserError(
      f"optimizer.moments is {c.optimizer.moments!r}, but adafactor keeps sums of rows and columns, in float32; leave "
      "optimizer.moments at 'float32', or use optimizer.name = 'adamw'"
    )
  if c.steps:  # with epochs the rows say how many there are
    optimizer.check_warmup(c.optimizer.warmup_steps, c.steps)
  check_trackers(c.log.trackers)
  if c.eval.patience and not (c.eval.every_steps and (c.eval.sets or c.eval.suites)):
    raise UserError(
      f"eval.patience is {c.eval.patience}, but nothing is evaluated on the way; set eval.sets (or eval.suites) and "
      "eval.every_steps, or eval.patience = 0"
    )
  for name in c.eval.sets:
    if not isinstance(name, str) or not re.fullmatch(r"\w[\w.-]*", name):
      raise UserError(
        f"eval.sets has a set named {name!r}; a name makes a file and the names of metrics: use letters, "
        "digits, '.', '-' and '_'"
      )
  if c.batch.rows % c.batch.microbatches:
    raise UserError(
      f"batch.rows {c.batch.rows} is not a multiple of batch.microbatches {c.batch.microbatches}"
    )


def check_mesh(c, cfg: DecoderConfig, mesh) -> None:
  """Refuse rows, lengths and heads that the mesh cannot divide."""
  shards, context = meshes.batch_shards(mesh), mesh.shape["context"]
  if (c.batch.rows // c.batch.microbatches) % shards:
    raise UserError(
      f"batch.rows {c.batch.rows} / batch.microbatches {c.batch.microbatches} is not a multiple of the "
      f"{shards} shards of the batch (mesh.data * mesh.fsdp * mesh.expert); change one of them"
    )
  if c.batch.max_length % context:
    raise UserError(
      f"batch.max_length {c.batch.max_length} is not a multiple of mesh.context {context}; change one of them"
    )
  memories = meshes.memory_kinds(mesh)
  if c.optimizer.offload and memories and meshes.HOST_MEMORY not in memories:
    raise UserError(
      f"optimizer.offload is True, but to JAX these {meshes.platform(mesh).upper()} devices have no "
      f"{meshes.HOST_MEMORY!r} memory (only {', '.join(sorted(memories))}); set optimizer.offload=False, and "
      "optimizer.moments='int8' for a smaller state"
    )
  if c.model.remat == "offload" and meshes.platform(mesh) == "cpu":
    raise UserError(
      "model.remat is 'offload', but on a CPU activations lie in host memory already; use 'attention_saved', which "
      "keeps the same of them"
    )


def check_recheck(c, mesh) -> None:
  """Refuse to compare what is not the same twice on healthy devices either."""
  deterministic = ("xla_gpu_deterministic_ops", "xla_gpu_exclude_nondeterministic_ops")
  flags = os.environ.get("XLA_FLAGS", "")
  if (
    c.debug.recheck_every > 0
    and meshes.platform(mesh) == "gpu"
    and not any(
      re.search(rf"--{name}(=(true|1)\b|\s|$)", flags, re.IGNORECASE) for name in deterministic
    )
  ):
    raise UserError(
      f"debug.recheck_every is {c.debug.recheck_every}, but GPUs add up in any order unless told otherwise, so that a step "
      f"is not the same twice; set XLA_FLAGS='--{deterministic[0]}=true', or debug.recheck_every=0"
    )


def check_attention(c, cfg: DecoderConfig, mesh) -> None:
  """Refuse a backend that cannot compute this model's attention on these devices."""
  choice = attention.Choice.on(mesh, c.model.attention)
  decoder.attention_backends(cfg, choice, c.batch.max_length, c.model.dtype)


def check_set_names(names: Iterable[str]) -> None:
  """Each set and suite writes a file, and names metrics: two of one name would write over each other."""
  twice = sorted(name for name, n in collections.Counter(names).items() if n > 1)
  if twice:
    raise UserError(
      f"two evaluation sets or suites are named {', '.join(twice)}; each needs a name of its own"
    )


def check_rows(encoded: Encoded, languages: Iterable[str], c) -> None:
  """Refuse a language of data.train of whose rows none can be used."""
  empty = sorted(set(languages) - _usable(encoded))
  if empty:
    raise UserError(
      f"data.train names {', '.join(empty)}, whose files have no usable row: {_left_out(encoded, empty)}. "
      + _remedy(encoded, empty, f"batch.max_length ({c.batch.max_length})")
    )


def check_eval_set(s: EvalSet, languages: Iterable[str]) -> None:
  """Refuse a set in which a language has no row left: it would be missing from every figure."""
  usable = _usable(s.encoded)
  missing = sorted({*languages, *s.encoded.languages} - usable)
  if missing or not usable:
    told = f": {_left_out(s.encoded, missing)}" if missing else ""
    raise UserError(
      f"the evaluation set {s.name!r} has no usable row of {', '.join(missing) or 'any language'}{told}. "
      + _remedy(s.encoded, missing, f"max_length ({s.max_length})")
    )


def _usable(encoded: Encoded) -> set[str]:
  return {encoded.languages[i] for i in np.unique(encoded.language)}


def _left_out(encoded: Encoded, languages: Iterable[str]) -> str:
  """Why rows of these are not there: "fi: 287 over_long, 3 duplicate; sw: no rows"."""
  out = []
  for lang in languages:
    reasons = sorted(encoded.dropped.get(lang, {}).items(), key=lambda of: -of[1])
    out.append(f"{lang}: " + (", ".join(f"{n:,} {why}" for why, n in reasons) or "no rows"))
  return "; ".join(out)


def _remedy(encoded: Encoded, languages: Iterable[str], limit: str) -> str:
  """What helps against what most of their rows were left out for."""
  reasons: collections.Counter = collections.Counter()
  for lang in languages:
    reasons.update(encoded.dropped.get(lang, {}))
  most = max(reasons, key=reasons.__getitem__, default="")
  if most in ("over_long", "nothing_left_to_train"):
    return f"Raise {limit}, or see data.over_long; or remove the language."
  return "Mend or add rows (each needs its language), or remove the language."


def known_positions(hf_config: dict) -> int | None:
  """How many tokens of a row the model can tell apart; None where its config.json does not say."""
  return text_config(hf_config).get("max_position_embeddings")


def check_prompt(length: int, positions: int | None, what: str) -> None:
  """Refuse a prompt that is longer than what the model can tell apart."""
  if positions and length > positions:
    raise UserError(
      f"{what} has {length} tokens, but max_position_embeddings of the model is {positions}. Shorten it, or take "
      "another model."
    )


def check_questions(s: EvalSet, max_new_tokens: int, positions: int | None, key: str) -> str:
  """Refuse questions past the positions of the model; what to say where only answers may go past them, else ""."""
  for question in s.questions:
    what = f"the prompt {question.example_id} of the evaluation set {s.name!r}"
    check_prompt(len(question.tokens), positions, what)
  past = [q for q in s.questions if positions and len(q.tokens) + max_new_tokens > positions]
  if not past:
    return ""
  return (
    f"{key} is {max_new_tokens}, but the model has {positions} positions: {len(past)} of {len(s.questions)} answers of "
    f"the set {s.name!r} may go past them, where nothing it says can be relied on"
  )


def check_positions(longest: int, hf_config: dict) -> None:
  """Refuse rows that are longer than what the base model can tell apart."""
  known = known_positions(hf_config)
  if known and longest > known:
    raise UserError(
      f"the longest row has {longest} tokens, but max_position_embeddings of the model is {known}. Set "
      f"batch.max_length to {known} or less; data.over_long says what becomes of longer rows."
    )


def check_images(encoded: Encoded, hf_config: dict) -> None:
  """Refuse rows that stand for a picture, a video or a sound: a run tunes on text alone."""
  tokens = media_tokens(hf_config)
  at = np.flatnonzero(np.isin(encoded.tokens, tokens)) if tokens else ()
  if len(at):
    token = int(encoded.tokens[at[0]])
    i = int(np.searchsorted(encoded.starts, at[0], side="right")) - 1
    raise UserError(
      f"not supported: pictures and sounds. The row {encoded.example_id(i)} holds the token {token}, which "
      f"stands for one; {len(at):,} such tokens in all. Take these rows out."
    )


def check_best(
  metric: str, sets: Mapping[str, tuple[Iterable[str], bool]], suites: Sequence[Suite] = ()
) -> None:
  """Whether the evaluations will have the figure that `checkpoint.best` goes by.

  sets: of each its languages, and whether answers are written for it.
  """
  known = [
    f"{name}/{lang}/{figure}"
    for name, (languages, answers) in sets.items()
    for lang in (*languages, MEAN, WORST)
    for figure in summary.METRICS
    if (answers or figure in LOWER_IS_BETTER) and figure not in summary.CONDITIONAL
  ]
  known += [
    f"{s.name}/{lang}/{name}"
    for s in suites
    for lang in (*sorted({item.lang for item in s.items}), MEAN, WORST)
    for name in metric_names(s)
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
