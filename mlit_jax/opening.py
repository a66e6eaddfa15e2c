"""What a command line or a config names, opened: models, tokenizers, rows, evaluation sets.

MODEL is a Hugging Face folder, a hub id, or a workdir (DIR, DIR@best, DIR@1200).
"""

from __future__ import annotations

import dataclasses
import itertools
import json
from collections.abc import Iterable, Mapping
from pathlib import Path

import jax
import numpy as np
from jax.sharding import Mesh

from mlit_jax import checks, checksums
from mlit_jax import mesh as meshes
from mlit_jax.config import nested
from mlit_jax.data.cache import open_cache
from mlit_jax.data.encoded import Encoded
from mlit_jax.data.evalset import EvalSet, make_eval_set
from mlit_jax.data.hygiene import make_hygiene
from mlit_jax.data.languages import normalise_tag
from mlit_jax.data.ledger import make_ledger
from mlit_jax.data.parts import Recipe
from mlit_jax.data.plan import Plan, make_plan
from mlit_jax.data.rows import OR_DROP, Conversation, read_sources
from mlit_jax.data.sources import open_sources
from mlit_jax.data.tokenizer import TOKENIZER_FILES, Tokenizer
from mlit_jax.errors import UserError
from mlit_jax.evals.suites.opening import open_suite
from mlit_jax.evals.suites.suite import Suite, as_rows
from mlit_jax.model import decoder
from mlit_jax.model.config import DecoderConfig, from_hf
from mlit_jax.training.checkpoint import Checkpoints, abstract_like, prefers_lower, resolve_step
from mlit_jax.training.console import Terminal
from mlit_jax.weights import hf_files, load, source

# Several scripts: tokens from all over a vocabulary.
FIXED_TEXT = "How are you? Як справи? 你好吗？ كيف حالك؟ आप कैसे हैं? ¿Cómo estás? 🙂"


@dataclasses.dataclass(frozen=True)
class Opened:
  """A model ready for use, and what an export must carry."""

  name: str
  cfg: DecoderConfig
  params: dict  # float32, or in the model.param_dtype of a run; on the mesh
  tokenizer: Tokenizer
  files: dict[str, bytes]
  dtypes: dict[str, str] | str  # of the tensors of the base model
  layout: hf_files.Layout | None
  carried: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)  # see ModelSource

  @property
  def positions(self) -> int | None:
    """How many tokens of a row it can tell apart, where its config.json says so."""
    return checks.known_positions(json.loads(self.files["config.json"]))


def open_model(spec: str, mesh: Mesh, terminal: Terminal) -> Opened:
  """The model that `spec` names, its parameters sharded over the mesh."""
  path, _, step = spec.rpartition("@") if "@" in spec else (spec, "", "latest")
  if (Path(path) / "config.json").exists() and (Path(path) / "data_plan.json").exists():
    return open_workdir(Path(path), step, mesh)
  found = source.read_source(spec)
  cfg = from_hf(found.config)
  shardings = meshes.param_shardings(decoder.param_specs(cfg), mesh)
  with terminal.transfer("import") as progress:
    params = load.load_params(found.folder, cfg, shardings, progress=progress)
  tokenizer = Tokenizer.load(found.folder, template_kwargs={"enable_thinking": False})
  return Opened(
    spec, cfg, params, tokenizer, found.files, found.dtypes, found.layout, found.carried
  )


def open_workdir(root: Path, step: str, mesh: Mesh) -> Opened:
  """A step of a run; everything comes from the workdir, the base model is not needed."""
  config = read_run_config(root)
  for name in ("base", "tokenizer"):
    checksums.check(root / name, may_change=())
  hf = _read_json(root / "base" / "config.json")
  cfg = from_hf(hf)
  number = resolve_step(root / "checkpoints", step, lower_is_better=lower_is_better(config))
  shardings = meshes.param_shardings(decoder.param_specs(cfg), mesh)
  with Checkpoints(root / "checkpoints", read_only=True) as checkpoints:
    shapes = decoder.param_shapes(cfg, config["model"].get("param_dtype", "float32"))
    params = checkpoints.restore_params(number, abstract_like(shapes, shardings))
  # A tokenizer that the config names replaces the base model's; its files are kept with the run.
  t = config["tokenizer"]
  tokenizer = Tokenizer.load(
    root / "tokenizer",
    template_kwargs=dict(t["template_kwargs"]),
    date=t["date"],
  )
  if (root / "base" / source.TENSORS_FILE).exists():
    base = source.load_source_copy(root)
    # Whole tokenizers: one file of the base's left beside another tokenizer would be read by someone.
    kept = {name: content for name, content in base.files.items() if name not in TOKENIZER_FILES}
    files, dtypes, layout = kept | tokenizer.files, base.dtypes, base.layout
    carried = base.carried
  else:
    files = {
      name: (root / "base" / name).read_bytes()
      for name in ("config.json", "generation_config.json")
    }
    files, dtypes, layout, carried = files | tokenizer.files, "float32", None, {}
  return Opened(f"{root}@{number}", cfg, params, tokenizer, files, dtypes, layout, carried)


def read_run_config(root: Path) -> dict:
  """The nested config of a run."""
  config = _read_json(root / "config.json", sealed=True)
  if "config" not in config:
    raise UserError(f"{root}/config.json is of something else; is {root} the workdir of a run?")
  return config["config"]


def whole_mesh() -> Mesh:
  """All devices in one fsdp axis, for commands without a config."""
  return meshes.make_mesh(1, len(jax.devices()), 1)


def open_tokenizer(c, model_folder: Path | None) -> Tokenizer:
  """The tokenizer and template that the config names, else the base model's own."""
  return Tokenizer.load(
    c.tokenizer.path or model_folder,
    template=c.tokenizer.chat_template or None,
    template_kwargs=dict(c.tokenizer.template_kwargs),
    date=c.tokenizer.date,
  )


@dataclasses.dataclass(frozen=True)
class Data:
  """All rows that a run trains on and is measured on."""

  encoded: Encoded
  plan: Plan
  sets: list[EvalSet]
  suites: list[Suite]
  ledger: dict


def open_rows(c, tokenizer, root: Path, terminal) -> Data:
  """The rows that the config names: read, tokenised, planned, and checked as far as no model is needed."""
  eval_rows = read_eval_sets(c)
  suites = [open_suite(spec).only(set(), c.eval.suite_items) for spec in c.eval.suites]
  checks.check_set_names([*eval_rows, *(s.name for s in suites)])
  answers = c.eval.generate_rows > 0
  named = {name: ({row.lang for row in rows}, answers) for name, rows in eval_rows.items()}
  checks.check_best(c.checkpoint.best, named, suites)
  held_out = itertools.chain(*eval_rows.values(), *map(as_rows, suites))
  encoded, plan, made_from = open_data(c, tokenizer, held_out, root, terminal)
  sets = open_eval_sets(c, eval_rows, tokenizer)
  for s in sets:
    checks.check_eval_set(s, named_languages(c.eval.sets[s.name]))
  ledger = make_ledger(
    encoded, plan, mixture=nested(c)["data"]["mixture"], seed=c.seed, made_from=made_from
  )
  return Data(encoded, plan, sets, suites, ledger)


def open_data(
  c, tokenizer, held_out: Iterable[Conversation], root: Path, terminal
) -> tuple[Encoded, Plan, dict[str, str]]:
  """Tokens, plan, and what they are made from ({what: digest})."""
  sources = open_sources(c.data.train, where="data.train", **_how_languages_are_told(c))
  recipe = Recipe(
    tokenizer=tokenizer,
    max_length=c.batch.max_length,
    over_long=c.data.over_long,
    drop_bad=c.data.bad_rows == "drop",
    hygiene=make_hygiene(c.data, held_out, languages=named_languages(c.data.train)),
  )
  # Where processes share a disk, the others wait for the first to build; elsewhere each builds its own.
  with terminal.rows("tokenise") as progress:
    encoded, made_from = open_cache(
      sources,
      recipe,
      Path(c.data.cache_dir or root / "cache"),
      num_workers=c.data.workers,
      progress=lambda part: progress({lang: sum(n.values()) for lang, n in part.rows_read.items()}),
      waiting=lambda: terminal.line("another process builds the token cache; waiting for it"),
      damaged=terminal.warning,
    )
  checks.check_rows(encoded, named_languages(c.data.train), c)
  plan = make_plan(
    encoded,
    c.data.mixture,
    seed=c.seed,
    rows_per_step=c.batch.rows,
    max_length=c.batch.max_length,
    epochs=c.epochs,
    steps=c.steps,
    packing=c.batch.packing,
    groups=c.data.groups,
    max_repeats=c.data.max_repeats,
    choice_seed=None if c.data.seed < 0 else c.data.seed,
  )
  return encoded, plan, made_from


def read_eval_sets(c) -> dict[str, list[Conversation]]:
  """The rows of `eval.sets`."""
  return {
    name: read_sources(
      files,
      where=f"eval.sets[{name!r}]",
      drop_bad=c.data.bad_rows == "drop",
      way_out=OR_DROP,
      **_how_languages_are_told(c),
    ).conversations
    for name, files in c.eval.sets.items()
  }


def _how_languages_are_told(c) -> dict:
  return {
    "language_field": c.data.language_field or None,
    "detect_language": c.data.detect_language,
  }


def open_eval_sets(c, rows: Mapping[str, list[Conversation]], tokenizer) -> list[EvalSet]:
  """The sets of `eval.sets`, tokenised and packed."""
  return [
    make_eval_set(
      name,
      conversations,
      tokenizer,
      max_length=c.batch.max_length,
      generate_rows=c.eval.generate_rows,
      packing=c.batch.packing,
    )
    for name, conversations in rows.items()
  ]


def rows_to_compare(
  root: Path, model: Opened, max_rows: int, max_tokens: int
) -> tuple[dict[str, list[int]], str]:
  """({language: tokens} with one row for each language of the run, where they come from).

  The first row of each language in the run's evaluation sets; a fixed text for the others.
  """
  found: dict[str, Conversation] = {}
  for name, files in read_run_config(root)["eval"]["sets"].items():
    try:
      rows = read_sources(files, where=f"eval.sets[{name!r}]", drop_bad=True)
    except UserError:
      continue  # rows may have moved since the run; the fixed text stands in, and we say so
    for c in rows.conversations:
      found.setdefault(c.lang, c)
  languages = list(_read_json(root / "data_plan.json", sealed=True)["languages"])
  languages += [lang for lang in found if lang not in languages]
  limit = min(max_tokens, model.positions or max_tokens)
  out, fixed = {}, []
  for lang in languages[:max_rows]:
    if lang in found:
      *history, answer = map(dataclasses.asdict, found[lang].messages)
      text = model.tokenizer.template.prompt(history) + answer["content"]
    else:
      fixed.append(lang)
      text = model.tokenizer.template.prompt([{"role": "user", "content": f"{lang}: {FIXED_TEXT}"}])
    out[lang] = model.tokenizer.encode_text(text)[:limit]
  whence = "one row of each evaluation set's languages" if len(fixed) < len(out) else "a fixed text"
  if fixed and len(fixed) < len(out):
    whence += f"; a fixed text for {', '.join(fixed)}"
  if len(languages) > max_rows:
    whence += f"; the first {max_rows} of {len(languages)} languages"
  return out, whence


def named_languages(files) -> list[str]:
  """The languages that {language: [files]} names; a list of files names none."""
  return [normalise_tag(tag) for tag in files] if isinstance(files, Mapping) else []


def lower_is_better(config: dict) -> bool:
  """Whether `best` of a run is the smallest value of its metric."""
  default = "loss" if config["eval"]["sets"] else "accuracy"  # of suites, more is better
  return prefers_lower(config["checkpoint"]["best"] or default)


def _read_json(path: Path, *, sealed: bool = False) -> dict:
  try:
    return checksums.read_sealed(path) if sealed else json.loads(path.read_text(encoding="utf-8"))
  except FileNotFoundError:
    raise UserError(
      f"{path} is missing; is {path.parent} the workdir of a run that has begun?"
    ) from None
  except (ValueError, RecursionError) as e:
    raise UserError(f"{path} is damaged: {e}") from e
