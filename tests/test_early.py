"""What needs no rows is refused before one is read, by `train`, `preview` and `sweep` alike."""

from unittest import mock

import pytest

from mlit_jax import opening, preview, train
from tests import commands

TOKENIZER12 = commands.ROOT / "mlit_jax" / "assets" / "tokenizer12"


@pytest.fixture
def refused(tmp_path):
  """refused(command, *lines of the config) -> its message; whoever reads a row of data.train fails."""

  def refused(command, *lines):
    config = commands.write_config(tmp_path, *lines)
    with mock.patch.object(opening, "open_data", side_effect=AssertionError("rows are read")):
      code, out, err = commands.here(command, "--config", config, "--workdir", tmp_path / "run")
    assert code == 2, out + err
    assert err.startswith("error: ") and err.count("\n") == 1, err
    return err

  return refused


COUNTS = "c.data.mixture = {'counts': "
TYPOS = [
  (("c.optimizer.schedule = 'cosin'",), ("optimizer.schedule is 'cosin'", "cosine")),
  (("c.epochs, c.steps, c.optimizer.warmup_steps = 0, 5, 5",), ("warmup_steps 5", "5 steps")),
  (("c.checkpoint.best = 'heldout/sw/los'",), ("'heldout/sw/los'", "'heldout/sw/loss'")),
  (("c.checkpoint.best = 'heldout/xx/loss'",), ("'heldout/xx/loss'", "such as")),
  (
    (
      "c.batch.rows = 8",
      "c.eval.sets = {'listed': [path for files in c.eval.sets['heldout'].values() for path in files]}",
      "c.checkpoint.best = 'listed/fi/loss'",
    ),
    ("'listed/fi/loss'", "such as 'listed/"),
  ),
  (
    ("c.eval.generate_rows = 0", "c.checkpoint.best = 'heldout/sw/fidelity'"),
    ("heldout/sw/fidelity",),
  ),
  (("c.eval.lid = 'nowhere/lid.176.ftz'",), ("eval.lid", "no file nowhere/lid.176.ftz")),
  (("c.mesh.data = -1",), ("mesh", "one of them may be -1")),
  (("c.mesh.tensor = 0",), ("'tensor': 0", "1 or more")),
  (("c.model.sizes.update(d_modle=32)",), ("model.sizes", "d_modle")),
  (("c.model.path = 'some/base'",), ("some/base", "model.sizes", "model.path = ''")),
  ((COUNTS + "{'en': 16, 'sww': 8}}",), ("data.mixture", "'sww'", "did you mean 'sw'")),
  ((COUNTS + "{'en': -1, '*': 8}}",), ("data.mixture.counts['en']", "-1")),
  (("c.data.mixture = {'count': {'en': 16}}",), ("did you mean 'counts'",)),
  (("c.data.mixture = {'shares': {'en': .5, 'sw': .4}}",), ("sum to 0.9",)),
  (
    ("c.data.mixture = {'pinch': {'percent': 101, 'base': 'en', 'total': 9}}",),
    ("percent is 101",),
  ),
  (
    ("c.data.mixture = {'pinch': {'percent': 1, 'base': ['en'], 'total': 9}}",),
    ("pinch.base is ['en']",),
  ),
  ((COUNTS + "{'en': 16}, 'leave_out': [{}]}",), ("data.mixture", "cannot be", "unhashable")),
]


@pytest.mark.parametrize("command", [train, preview])
@pytest.mark.parametrize("lines, parts", TYPOS, ids=[str(parts[0]) for _, parts in TYPOS])
def test_a_typo(refused, command, lines, parts):
  message = refused(command, *lines)
  for part in parts:
    assert part in message, (part, message)


def test_a_mesh_that_the_devices_do_not_fit(refused, tmp_path):
  """A preview may be of a run on another machine: it warns, and goes on."""
  for line in ("c.mesh.tensor = 3", "c.mesh.fsdp = 5"):
    assert "does not fit" in refused(train, line)
  config = commands.write_config(tmp_path, "c.mesh.tensor = 3")
  code, out, err = commands.here(preview, "--config", config, "--workdir", tmp_path / "p")
  assert code == 0 and (out + err).count("could not begin on this machine: mesh") == 1, out + err


@pytest.mark.parametrize("command", [train, preview])
def test_a_base_that_does_not_fit(refused, tmp_path, command):
  """A tensor is missing; a tokenizer has more tokens than the model has rows."""
  pytest.importorskip("transformers")
  import safetensors.numpy

  from tests import families

  families.make_model(tmp_path / "model", "qwen3")
  base = f"c.model.path, c.model.sizes = {str(tmp_path / 'model')!r}, {{}}"
  assert "tokenizer.path" in refused(command, base, f"c.tokenizer.path = {str(TOKENIZER12)!r}")
  path = tmp_path / "model" / "model.safetensors"
  tensors = safetensors.numpy.load_file(path)
  del tensors["model.norm.weight"]
  safetensors.numpy.save_file(tensors, path, metadata={"format": "pt"})
  message = refused(command, base, "c.tokenizer.path = ''")
  assert "1 missing: model.norm.weight" in message


@pytest.mark.parametrize(
  "mixture",
  [
    "{'temperature': 5, 'total': 24}",
    "{'unimax': {'budget': 24, 'max_repeats': 1}}",
    "{'shares': {'en': .5, '*': .5}, 'unit': 'tokens'}",
    "{'counts': {'en': {'en.jsonl': 4}, '*': 8}}",
    "[{'counts': {'en': 8}, 'epochs': 1}, {'uniform': {'total': 9}, 'epochs': 1}]",
    "{'replace': {'base': 'en', 'total': 16, 'with': {'*': 4}}}",
  ],
)
def test_a_mixture_that_is_right_passes(tmp_path, mixture):
  from mlit_jax import early
  from mlit_jax.config import load_config

  lines = [f"c.data.mixture = {mixture}", "c.workdir = 'x'"]
  if mixture.startswith("["):
    lines.append("c.epochs = 0")
  early.check_config(load_config(str(commands.write_config(tmp_path, *lines))))
