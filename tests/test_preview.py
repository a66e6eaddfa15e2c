"""The command as a user calls it: what it prints, the page it writes, and what it refuses."""

import html.parser
import re

import pytest
from commands import contents, here, write_config

from mlit_jax import preview, train
from mlit_jax.preview import _bars

END = "<|end|>"


@pytest.fixture(scope="module")
def printed(tmp_path_factory):
  root = tmp_path_factory.mktemp("preview")
  config = write_config(root, "c.batch.rows = 8")
  code, out, err = here(preview, "--config", config, "--workdir", root / "run", "--rows", "3")
  assert code == 0, err
  return root, config, out


def test_rows_of_every_language_are_printed_with_marks_around_what_is_trained(printed):
  _, _, out = printed
  for title in ("en English: 3 of 16", "sw Swahili: 3 of 4", "zh Chinese: 3 of 4"):
    assert f"── {title} examples" in out
  rows = re.findall(r"<\|assistant\|>⟦(.*?)⟧", out, re.DOTALL)
  assert len(rows) == 9 and all(row.endswith(END) for row in rows)
  assert out.count("⟦") == out.count("⟧") == 9
  assert "\x1b" not in out  # no colour where it cannot be seen


def test_the_plan_and_the_figures_follow(printed):
  _, _, out = printed
  assert "plan " in out and "text as tokens" in out and "bytes/token" in out and "x en" in out
  assert out.count("warning:") == 1
  assert "warning: rows longer than batch.max_length (128) are dropped or cut: " in out


def test_the_page_has_the_same_and_needs_nothing_else(printed):
  root, _, out = printed
  text = (root / "run" / "preview.html").read_text(encoding="utf-8")
  html.parser.HTMLParser().feed(text)
  assert not re.search(r"(src|href)=\"(?!#)", text) and "<script" not in text
  trained = "".join(re.findall(r"<b[ >].*?</b>", text))
  first = re.search(r"<\|assistant\|>⟦(.*?)⟧", out, re.DOTALL)[1]
  plain = re.sub(r"<[^>]+>", "", trained)
  assert first.replace(END, "").strip()[:20] in plain.replace("&#x27;", "'").replace("&quot;", '"')
  assert text.count('class="row"') == 9 and text.count('class="bars"') == 3
  assert 'lang="zh"' in text and "&lt;|end|&gt;" in text


def test_training_goes_on_in_the_same_workdir_with_the_same_cache(printed):
  root, config, _ = printed
  before = {k: v for k, v in contents(root / "run").items() if k.startswith("cache/")}
  code, out, err = here(
    train, "--config", config, "--workdir", root / "run", "--config.eval.at_start=False",
    "--config.mesh.fsdp=4", "--config.mesh.tensor=2", "--config.epochs=0", "--config.steps=3",
    "--config.eval.every_steps=0", "--config.eval.generate_rows=0",
  )  # fmt: skip
  assert code == 0, err
  after = {k: v for k, v in contents(root / "run").items() if k.startswith("cache/")}
  assert before and before == after and "tokenise" not in out


def test_languages_rows_and_characters_can_be_chosen(printed):
  root, config, _ = printed
  code, out, _ = here(
    preview, "--config", config, "--workdir", root / "run", "--rows", 1, "--languages", "swa",
    "--max_characters", 40,
  )  # fmt: skip
  assert code == 0
  assert (
    len(re.findall("^── ", out, re.MULTILINE)) == 1
    and "sw Swahili: 1 of 4" in out
    and "more characters" in out
  )


@pytest.mark.parametrize(
  "arguments, says",
  [
    (["--languages", "fi"], "--languages fi: the plan has no rows of it; it has en, sw, zh"),
    (["--languages", "klingonese"], "'klingonese' is not a language"),
    (["--rows", "-1"], "--rows is -1"),
    (["--config.data.mixture={'counts': {'en': 10000}}"], "10000"),
    (["--config.data.mixtures={}"], "data.mixture"),
  ],
)
def test_bad_input_is_one_line_and_exit_2(printed, arguments, says):
  root, config, _ = printed
  code, _, err = here(preview, "--config", config, "--workdir", root / "run", *arguments)
  assert code == 2 and says in err and err.count("error:") == 1


def test_bars_show_every_bin_that_has_rows():
  assert _bars((0, 1, 1000, 500)) == " ▁█▄"
