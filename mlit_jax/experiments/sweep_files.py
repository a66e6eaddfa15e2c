"""sweep.json: what a sweep set out to do, read back. docs/sweeps.md has every field."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path

from mlit_jax.errors import UserError

SWEEP_FILE = "sweep.json"
SEEN, UNSEEN = "seen", "unseen"
COVARIATE_KINDS = ("pair", "language")


@dataclasses.dataclass(frozen=True)
class Curve:
  """A factor of the arms that figures are drawn over."""

  key: str
  label: str


@dataclasses.dataclass(frozen=True)
class Arm:
  """One thing to tune on."""

  name: str
  tuned: tuple[str, ...]
  factors: Mapping[str, object]
  counts: Mapping[str, int]


@dataclasses.dataclass(frozen=True)
class PlannedRun:
  """An arm with its seeds. One id under several arms or draws is one training."""

  id: str
  arm: str
  draw: int
  seed: int
  workdir: Path


@dataclasses.dataclass(frozen=True)
class Comparison:
  """`run` side by side with `baseline` on the prompts of `languages`."""

  run: str
  baseline: str
  languages: tuple[str, ...]
  out: Path


@dataclasses.dataclass(frozen=True)
class Covariate:
  """What transfer may go with: a number for each (tuned, evaluated) pair, or for each tuned language."""

  name: str
  kind: str  # "pair" or "language"
  values: Mapping


@dataclasses.dataclass(frozen=True)
class Sweep:
  """The whole file; paths are resolved."""

  folder: Path
  title: str
  about: str
  base: str
  languages: tuple[str, ...]
  groups: Mapping[str, tuple[str, ...]]
  curves: tuple[Curve, ...]
  matrix: bool
  set: str
  headline: str  # the metric that counts first; "": cells.HEADLINE
  at: str
  arms: tuple[Arm, ...]
  runs: tuple[PlannedRun, ...]
  comparisons: tuple[Comparison, ...]
  covariates: tuple[Covariate, ...]

  def arm(self, name: str) -> Arm:
    return next(arm for arm in self.arms if arm.name == name)

  def group_of(self, lang: str) -> str:
    """base, seen, unseen, or "" for a language of none of them."""
    if lang == self.base:
      return "base"
    return next((name for name in (SEEN, UNSEEN) if lang in self.groups.get(name, ())), "")


def is_sweep(folder) -> bool:
  return (Path(folder) / SWEEP_FILE).is_file()


def read_sweep(folder) -> Sweep:
  """The sweep in this folder; a UserError that names what is wrong with its sweep.json."""
  path = Path(folder) / SWEEP_FILE
  try:
    found = json.loads(path.read_text(encoding="utf-8"))
    sweep = _sweep(path.parent, found)
    _check(path, sweep)
  except OSError as e:
    raise UserError(f"{path} cannot be read ({e.strerror}); name the folder of a sweep") from e
  except KeyError as e:
    raise UserError(f"{path} lacks {e.args[0]!r}; `mlit_jax.sweep` writes it whole") from e
  except (ValueError, TypeError, AttributeError, RecursionError) as e:
    raise UserError(f"{path} is no sweep.json of ours ({e}); `mlit_jax.sweep` writes one") from e
  return sweep


def _sweep(folder: Path, found: dict) -> Sweep:
  return Sweep(
    folder=folder,
    title=str(found["title"]),
    about=str(found.get("about", "")),
    base=str(found.get("base") or ""),
    languages=tuple(found["languages"]),
    groups={name: tuple(langs) for name, langs in (found.get("groups") or {}).items()},
    curves=tuple(Curve(c["key"], str(c["label"])) for c in found.get("curves", ())),
    matrix=bool(found.get("matrix", False)),
    set=found["set"],
    headline=str(found.get("headline") or ""),
    at=found.get("at", "last"),
    arms=tuple(
      Arm(a["name"], tuple(a["tuned"]), dict(a.get("factors", {})), dict(a.get("counts", {})))
      for a in found["arms"]
    ),
    runs=tuple(
      PlannedRun(r["id"], r["arm"], int(r["draw"]), int(r["seed"]), folder / r["workdir"])
      for r in found["runs"]
    ),
    comparisons=tuple(
      Comparison(c["run"], c["baseline"], tuple(c["languages"]), folder / c["out"])
      for c in found.get("comparisons", ())
    ),
    covariates=tuple(
      Covariate(c["name"], c["kind"], dict(c["values"])) for c in found.get("covariates", ())
    ),
  )


def _check(path: Path, sweep: Sweep) -> None:
  names = [arm.name for arm in sweep.arms]
  twice = sorted({name for name in names if names.count(name) > 1})
  if twice:
    raise UserError(f"{path}: two arms have the name {twice[0]!r}; give each its own")
  unknown = sorted({run.arm for run in sweep.runs} - set(names))
  if unknown:
    raise UserError(f"{path}: runs name the arm {unknown[0]!r}, which is not among its arms")
  replicates = [(run.arm, run.draw, run.seed) for run in sweep.runs]
  if len(set(replicates)) < len(replicates):
    arm, draw, seed = next(r for r in replicates if replicates.count(r) > 1)
    raise UserError(f"{path}: arm {arm!r} has draw {draw} and seed {seed} twice; once is enough")
  folders = {}
  for run in sweep.runs:
    if folders.setdefault(run.id, run.workdir) != run.workdir:
      raise UserError(f"{path}: run {run.id!r} has two workdirs; an id is one training")
  if sweep.at not in ("last", "best"):
    raise UserError(f"{path}: at is {sweep.at!r}; it is last or best")
  if not set(sweep.groups) <= {SEEN, UNSEEN}:
    raise UserError(f"{path}: groups are {SEEN} and {UNSEEN}, not {', '.join(sweep.groups)}")
  grouped = [lang for langs in sweep.groups.values() for lang in langs]
  wrong = [
    x for x in grouped if grouped.count(x) > 1 or x == sweep.base or x not in sweep.languages
  ]
  if wrong:
    raise UserError(
      f"{path}: {wrong[0]!r} in groups is the base, stands in two, or is not evaluated; each language"
      " of a group is another evaluated one"
    )
  for covariate in sweep.covariates:
    if covariate.kind not in COVARIATE_KINDS:
      raise UserError(
        f"{path}: covariate {covariate.name!r} is of kind {covariate.kind!r}; it is pair or language"
      )
