"""A run goes on only on the plan that it began with; else it is refused, with what has changed by name."""

import json
import shutil
from unittest import mock

import pytest
from sentencepiece import sentencepiece_model_pb2

from mlit_jax import train
from mlit_jax.checksums import sealed
from mlit_jax.data import cache, plan
from mlit_jax.errors import UserError
from tests import commands

ASSETS = commands.ROOT / "mlit_jax" / "assets"


@pytest.fixture(scope="module")
def began(tmp_path_factory):
  """The folder of a run under way, with rows and tokenizer of its own."""
  folder = tmp_path_factory.mktemp("changed")
  (folder / "rows").mkdir()
  for lang in commands.COUNTS:
    shutil.copy(ASSETS / "instructions12" / "train" / f"{lang}.jsonl", folder / "rows")
  shutil.copytree(ASSETS / "tokenizer12", folder / "tokenizer")
  config = commands.write_config(
    folder,
    "c.data.train = {lang: ['~/rows/' + lang + '*.jsonl'] for lang in ('en', 'sw', 'zh')}",
    "c.tokenizer.path = '~/tokenizer'",
    "c.eval.sets, c.batch.rows = {}, 8",
  )
  with pytest.MonkeyPatch.context() as patch:
    patch.setenv("HOME", str(folder))
    commands.begun(config, folder / "run")
  return folder


@pytest.fixture
def copy(began, tmp_path, monkeypatch):
  """The same again, to be changed: as if the run had begun in this home folder."""
  home = tmp_path / "home"
  shutil.copytree(began, home)
  ledger = home / "run" / "data_plan.json"
  text = ledger.read_text(encoding="utf-8").replace(str(began), str(home))
  ledger.write_text(json.dumps(sealed(json.loads(text))))
  monkeypatch.setenv("HOME", str(home))
  return home


def go_on(folder, *args) -> str:
  """The message with which the run is refused; nothing but the cache may be written."""
  workdir = folder / "run"
  before = commands.contents(workdir)
  code, out, err = commands.here(train, "--config", folder / "tiny.py", "--workdir", workdir, *args)
  assert code == 2 and err.startswith("error: ") and err.count("\n") == 1, out + err
  after = commands.contents(workdir)
  assert {k: v for k, v in after.items() if not k.startswith("cache/")} == {
    k: v for k, v in before.items() if not k.startswith("cache/")
  }
  return err


def edit(path, before: bytes, after: bytes):
  data = path.read_bytes()
  assert before in data
  path.write_bytes(data.replace(before, after, 1))


def test_what_is_unchanged_may_go_on(copy):
  """And the copy of `begun` is a run under way, so that the refusals below are of what they change."""
  with mock.patch.object(train.Job, "run", side_effect=UserError("far enough")):
    args = ("--config", copy / "tiny.py", "--workdir", copy / "run")
    assert commands.here(train, *args)[::2] == (2, "error: far enough\n")


def test_a_changed_row(copy):
  edit(copy / "rows" / "sw.jsonl", b"a", b"i")
  assert f"{copy}/rows/sw.jsonl has changed" in go_on(copy)


def test_a_changed_row_that_is_not_even_chosen(copy):
  """The fingerprint is of all that was read: what is chosen depends on all rows."""
  with open(copy / "rows" / "zh.jsonl", "a", encoding="utf-8") as file:
    file.write(json.dumps({"prompt": "?", "completion": "是", "lang": "zh"}) + "\n")
  message = go_on(copy)
  assert f"{copy}/rows/zh.jsonl has changed" in message and "en.jsonl" not in message


def test_files_that_came_and_went(copy):
  old, new = copy / "rows" / "sw.jsonl", copy / "rows" / "sw-more.jsonl"
  lines = old.read_text(encoding="utf-8").splitlines(keepends=True)
  new.write_text("".join(lines[-9:]), encoding="utf-8")
  assert f"{new} is new" in go_on(copy)
  old.unlink()
  message = go_on(copy)
  assert f"{new} is new" in message and f"{old} is gone" in message


def test_another_chat_template(copy):
  edit(copy / "tokenizer" / "chat_template.jinja", b"<|end|>", b"<|end|>\n")
  message = go_on(copy)
  assert "the chat template has changed" in message and "the tokenizer has" not in message


def test_another_tokenizer(copy):
  path = copy / "tokenizer" / "tokenizer.model"
  model = sentencepiece_model_pb2.ModelProto.FromString(path.read_bytes())
  model.pieces[-1].score -= 1
  path.write_bytes(model.SerializeToString())
  message = go_on(copy)
  assert "the tokenizer has changed" in message and "template" not in message


@pytest.mark.parametrize(
  "module, what",
  [(cache, "the code that tokenises has changed"), (plan, "the code that plans has changed")],
)
def test_another_version_of_the_code(copy, monkeypatch, module, what):
  monkeypatch.setattr(module, "VERSION", module.VERSION + 1)
  message = go_on(copy)
  assert what in message and "another --workdir" in message and ".jsonl" not in message


@pytest.mark.parametrize(
  "key, value, said",
  [
    ("data.mixture", '{"counts": {"en": 16, "*": 9}}', "'*': 8}} then, {'counts': {'en': 16, '*': 9}} now"),
    ("seed", "1", "seed: 0 then, 1 now"),
    ("batch.rows", "16", "batch.rows: 8 then, 16 now"),
    ("batch.max_length", "64", "batch.max_length: 128 then, 64 now"),
    ("data.over_long", "truncate_prompt", "data.over_long: 'drop' then, 'truncate_prompt' now"),
    ("tokenizer.template_kwargs", '{"a": 1}', "tokenizer.template_kwargs"),
  ],
)  # fmt: skip
def test_another_mixture_or_setting(copy, key, value, said):
  message = go_on(copy, f"--config.{key}={value}")
  assert key in message and said in message and str(copy / "run") in message


@pytest.mark.slow
def test_a_checkpoint_of_another_plan(tmp_path):
  """Folders of two runs mixed up: data_plan.json fits the data, the checkpoint was made on other rows."""
  config = commands.write_config(
    tmp_path, "c.epochs, c.steps, c.batch.rows = 0, 3, 8", "c.eval.sets = {}"
  )
  args = ("--config", config, "--workdir", tmp_path / "run")
  code, _, err = commands.here(train, *args)
  assert code == 0, err
  (meta,) = (tmp_path / "run" / "checkpoints" / "3").glob("meta/metadata")
  was = json.loads(meta.read_text())
  assert was["plan"] == json.loads((tmp_path / "run" / "data_plan.json").read_text())["hash"]
  meta.write_text(json.dumps(sealed(was | {"plan": "f00d"})))
  code, _, err = commands.here(train, *args)
  assert code == 2 and "is of plan f00d" in err and was["plan"] in err, err
