"""The command: what it writes and what it refuses."""

import json
from unittest import mock

import pytest

from mlit_jax import judge
from tests import commands
from tests.evals.judging.answered import (
  LANGUAGES,
  ROWS,
  SHORT,
  answers,
  english,
  fair,
  good,
  lines_of,
  ok,
  prefers_long,
  refused,
  summary,
)
from tests.evals.judging.serving import Served, flaky

# --- verdicts that are there already


def record(path, choices):
  """choices: {(lang, id): (choice in ab, choice in ba)}."""
  rows = [
    {"id": id, "lang": lang, "order": order, "choice": choice}
    for (lang, id), both in choices.items()
    for order, choice in zip(("ab", "ba"), both, strict=True)
  ]
  path.write_text("".join(json.dumps(row) + "\n" for row in rows))
  return f"recorded:{path}"


WIN, LOSS, TIE, BY_SLOT, UNREAD = (
  ("first", "second"), ("second", "first"), ("tie", "tie"), ("first", "first"), (None, "first")
)  # fmt: skip


def test_recorded_verdicts_give_the_score_by_hand(tmp_path, files):
  rows = answers(good)
  truth = {
    "he": [WIN, WIN, LOSS, TIE, BY_SLOT],  # (2 + 0 + 1) / 5
    "sw": [WIN, WIN, WIN, WIN, UNREAD],  # 4 / 4
    "zh": [LOSS, LOSS, TIE, TIE, BY_SLOT],  # 1.5 / 5
  }
  ids = [row["id"] for row in rows[:ROWS]]
  spec = record(
    tmp_path / "v.jsonl",
    {(lang, id): v for lang in LANGUAGES for id, v in zip(ids, truth[lang], strict=True)},
  )
  out = tmp_path / "out"
  shown = ok(*files(a=rows, b=answers(fair)), "--judge", spec, "--out", out)
  got = summary(out)
  value = {lang: {m: f["value"] for m, f in got[lang].items()} for lang in got}
  assert [value[lang]["win_score"] for lang in LANGUAGES] == [60, 100, 30]
  assert [got[lang]["win_score"]["n"] for lang in LANGUAGES] == [5, 4, 5]
  assert value["mean"]["win_score"] == pytest.approx(190 / 3)
  assert (got["worst"]["win_score"]["lang"], value["worst"]["win_score"]) == ("zh", 30)
  assert [value[lang]["tie_rate"] for lang in LANGUAGES] == [0.4, 0, 0.6]
  assert [value[lang]["order_consistency"] for lang in LANGUAGES] == [0.8, 1, 0.8]
  assert [value[lang]["invalid_rate"] for lang in LANGUAGES] == [0, 0.2, 0]
  table = lines_of(out / "scores.jsonl")
  assert len(table) == 15
  assert [row["score"] for row in table if row["lang"] == "sw"].count(None) == 1
  assert {row["group_id"] for row in table} == set(ids)
  assert "60.0" in shown and "zh 30.0" in shown
  assert "1 of 30 verdicts could not be read" in " ".join(shown.split())
  page = (out / "report.md").read_text(encoding="utf-8")
  assert "| sw | 4 | 100.0" in page and "tie 0.5" in page and "v.jsonl`, both orders.\n" in page
  assert json.loads((out / "judging.json").read_text())["prompts"] == 15
  # What was judged can be read again as what was recorded.
  again = tmp_path / "again"
  ok(*files(a=rows, b=answers(fair)), "--judge", f"recorded:{out}/verdicts.jsonl", "--out", again)
  assert (again / "summary.json").read_bytes() == (out / "summary.json").read_bytes()
  assert "on other answers" in refused(
    *files(a=rows, b=answers(english)), "--judge", f"recorded:{out}/verdicts.jsonl", "--out", again
  )


def test_recorded_verdicts_must_be_whole_and_unique(tmp_path, files):
  words = files(a=answers(good), b=answers(fair))
  ids = [row["id"] for row in answers(good)[:ROWS]]
  spec = record(tmp_path / "v.jsonl", {(lang, id): WIN for lang in LANGUAGES for id in ids[1:]})
  err = refused(*words, "--judge", spec, "--out", tmp_path / "out")
  assert "lacks 6 of 30 verdicts, such as he" in err
  spec = record(tmp_path / "v.jsonl", {(lang, id): WIN for lang in LANGUAGES for id in ids})
  (path := tmp_path / "v.jsonl").write_text(path.read_text() + path.read_text().split("\n")[0])
  assert "v.jsonl:31: a second verdict" in refused(*words, "--judge", spec, "--out", tmp_path / "o")
  path.write_text('{"id": "1", "lang": "sw", "order": "ab", "choice": "a"}')
  assert "`choice` is 'a'" in refused(*words, "--judge", spec, "--out", tmp_path / "o")


def test_people_fill_in_a_sheet_and_agree_with_a_judge(tmp_path, files):
  words = files(a=answers(good), b=answers(fair))
  path, out = tmp_path / "sheet.csv", tmp_path / "people"
  assert "30 rows in" in ok(*words, "--judge", f"people:{path}", "--out", out)
  assert not out.exists()
  assert "30 rows have no verdict" in refused(*words, "--judge", f"people:{path}", "--out", out)
  lines = path.read_text(encoding="utf-8-sig").split("\n")
  # All answers are of one line: the verdict is the third cell from the end.
  path.write_text("\n".join([lines[0], *(line.replace(",,,", ",0,,") for line in lines[1:])]))
  ok(*words, "--judge", f"people:{path}", "--out", out)
  assert summary(out)["mean"]["tie_rate"]["value"] == 1
  ids = [row["id"] for row in answers(good)[:ROWS]]
  wins = {(lang, id): WIN for lang in LANGUAGES for id in ids} | {("he", ids[0]): TIE}
  spec = record(tmp_path / "v.jsonl", wins)
  other = tmp_path / "other"
  ok(*words, "--judge", spec, "--out", other, "--agree", out / "scores.jsonl")
  assert summary(other)["he"]["agreement"]["value"] == pytest.approx((1 + 4 * 0.5) / 5)
  assert summary(other)["sw"]["agreement"]["value"] == 0.5
  swapped = files(b=answers(good), a=answers(fair))
  err = refused(*swapped, "--judge", spec, "--out", tmp_path / "x", "--agree", out / "scores.jsonl")
  assert "none of its 15 scored prompts" in err


def test_the_gate_ranks_what_a_judge_of_length_does_not(tmp_path, files, template):
  """Against half answers: English ones, longer, win without the gate and lose with it; empty ones
  and prompts repeated lose; good ones win."""
  models = {
    "good": good,
    "prompt": lambda row, i: row["prompt"],
    "english": english,
    "nothing": lambda row, i: "",
  }
  scores = {}
  with Served(prefers_long) as server:
    for name, response in models.items():
      out = tmp_path / name
      words = files(a=answers(response), b=answers(fair))
      ok(*words, "--judge", f"{server.url}#long", "--yes", "--key_env", "none", "--template", template, "--out", out)  # fmt: skip
      mean = summary(out)["mean"]
      scores[name] = mean["win_score"]["value"], mean["win_score_gated"]["value"]
  assert scores["good"] == (100, 100)
  assert scores["english"] == (100, 0)
  assert scores["nothing"] == (0, 0)
  assert scores["prompt"][1] < 50


def test_people_may_see_each_pair_once(tmp_path, files):
  """One verdict is the score; nothing is said about consistency."""
  words = [*files(a=answers(good), b=answers(fair)), "--people_orders", "one"]
  path, out = tmp_path / "sheet.csv", tmp_path / "out"
  words += ["--judge", f"people:{path}", "--out", out]
  assert "15 rows in" in ok(*words)
  head, *lines = path.read_text(encoding="utf-8-sig").split("\n")
  path.write_text("\n".join([head, *(line.replace(",,,", ",1,,") for line in lines)]))
  ok(*words)
  figures = summary(out)["mean"]
  firsts = [row["winner_ab"] == "a" for row in lines_of(out / "scores.jsonl")]
  assert figures["win_score"]["value"] == pytest.approx(100 * sum(firsts) / 15)
  assert 0 < sum(firsts) < 15 and figures["first_slot_rate"]["value"] == 1
  assert "order_consistency" not in figures and figures["tie_rate"]["value"] == 0
  assert "one order.\n" in (out / "report.md").read_text()


# --- what a user can get wrong


def test_an_endpoint_that_goes_down_loses_nothing(tmp_path, files, template, quick):
  words = files(a=answers(good), b=answers(fair))
  out = tmp_path / "out"
  words += ["--key_env", "none", "--template", template, "--yes", "--out", out, "--retries", 1]
  down = []

  with Served(prefers_long, lambda n: 503 if n > 10 and not down else None) as server:
    spec = f"{server.url}#m"
    err = refused(*words, "--judge", spec, "--concurrency", 2)
    assert "HTTP 503" in err and "goes on from what was judged" in err
    kept = len(lines_of(out / "verdicts.jsonl")) - 1
    assert kept == len(server.answered) == 10
    down.append("no longer")
    ok(*words, "--judge", spec)
    assert len(server.answered) == 30
    # Another template, another judge: other verdicts, beside the old ones.
    template.write_text("Now: " + SHORT)
    assert "30 to judge" in ok(*words, "--judge", spec)
    assert "30 to judge" in ok(*words, "--judge", f"{server.url}#other")
    assert "30 to judge" in ok(*words, "--judge", spec, "--temperature", 0.5)
    assert "0 to judge" in ok(*words, "--judge", spec)
    assert len(lines_of(out / "verdicts.jsonl")) == 1 + 4 * 30


def test_verdicts_of_another_prompt_set_are_refused(tmp_path, files, template):
  out = tmp_path / "out"
  words = ["--key_env", "none", "--template", template, "--yes", "--out", out]
  with Served(prefers_long) as server:
    words += ["--judge", f"{server.url}#m"]
    ok(*files(a=answers(good), b=answers(fair)), *words)
    before = commands.contents(out)
    err = refused(*files(a=answers(good, rows=4), b=answers(fair, rows=4)), *words)
  assert "another prompt set (15 prompts" in err and "have 12" in err and "--out" in err
  assert commands.contents(out) == before


@pytest.mark.parametrize(
  "words, parts",
  [
    ([], ["environment variable OPENAI_API_KEY is not set", "--key_env"]),
    (["--key_env", "none"], ["nobody is there to agree", "--yes"]),
    (["--key_env", "none", "--max_cost", "1"], ["--max_cost needs --price_in"]),
    (["--key_env", "none", "--price_in", "1"], ["belong together"]),
    (
      ["--key_env", "none", "--price_in", "1", "--price_out", "9", "--max_cost", "0.001"],
      ["above --max_cost 0.001"],
    ),
    (["--key_env", "none", "--price_in", "-1", "--price_out", "1"], ["--price_in is -1"]),
    (["--key_env", "none", "--concurrency", "0"], ["--concurrency is 0"]),
    (["--key_env", "none", "--timeout", "0"], ["--timeout is 0"]),
    (["--key_env", "none", "--request", "[1]"], ["--request '[1]'"]),
    (["--key_env", "none", "--request", '{"model": "x"}'], ["without model"]),
    (["--template", "{missing}"], ["template", "cannot be read"]),
    (["--rubric_language", "ka"], ["no rubric in 'ka'"]),
    (["--languages", "fi"], ["--languages fi"]),
    (["--agree", "{missing}"], ["cannot be read"]),
  ],
)
def test_bad_arguments(tmp_path, files, monkeypatch, words, parts):
  monkeypatch.delenv("OPENAI_API_KEY", raising=False)
  words = [str(tmp_path / "missing") if word == "{missing}" else word for word in words]
  answered = files(a=answers(good), b=answers(fair))
  with Served(prefers_long) as server:
    err = refused(*answered, "--judge", f"{server.url}#m", *words, "--out", tmp_path / "out")
    assert not server.asked
  for part in parts:
    assert part in err
  # Nothing that would stand in the way of the next attempt, whatever its prompts.
  left = commands.contents(tmp_path / "out")
  assert left.keys() <= {".lock", "verdicts.jsonl"} and not left.get("verdicts.jsonl")


@pytest.mark.parametrize("reply", ["y", "n"])
def test_someone_is_asked_before_it_costs(tmp_path, files, template, monkeypatch, reply):
  asked = []
  monkeypatch.setattr("sys.stdin", mock.Mock(isatty=lambda: True))
  monkeypatch.setattr("builtins.input", lambda text: asked.append(text) or reply)
  words = [*files(a=answers(good), b=answers(fair)), "--template", template, "--key_env", "none"]
  with Served(prefers_long) as server:
    words += ["--judge", f"{server.url}#m", "--out", tmp_path / "out"]
    if reply == "y":
      assert "30 calls, about" in ok(*words)
    else:
      assert "not judged" in refused(*words)
    assert len(server.asked) == (30 if reply == "y" else 0) and len(asked) == 1


def test_mismatched_ids_and_languages_that_cannot_be_told(tmp_path, files):
  a, b = answers(good), answers(fair)
  spec = ["--judge", "recorded:x", "--out", tmp_path / "out"]
  err = refused(*files(a=a[1:], b=b[:-2]), *spec)
  assert "12 in both, 2 only in" in err and "1 only in" in err and a[0]["id"] in err
  other = [row | {"lang": "bo"} for row in a[:1]], [row | {"lang": "lo"} for row in a[:1]]
  assert "0 in both" in refused(*files(a=other[0], b=other[1]), *spec)
  odd = [row | {"lang": "scn"} for row in a[:1]]
  assert "--gate off" in refused(*files(a=odd, b=odd), *spec)
  assert not (tmp_path / "out").exists()


def test_one_run_at_a_time(tmp_path, files, template):
  out = tmp_path / "out"
  with judge.runtime.locked(out), Served(prefers_long) as server:
    words = [*files(a=answers(good), b=answers(fair)), "--template", template, "--key_env", "none"]
    assert "in use by another run" in refused(*words, "--judge", f"{server.url}#m", "--out", out)


def test_the_key_is_in_no_file(tmp_path, files, template, monkeypatch, quick):
  """Nor on the terminal, though the server says it back."""
  key = "sk-secret-0123456789"
  monkeypatch.setenv("A_KEY", key)
  out = tmp_path / "out"
  words = [*files(a=answers(good, rows=1), b=answers(fair, rows=1)), "--template", template]
  words += ["--yes", "--key_env", "A_KEY", "--out", out]
  with Served(lambda messages: f"You sent {key}. [[A]]", flaky, key=key) as server:
    shown = ok(*words, "--judge", f"{server.url}#m", "--debug")
    assert set(server.keys) == {f"Bearer {key}"}
  assert key not in shown
  assert all(key.encode() not in content for content in commands.contents(out).values())
  with Served(prefers_long, key="another") as server:
    code, shown, err = commands.here(judge, *words, "--judge", f"{server.url}#n", "--debug")
  assert code == 2 and "refuses the key" in err and key not in shown + err


def test_the_same_answer_twice_needs_no_judge(tmp_path, files, template):
  """A model against itself is at parity by definition."""
  with Served(prefers_long) as server:
    words = files(a=answers(good), b=answers(good))
    ok(*words, "--judge", f"{server.url}#m", "--key_env", "none", "--out", tmp_path / "out")
    assert not server.asked
  found = summary(tmp_path / "out")["mean"]["win_score"]
  assert (found["value"], found["n"]) == (50, 15) and found["low"] < 50 < found["high"]
  assert json.loads((tmp_path / "out" / "judging.json").read_text())["identical"] == 15
