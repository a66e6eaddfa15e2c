"""Config files and overrides: names, types, literals, and that base.py documents every key."""

import importlib
import re
from pathlib import Path

import pytest
from ml_collections import ConfigDict

from configs import base
from mlit_jax.config import flatten, load_config, nested
from mlit_jax.errors import UserError

ROOT = Path(__file__).parent.parent
BASE = Path(base.__file__)


@pytest.fixture
def write(tmp_path):
  def write(*lines):
    path = tmp_path / "mine.py"
    body = "\n".join(f"  {line}" for line in lines)
    path.write_text(
      f"from configs import base\n\n\ndef get_config():\n  c = base.get_config()\n{body}\n  return c\n"
    )
    return str(path)

  return write


def refused(file, *overrides):
  with pytest.raises(UserError) as e:
    load_config(file, overrides)
  assert "\n" not in str(e.value)
  return str(e.value)


def test_an_unknown_key_in_a_file_names_the_nearest(write):
  file = write("c.optimizer.learning_rat = 1e-3")
  message = refused(file)
  assert file in message and "learning_rat" in message and "learning_rate" in message


def test_an_unknown_key_in_an_unlocked_part_is_found_too(write):
  file = write("with c.unlocked():", "  c.data.mixtures = {}")
  message = refused(file)
  assert file in message and "'data.mixtures'" in message and "'data.mixture'" in message


def test_a_missing_key_is_found(write):
  assert "batch.rows" in refused(write("with c.unlocked():", "  del c.batch['rows']"))


@pytest.mark.parametrize(
  "given, nearest",
  [
    ("optimizer.learning_rat", "optimizer.learning_rate"),
    ("learning_rate", "optimizer.learning_rate"),  # the right name in the wrong place
    ("model.learning_rate", "optimizer.learning_rate"),
    ("batch.max_lenght", "batch.max_length"),
  ],
)
def test_an_unknown_key_on_the_command_line_names_the_nearest(write, given, nearest):
  message = refused(write(), f"--config.{given}=3")
  assert given in message and f"did you mean {nearest!r}?" in message


@pytest.mark.parametrize("text", ["--learning_rate=3", "--config.steps", "steps=3", "-x"])
def test_other_arguments_are_refused(write, text):
  assert text in refused(write(), text)


@pytest.mark.parametrize(
  "key, value, wanted",
  [
    ("steps", "many", "a whole number"),
    ("steps", "2.5", "a whole number"),
    ("steps", "True", "a whole number"),
    ("optimizer.learning_rate", "fast", "a number"),
    ("optimizer.learning_rate", "[1]", "a number"),
    ("batch.packing", "perhaps", "true or false"),
    ("batch.packing", "2", "true or false"),
    ("data.mixture", "{'counts': ", "a mapping"),
    ("data.mixture", "3", "a mapping"),
  ],
)
def test_values_of_another_type_are_refused(write, key, value, wanted):
  message = refused(write(), f"--config.{key}={value}")
  assert key in message and value in message and wanted in message


@pytest.mark.parametrize(
  "line",
  [
    "c.steps = 'many'",
    "c.optimizer.learning_rate = 'fast'",
    "c.data.mixture = 3",
    "c.steps = None",
  ],
)
def test_values_of_another_type_in_a_file_are_refused(write, line):
  key = line.split(" ")[0].removeprefix("c.").split(".")[-1]
  file = write(line)
  message = refused(file)
  assert file in message and key in message


@pytest.mark.parametrize(
  "key, text, value",
  [
    ("steps", "7", 7),
    ("mesh.fsdp", "-1", -1),
    ("optimizer.learning_rate", "1e-3", 1e-3),
    ("optimizer.learning_rate", "1", 1.0),
    ("batch.packing", "false", False),
    ("batch.packing", "1", True),
    ("model.path", "a=b", "a=b"),
    ("model.path", "123", "123"),
    ("checkpoint.best", "", ""),
    ("data.mixture", "{'counts': {'en': 3, '*': 4}}", {"counts": {"en": 3, "*": 4}}),
    (
      "data.mixture",
      '{"unimax": {"x": true, "y": null}}',
      {"unimax": {"x": True, "y": None}},
    ),  # JSON only
    ("data.train", "['a.jsonl']", ["a.jsonl"]),  # a list where the default is a mapping
    ("model.sizes", "{'d_model': 8}", {"d_model": 8}),
  ],
)
def test_values_and_literals(write, key, text, value):
  config = load_config(write(), [f"--config.{key}={text}"])
  found = flatten(config)[key]
  assert found == value and type(found) is type(value)


def test_the_last_word_is_the_command_lines(write):
  file = write("c.steps = 5", "c.batch.rows = 4")
  config = load_config(file, ["--config.steps=6", "--config.steps=7"])
  assert (config.steps, config.batch.rows) == (7, 4)


def test_whole_numbers_become_floats_where_those_are_meant(write):
  value = load_config(write("c.optimizer.weight_decay = 1")).optimizer.weight_decay
  assert value == 1.0 and isinstance(value, float)


@pytest.mark.parametrize(
  "text, said",
  [
    ("def get_config(:\n", "SyntaxError"),
    ("import nothing_of_this_name\n", "nothing_of_this_name"),
    ("x = 1\n", "no function get_config"),
    ("def get_config():\n  return {}\n", "not a ConfigDict"),
    ("def get_config():\n  return undefined\n", "undefined"),
    ("def get_config():\n  raise ValueError('of mine')\n", "of mine"),
  ],
)
def test_files_that_are_no_config(tmp_path, text, said):
  path = tmp_path / "broken.py"
  path.write_text(text)
  message = refused(str(path))
  assert str(path) in message and said in message


def test_a_file_that_is_not_there(tmp_path):
  assert "no such file" in refused(str(tmp_path / "none.py"))


def test_every_key_of_base_is_documented_on_its_line():
  lines = BASE.read_text(encoding="utf-8").splitlines()
  documented, group = set(), ""
  for line in lines:
    if opens := re.match(r"  c\.(\w+) = \w = ConfigDict\(", line):
      group = f"{opens[1]}."
    elif key := re.match(r"  (\w)\.(\w+) = .*  # .+$", line):
      documented.add(key[2] if key[1] == "c" else group + key[2])
  undocumented = set(flatten(base.get_config())) - documented
  # Names that say all there is to say.
  plain = {"optimizer.warmup_steps", "optimizer.b1", "optimizer.b2", "optimizer.eps", "eval.at_start", "eval.top_p",
           "checkpoint.keep_latest", "checkpoint.keep_best", "log.every_steps"}  # fmt: skip
  assert undocumented <= plain, undocumented - plain


def test_base_gives_a_fresh_config_each_time():
  one, two = base.get_config(), base.get_config()
  one.data.mixture["counts"] = {"en": 1}
  one.steps = 3
  assert two.data.mixture == {} and two.steps == 0
  assert isinstance(one, ConfigDict) and nested(two)["batch"]["rows"] == 8


def configs_of_the_project():
  """{file: what its keys are those of}; a file without get_config() is a script."""
  found = {}
  for path in sorted((ROOT / "configs").rglob("*.py")):
    text = path.read_text(encoding="utf-8")
    if "def get_config(" in text and path.name != "base.py":
      of_sweep = path.name == "sweep.py" or path.parent.name == "paper" or "def get_arms(" in text
      found[path] = "sweep" if of_sweep else "base"
  return found


@pytest.mark.parametrize("file, keys", configs_of_the_project().items())
def test_the_configs_of_the_project_load(file, keys):
  expected = flatten(importlib.import_module(f"configs.{keys}").get_config())
  assert flatten(load_config(str(file), base=keys)).keys() == expected.keys()


def test_a_sweeps_config_takes_lists_and_the_keys_of_a_run():
  words = [
    "--config.languages=['en', 'fi']", "--config.seeds=[[0, 1]]", "--config.run.steps=5", "--config.budget.total=7",
    "--config.run.data.train=['a.jsonl']", "--config.learning_rates={'*': 1e-5}",
  ]  # fmt: skip
  c = load_config(str(ROOT / "configs" / "paper" / "fig3_pinch.py"), words, base="sweep")
  assert (c.languages, c.seeds, c.run.steps, c.budget.total) == (["en", "fi"], [[0, 1]], 5, 7)
  assert c.run.data.train == ["a.jsonl"] and c.learning_rates == {"*": 1e-5}
  for word, said in [
    ("--config.languages=en", "cannot be read as a list"),
    ("--config.run.data.workers=many", "a whole number"),
    ("--config.run.optimizer.learning_rat=1", "did you mean 'run.optimizer.learning_rate'"),
  ]:
    with pytest.raises(UserError, match=re.escape(said)):
      load_config(str(ROOT / "configs" / "paper" / "fig3_pinch.py"), [word], base="sweep")


def test_what_is_no_config_is_said_as_it_is(tmp_path, monkeypatch):
  """A file of rows, a folder, a misspelt name; what lies beside is listed."""
  monkeypatch.chdir(tmp_path)
  (tmp_path / "cfg").mkdir()
  for name in ("fig3_pinch.py", "fig4_unseen.py", "rows.jsonl"):
    (tmp_path / "cfg" / name).write_text("")
  message = refused("cfg/fig3_pnch.py")
  assert "no such file. Did you mean cfg/fig3_pinch.py?" in message and "fig4_unseen.py" in message
  assert "a file, but not a Python file" in refused("cfg/rows.jsonl")
  message = refused("cfg")
  assert "a folder, but not a Python file" in message and "cfg/fig3_pinch.py" in message


@pytest.mark.parametrize(
  "line, said",
  [
    (
      "c.optimizer.learning_rte = 3",
      "unknown key 'learning_rte'; did you mean 'optimizer.learning_rate'?",
    ),
    ("c.optimizr.learning_rate = 3", "unknown key 'optimizr'; did you mean 'optimizer'?"),
    (
      "c.optimizer.learning_rate = '1e-4'",
      "optimizer.learning_rate = '1e-4' must be a number, like 1e-05",
    ),
    ("c.steps = 1 / 0", "ZeroDivisionError: division by zero"),
    ("import nosuchmodule", "ModuleNotFoundError: No module named 'nosuchmodule'"),
    ("retrun 3", "SyntaxError: invalid syntax"),
    ("c.steps = {}['x']", "'x'"),
  ],
)
def test_an_error_in_the_file_names_its_line(write, line, said):
  file = write("c.seed = 1", line)
  message = refused(file)
  assert f"--config {file}:7: " in message and said in message, message
  assert "Other fields" not in message


def test_a_config_for_the_other_command(write, tmp_path):
  assert "for the other command, `sweep`" in refused(str(ROOT / "configs" / "sweep.py"))
  with pytest.raises(UserError, match="for the other command, `train`"):
    load_config(write(), base="sweep")


def test_kinds_in_words(write):
  assert "cannot be read as a list (" in refused(write(), "--config.log.trackers=wandb")
  assert refused(write(), "--config.epochs=0.5").endswith("must be a whole number")
