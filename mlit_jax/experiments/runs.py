"""The runs of a sweep: arms times seeds, each a training config with an id that is a hash of what shapes it.

Two arms, or two sweeps, that ask for the same run get the same id, hence one workdir: it is trained once.
"""

from __future__ import annotations

import copy
import dataclasses
import fnmatch
import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from ml_collections import ConfigDict

from mlit_jax.config import flatten
from mlit_jax.data.sources import open_sources
from mlit_jax.errors import UserError
from mlit_jax.experiments import designs
from mlit_jax.experiments.designs import Arm

# Keys that do not change what is trained, nor what is measured of it.
FREE = ("workdir", "log.", "mesh.", "profile.", "data.cache_dir", "data.workers")
# Keys that name files: what the files hold counts.
NAMES_OF_FILES = ("data.train", "eval.sets", "model.path", "tokenizer.path", "tokenizer.chat_template")  # fmt: skip
SAMPLES, SAMPLE_BYTES = 16, 1 << 20  # of a large file, to know it again
PLACEHOLDER = "{lang}"


@dataclasses.dataclass(frozen=True)
class Run:
  """One training of one arm. changes: the keys in which its config differs from configs/base.py."""

  id: str
  arm: Arm
  draw: int  # seed of the choice of rows
  seed: int  # of training
  changes: Mapping[str, object]
  workdir: Path


def make_runs(c: ConfigDict, arms: Sequence[Arm], base: ConfigDict) -> list[Run]:
  """A run for each arm and seed, in this order; `base` is configs/base.py's config."""
  designs.check_names(arms)
  common = common_config(c, arms)
  defaults = flatten(base)
  seeds = read_seeds(c.seeds)
  rates = rates_of(c.learning_rates, [arm.name for arm in arms])
  files = Fingerprints()
  runs = []
  for arm in arms:
    for draw, seed in seeds:
      config = copy.deepcopy(common)
      config.seed, config.data.seed = seed, draw
      config.data.mixture = designs.mixture(arm.amounts, c.budget.unit)
      # Only what the arm needs is read: two sweeps with other languages beside share the run.
      missing = sorted(set(arm.tuned) - config.data.train.keys())
      if missing:
        raise UserError(
          f"the arm {arm.name!r} is tuned on {', '.join(missing)}, of which there are no rows"
        )
      config.data.train = {lang: config.data.train[lang] for lang in arm.tuned}
      if c.dev_rows:
        of_dev = {lang: [fill(c.dev_rows, lang, "dev_rows")] for lang in arm.tuned}
        config.eval.sets = {**config.eval.sets, "dev": of_dev}
      if arm.name in rates:
        config.optimizer.learning_rate = float(rates[arm.name])
      flat = flatten(config)
      changes = {key: value for key, value in flat.items() if value != defaults[key]}
      number = run_id(flat, files)
      runs.append(Run(number, arm, draw, seed, changes, Path(c.trained) / number))
  return runs


def common_config(c: ConfigDict, arms: Sequence[Arm]) -> ConfigDict:
  """The training config that all arms start from: `run`, with the sweep's model, rows and held-out rows in it.

  The rows are those of every language that an arm is tuned on: baselines add to `languages`.
  """
  config = copy.deepcopy(c.run).unlock()
  if c.model:
    config.model.path = c.model
  if not config.model.path and not config.model.sizes:
    raise UserError("model is empty; name the base model: --config.model=FOLDER_OR_HUB_ID")
  tuned = list(dict.fromkeys([*c.languages, *(lang for arm in arms for lang in arm.tuned)]))
  every = list(dict.fromkeys([*tuned, *c.held_out]))
  if not c.languages:
    raise UserError("languages is empty; name the languages to tune on")
  both = sorted(set(c.languages) & set(c.held_out))
  if both:
    raise UserError(
      f"held_out names {', '.join(both)}, which languages has too; a held-out language is never tuned on"
    )
  if c.rows:
    config.data.train = {lang: [fill(c.rows, lang, "rows")] for lang in tuned}
  if c.eval_rows:
    config.eval.sets = {"heldout": {lang: [fill(c.eval_rows, lang, "eval_rows")] for lang in every}}
  train = config.data.train
  if not isinstance(train, Mapping) or set(c.languages) - train.keys():
    missing = sorted(set(c.languages) - set(train if isinstance(train, Mapping) else ()))
    raise UserError(
      f"there are no rows of {', '.join(missing)}; give rows='rows/{PLACEHOLDER}.jsonl', or run.data.train with every language"
    )
  if not config.eval.sets:
    raise UserError(
      f"nothing is measured; give eval_rows='held_out/{PLACEHOLDER}.jsonl', or run.eval.sets"
    )
  if config.checkpoint.best.startswith("dev/") and not c.dev_rows:
    raise UserError(
      f"run.checkpoint.best is {config.checkpoint.best!r}, but dev_rows is empty; give dev_rows="
      f"'dev/{PLACEHOLDER}.jsonl', rows of the tuned languages that choose the checkpoint, or another run.checkpoint.best"
    )
  config.data.cache_dir = config.data.cache_dir or str(Path(c.trained) / "cache")
  return config


def fill(pattern: str, lang: str, key: str) -> str:
  """The file of a language."""
  if PLACEHOLDER not in pattern:
    raise UserError(f"{key} is {pattern!r}; it needs {PLACEHOLDER} where the language stands")
  return pattern.replace(PLACEHOLDER, lang)


def read_seeds(seeds: Sequence) -> list[tuple[int, int]]:
  """[(seed of the choice of rows, seed of training)] of numbers and pairs."""
  out = []
  for entry in seeds:
    pair = (entry, entry) if isinstance(entry, int) else tuple(entry)
    if len(pair) != 2 or not all(isinstance(x, int) and x >= 0 for x in pair):
      raise UserError(f"seeds has {entry!r}; it must hold whole numbers, or pairs of them")
    out.append(pair)
  if not out or len(set(out)) < len(out):
    raise UserError(f"seeds is {list(seeds)!r}; give at least one, and none twice")
  return out


def rates_of(rates: Mapping[str, float], names: Sequence[str]) -> dict[str, float]:
  """{arm: learning rate} where one is given; the last pattern that fits counts."""
  out = {}
  for pattern, rate in rates.items():
    fitting = [name for name in names if name == pattern or fnmatch.fnmatchcase(name, pattern)]
    if not fitting:
      raise UserError(
        f"learning_rates names {pattern!r}, which fits no arm; the arms are {', '.join(names)}"
      )
    if isinstance(rate, bool) or not isinstance(rate, (int, float)) or rate <= 0:
      raise UserError(f"learning_rates[{pattern!r}] is {rate!r}; it must be a number above 0")
    out |= dict.fromkeys(fitting, float(rate))
  return out


def run_id(config: Mapping[str, object], files: Fingerprints) -> str:
  """Twelve hexadecimal digits of what shapes a run: its config, its rows, its base model."""
  kept = {key: value for key, value in config.items() if not key.startswith(FREE)}
  made_from = {"data.train": files.of_rows(kept["data.train"], "run.data.train")}
  for name, rows in kept["eval.sets"].items():
    made_from[f"eval.sets.{name}"] = files.of_rows(rows, f"run.eval.sets[{name!r}]")
  for key in NAMES_OF_FILES[2:]:
    made_from[key] = files.of_path(str(kept[key]))
  named = {key: value for key, value in kept.items() if key not in NAMES_OF_FILES}
  text = json.dumps([named, made_from], sort_keys=True, default=list)
  return hashlib.blake2b(text.encode(), digest_size=6).hexdigest()


class Fingerprints:
  """What files hold, each read once, wherever they lie. A name that is no file here (a hub id) stands for itself."""

  def __init__(self):
    self.known: dict[str, str] = {}

  def of_rows(self, rows, where: str) -> list[list[str | None]]:
    """[language, digest] of each source that an entry of data.train or eval.sets names."""
    out = []
    for source in open_sources(rows, where=where):
      key = f"{source}"
      if key not in self.known:
        self.known[key] = source.digest()
      out.append([source.lang, self.known[key]])
    return sorted(out, key=str)

  def of_path(self, name: str) -> str:
    """Of a file, or of a folder's files."""
    path = Path(name)
    if not name or not path.exists():
      return name
    if name not in self.known:
      paths = [path] if path.is_file() else sorted(p for p in path.iterdir() if p.is_file())
      self.known[name] = " ".join(digest(p) for p in paths)
    return self.known[name]


def digest(path: Path) -> str:
  """Of a file's size and content; of one above 32 MiB, of pieces spread evenly over it."""
  size = path.stat().st_size
  out = hashlib.blake2b(f"{size}".encode(), digest_size=16)
  with open(path, "rb") as file:
    if size <= 2 * SAMPLES * SAMPLE_BYTES:
      out.update(file.read())
    else:
      for k in range(SAMPLES):
        file.seek(k * (size - SAMPLE_BYTES) // (SAMPLES - 1))
        out.update(file.read(SAMPLE_BYTES))
  return out.hexdigest()


def config_file(run: Run, command: str) -> str:
  """A config that trains this run by hand: the file that the sweep itself runs."""
  lines = [f"  c.{key} = {value!r}" for key, value in run.changes.items() if key != "workdir"]
  return "\n".join(
    [
      f'"""{run.arm.name}, seed {run.seed}, rows drawn with seed {run.draw}. Written by {command}.',
      "",
      f"  python -m mlit_jax.train --config {run.id}.py --workdir DIR",
      '"""',
      "",
      "from configs import base",
      "",
      "",
      "def get_config():",
      "  c = base.get_config()",
      *lines,
      "  return c",
      "",
    ]
  )
