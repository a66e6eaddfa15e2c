import json

import pytest

from mlit_jax import evaluate
from tests import commands

SW = "Ni vizuri kutembelea jumba la makumbusho asubuhi, wakati watu ni wachache."
FI = "Museossa kannattaa käydä aamulla, koska silloin kävijöitä on vähemmän."
EN = "It is best to visit the museum in the morning, when there are fewer people."


def answer(i, lang, response, **more):
  return {"id": f"a{i}", "lang": lang, "prompt": f"p{i}", "response": response} | more


@pytest.fixture
def answers_file(tmp_path):
  def write(*rows, name="chat.jsonl"):
    path = tmp_path / name
    lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    path.write_text("\n".join(lines) + "\n", "utf-8")
    return path

  return write


ROWS = [
  answer(1, "sw", SW, stopped=True),
  answer(2, "swh", EN, stopped=False),
  answer(1, "fi", FI),
  answer(2, "fin_Latn", ""),
  answer(3, "fi", f"{FI}\n{EN}"),
  answer(4, "fi", "p4"),
]


def test_existing_answers_are_scored_without_a_model(answers_file, tmp_path):
  out = tmp_path / "out"
  code, shown, err = commands.here(evaluate, "--answers", answers_file(*ROWS), "--out", out)
  assert code == 0, err
  figures = json.loads((out / "summary.json").read_text("utf-8"))
  assert figures["chat"]["sw"]["fidelity"]["value"] == 0.5
  assert figures["chat"]["fi"]["fidelity"]["value"] == 0.25
  assert figures["chat"]["fi"]["coverage"]["value"] == 0.5
  assert figures["chat"]["sw"]["stopped"]["value"] == 0.5
  assert figures["chat"]["worst"]["fidelity"]["lang"] == "fi"
  assert sorted(p.name for p in out.iterdir()) == ["chat.json", "summary.json", "verdicts.jsonl"]
  verdicts = [json.loads(line) for line in (out / "verdicts.jsonl").read_text("utf-8").splitlines()]
  assert [(v["id"], v["lang"], v["right"]) for v in verdicts] == [
    (row["id"], row["lang"][:2], i in (0, 2)) for i, row in enumerate(ROWS)
  ]
  assert (verdicts[4]["why"], verdicts[4]["line"], verdicts[4]["quote"]) == ("mixed lines", 2, EN)
  plain = " ".join(shown.split())
  assert "fi 25%: 3 of 4 failed (empty 1, mixed lines 1, too short 1)" in plain
  assert "sw 50%: 1 of 2 failed (wrong language en 1); lingua" in plain
  assert "own accuracy on sentences of the language: 99." in plain and "coverage" in plain


def test_the_published_rates_beside_ours(answers_file, tmp_path):
  words = tmp_path / "words"
  words.write_text("museum\n", "utf-8")
  empty = answers_file(answer(1, "fi", ""), answer(1, "ru", ""), name="empty.jsonl")
  args = (
    "--answers",
    answers_file(*ROWS),
    empty,
    "--reference",
    "--words",
    words,
    "--out",
    tmp_path,
  )
  code, shown, err = commands.here(evaluate, *args)
  assert code == 0, err
  rates = json.loads((tmp_path / "line_and_word_pass_rates.json").read_text("utf-8"))
  assert rates["chat"]["fi"] == {"acc": 0.75, "lpr": 0.5, "n": 4, "skipped": 0.5}
  assert rates["chat"]["sw"]["lpr"] == 0.5
  assert rates["empty"]["all"] == {
    "acc": 1.0, "lpr": 1.0, "wpr": 1.0, "lcpr": 1.0, "n": 2, "skipped": 1.0,
  }  # fmt: skip
  figures = json.loads((tmp_path / "summary.json").read_text("utf-8"))
  assert figures["empty"]["mean"]["fidelity"]["value"] == 0.0
  assert "line_pass" not in figures["empty"]["mean"]
  assert "skipped" in shown and "100.0%" in shown


def test_only_some_languages(answers_file, tmp_path):
  args = ("--answers", answers_file(*ROWS), "--out", tmp_path, "--languages", "sw")
  code, _, err = commands.here(evaluate, *args)
  assert code == 0, err
  assert set(json.loads((tmp_path / "summary.json").read_text("utf-8"))["chat"]) == {
    "sw",
    "mean",
    "worst",
  }


@pytest.mark.parametrize(
  "rows, args, parts",
  [
    ([], [], ["chat.jsonl", "no answer"]),
    (["{"], [], ["chat.jsonl:1", "broken JSON"]),
    (["[1]"], [], ["chat.jsonl:1", "1 is no object"]),
    ([ROWS[0], {"id": "a", "lang": "fi"}], [], ["chat.jsonl:2", "response"]),
    ([answer(1, "klingonese", FI)], [], ["chat.jsonl:1", "klingonese"]),
    ([ROWS[0], answer(1, "swh", SW)], [], ["chat.jsonl:2", "'a1'", "line 1"]),
    (ROWS, ["--languages", "de"], ["--languages de", "chat.jsonl"]),
    (ROWS, ["--lid", "lid.176"], ["--lid", "lid.176", "lingua"]),
    (ROWS, ["--lid", "nowhere.bin"], ["--lid", "nowhere.bin"]),
    (ROWS, ["--reference", "--words", "nowhere"], ["--words nowhere"]),
    (ROWS, ["--model", "x"], ["--answers", "--model"]),
    ([answer(1, "ig", FI)], [], ["'ig'"]),
  ],
)
def test_what_a_user_can_get_wrong(rows, args, parts, answers_file, tmp_path):
  out = tmp_path / "out"
  code, shown, err = commands.here(evaluate, "--answers", answers_file(*rows), "--out", out, *args)
  assert code == 2, shown + err
  assert err.startswith("error: ") and err.count("\n") == 1
  assert all(part in err for part in parts), err
  assert not out.exists()


def test_a_model_or_answers_must_be_named(tmp_path):
  code, _, err = commands.here(evaluate, "--out", tmp_path)
  assert code == 2 and "--model" in err and "--answers" in err


def test_out_is_a_file(answers_file):
  path = answers_file(*ROWS)
  code, _, err = commands.here(evaluate, "--answers", path, "--out", path)
  assert code == 2 and f"--out {path}" in err


def test_two_files_of_one_name(answers_file, tmp_path):
  path = answers_file(*ROWS)
  code, _, err = commands.here(evaluate, "--answers", path, path, "--out", tmp_path / "out")
  assert code == 2 and "'chat'" in err
