"""Who may import whom. The arrows are those of the layers; a new one is a decision, so it is written here."""

import ast
from pathlib import Path

import pytest

import mlit_jax

ROOT = Path(mlit_jax.__file__).parent
ENTRY_POINTS = {
  "train", "evaluate", "generate", "export", "preview", "judge", "sweep", "report", "plan", "checkpoints", "doctor", "cli",
}  # fmt: skip

# What the modules of a package, or one module, may import besides themselves.
MAY_IMPORT = {
  "redaction": set(),
  "large_pages": set(),
  "errors": {"redaction"},
  "metrics": set(),
  "charts": set(),
  "page": {"charts"},
  "batch": set(),
  "routing": set(),
  "mesh": {"errors"},
  "head": {"mesh"},
  "loops": set(),
  "cores": set(),
  "attention": {"mesh", "errors", "loops"},
  "checksums": {"errors"},
  "peers": set(),
  "lifeline": set(),
  "partial": set(),
  "runtime": {"errors", "partial", "peers", "redaction"},
  "signals": {"runtime", "peers"},
  "watchdog": {"runtime", "peers"},
  "user_file": {"errors"},
  "config": {"errors", "user_file"},
  "detect": {"errors"},
  "conversation": {"errors"},
  "data": {"batch", "cores", "detect", "checksums", "errors", "lifeline"},
  # `data` for its spelling of language tags: what the labels of a detector stand for.
  "detectors": {"detect", "data", "errors"},
  "model": {"batch", "routing", "head", "attention", "mesh", "loops", "errors"},
  "weights": {"model", "mesh", "checksums", "cores", "errors", "partial"},
  "training": {
    "batch",
    "routing",
    "head",
    "loops",
    "mesh",
    "errors",
    "metrics",
    "runtime",
    "checksums",
    "signals",
    "config",
    "charts",
    "page",
    "redaction",
  },
  "planning": {
    "batch",
    "loops",
    "attention",
    "mesh",
    "errors",
    "model",
    "training",
    "stepping",
    "checks",
  },
  "experiments": {
    "checksums",
    "data",
    "errors",
    "metrics",
    "runtime",
    "lifeline",
    "config",
    "opening",
    "weights",
    "training",
    "evals",
  },
  # What a machine is examined with; JAX itself only where devices are looked at.
  "examining": {
    "attention",
    "config",
    "cores",
    "errors",
    "model",
    "opening",
    "preflight",
    "runtime",
    "weights",
  },
  "reporting": {
    "experiments",
    "evals",
    "training",
    "charts",
    "page",
    "errors",
    "metrics",
    "redaction",
  },
  "evals": {
    "batch",
    "mesh",
    "errors",
    "metrics",
    "runtime",
    "user_file",
    "detect",
    "detectors",
    "data",
    "attention",
    "model",
    "redaction",
  },
}

# Single arrows beyond the table, each with its reason.
BESIDES = {
  ("evals.likelihood", "training"): "the likelihood of a token is that of the training loss",
  ("training.flops", "model"): "counts the FLOPs of a decoder from its sizes",
  ("training.workdir", "model"): "lists the parameters: what a parameter's spec is",
}


def modules():
  """{"data.plan": path} of every module, entry points and the package itself included."""
  found = {}
  for path in sorted(ROOT.rglob("*.py")):
    parts = path.relative_to(ROOT).with_suffix("").parts
    found[".".join(parts[:-1] if parts[-1] == "__init__" and len(parts) > 1 else parts)] = path
  return found


def imported(source: str, name: str) -> set[str]:
  """Modules of mlit_jax that the source imports anywhere, also within functions: {"data.plan", "mesh"}.

  `from mlit_jax.data import plan` counts as data.plan, `from mlit_jax.data.plan import Plan` as
  data.plan.Plan: only the beginning is looked at.
  """
  out = set()
  for node in ast.walk(ast.parse(source)):
    names = []
    if isinstance(node, ast.Import):
      names = [alias.name for alias in node.names]
    elif isinstance(node, ast.ImportFrom):
      base = node.module or ""
      if node.level:
        package = ["mlit_jax", *name.split(".")[:-1]]
        base = ".".join([*package[: len(package) - node.level + 1], *filter(None, [base])])
      names = [f"{base}.{alias.name}" for alias in node.names]
    out |= {n.removeprefix("mlit_jax.") for n in names if n.startswith("mlit_jax.")}
  return out


def faults(name: str, imports: set[str]) -> list[str]:
  """What of `imports` module `name` must not import."""
  layer = name.split(".")[0]
  out = [
    f"{name} imports the entry point {i}"
    for i in sorted(imports)
    if i.split(".")[0] in ENTRY_POINTS
  ]
  if layer in MAY_IMPORT:
    allowed = MAY_IMPORT[layer] | {layer}
    out += [
      f"{name} imports {i}"
      for i in sorted(imports)
      if i.split(".")[0] not in allowed | ENTRY_POINTS and (name, i.split(".")[0]) not in BESIDES
    ]
  return out


@pytest.mark.parametrize("name", sorted(modules()))
def test_a_module_imports_only_what_lies_below_it(name):
  assert not faults(name, imported(modules()[name].read_text(encoding="utf-8"), name))


def test_every_package_has_its_row_in_the_table():
  """A package without one would be checked by nothing."""
  packages = {name.split(".")[0] for name, path in modules().items() if path.parent != ROOT}
  assert packages <= MAY_IMPORT.keys()


def test_every_command_is_known_as_an_entry_point():
  commands = {
    name
    for name, path in modules().items()
    if path.parent == ROOT and '__name__ == "__main__"' in path.read_text(encoding="utf-8")
  }
  assert {"train", "evaluate", "generate", "judge", "export"} <= commands <= ENTRY_POINTS


def test_the_exceptions_are_still_needed():
  for name, layer in BESIDES:
    imports = imported(modules()[name].read_text(encoding="utf-8"), name)
    assert layer in {i.split(".")[0] for i in imports}, (
      f"{name} does not import {layer}: take it off the list"
    )


@pytest.mark.parametrize(
  "name, source",
  [
    ("data.plan", "from mlit_jax.model import decoder"),
    ("data.plan", "import mlit_jax.model.config as config"),
    ("data.plan", "def f():\n  from mlit_jax.evals import summary"),
    ("data.plan", "from ..model import decoder"),
    ("data.plan", "from .. import runtime"),
    ("data.plan", "from mlit_jax import mesh"),
    ("model.decoder", "from mlit_jax.data import chat"),
    ("model.decoder", "from mlit_jax import runtime"),
    ("weights.load", "from mlit_jax.training import step"),
    ("training.loop", "from mlit_jax.data import ledger"),
    ("training.loop", "from mlit_jax.weights import save"),
    ("training.loop", "from mlit_jax.model import decoder"),
    ("evals.summary", "from mlit_jax.training import workdir"),
    ("mesh", "from mlit_jax.model import decoder"),
    ("opening", "from mlit_jax import train"),
    ("train", "from mlit_jax.evaluate import main"),
    ("data.plan", "from mlit_jax.plan import main"),
  ],
)
def test_a_wrong_import_is_seen(name, source):
  assert len(faults(name, imported(source, name))) == 1


@pytest.mark.parametrize(
  "name, source",
  [
    (
      "data.evalset",
      "from mlit_jax.data.plan import Plan\nfrom mlit_jax.batch import Batch\nfrom . import plan",
    ),
    ("model.decoder", "from mlit_jax import mesh\nimport jax, numpy\nfrom .layers import Mlp"),
    ("training.flops", "from mlit_jax.model import decoder"),
    ("train", "from mlit_jax.data import plan\nfrom mlit_jax.training.loop import train"),
  ],
)
def test_a_right_import_passes(name, source):
  assert faults(name, imported(source, name)) == []
