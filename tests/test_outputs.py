"""A place that cannot be written is refused before the work, with path and reason; so are prompts past the end."""

import json

import pytest

from mlit_jax import evaluate, generate, judge, plan, preview, report, train
from tests import commands

TINY12 = commands.ROOT / "mlit_jax" / "assets" / "tiny12"
ROWS = commands.ROOT / "mlit_jax" / "assets" / "instructions12" / "eval" / "sw.jsonl"


def refused(command, *args) -> str:
  code, out, err = commands.here(command, *args)
  assert code == 2, out + err
  assert err.count("error: ") == 1 and "Traceback" not in err, err
  return err


@pytest.fixture
def answers(tmp_path):
  """A file of one answer."""
  path = tmp_path / "answers.jsonl"
  row = dict(id=1, lang="en", prompt="Why?", response="So.", stopped=True, tokens=1, model="m")
  path.write_text(json.dumps(row) + "\n")
  return path


def arguments(tmp_path, answers) -> list:
  """(command, arguments before the place, what the place is to be)."""
  config = commands.write_config(tmp_path)
  a_and_b = ("--a", answers, "--b", answers)
  return [
    (generate, ["--model", TINY12, "--prompts", answers, "--out"], "file"),
    (evaluate, ["--model", TINY12, "--suite", ROWS, "--out"], "folder"),
    (report, [tmp_path, "--out"], "folder"),
    (judge, [*a_and_b, "--judge", "recorded:x.jsonl", "--out"], "folder"),
    (judge, [*a_and_b, "--out", tmp_path / "judged", "--judge"], "sheet"),
    (plan, ["--config", config, "--topology", "cpu:1", "--json"], "file"),
    (preview, ["--config", config, "--workdir"], "folder"),
  ]


@pytest.mark.parametrize("number", range(7))
def test_a_place_that_cannot_be_written(tmp_path, answers, number):
  command, args, kind = arguments(tmp_path, answers)[number]
  before = commands.contents(tmp_path)

  def place(path):
    return f"people:{path}" if kind == "sheet" else path

  message = refused(command, *args, place(answers / "below" / "it"))
  assert str(answers / "below" / "it") in message and "Not a directory" in message
  other = answers if kind == "folder" else tmp_path
  message = refused(command, *args, place(other))
  wanted = "folder" if kind == "folder" else "file"
  assert str(other) in message and f"name a {wanted}" in message
  assert commands.contents(tmp_path) == before


def test_a_prompt_that_is_longer_than_the_model(tmp_path, answers):
  """256 positions: a longer prompt is refused, a longer answer is said to be one."""
  args = ["--model", TINY12, "--max_new_tokens", 8]
  assert "max_position_embeddings of the model is 256" in refused(
    generate, *args, "--prompt", "neno " * 300
  )
  answers.write_text(json.dumps({"id": "long", "prompt": "neno " * 300}) + "\n")
  message = refused(generate, *args, "--prompts", answers, "--out", tmp_path / "out.jsonl")
  assert "the prompt 'long' has" in message and not (tmp_path / "out.jsonl").exists()


def test_answers_past_the_end():
  assert generate.past_the_end([250, 256], 256) == ""
  assert generate.past_the_end([250, 900], None) == ""
  assert "1 of 2 answers go past the 256 positions" in generate.past_the_end([257, 256], 256)


def test_questions_of_a_run_past_the_end(tmp_path):
  """Of answers it is said before the run begins; a question that is too long is refused."""
  base = (f"c.model.path, c.model.sizes = {str(TINY12)!r}, {{}}", "c.tokenizer.path = ''")
  lines = (*base, "c.batch.rows = 8", "c.eval.max_new_tokens = 250")
  config = commands.write_config(tmp_path, *lines)
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(train.Job, "run", lambda *_: None)
    code, out, err = commands.here(train, "--config", config, "--workdir", tmp_path / "run")
  assert code == 0 and "eval.max_new_tokens is 250, but the model has 256 positions" in out + err
  rows = tmp_path / "long.jsonl"
  rows.write_text(json.dumps(dict(lang="sw", prompt="neno " * 300, completion="Ndiyo.")) + "\n")
  config = commands.write_config(
    tmp_path, *lines, "c.batch.max_length = 1024", f"c.eval.sets = {{'long': [{str(rows)!r}]}}"
  )
  assert "evaluation set 'long'" in refused(
    train, "--config", config, "--workdir", tmp_path / "other"
  )
