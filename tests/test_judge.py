"""The command: what it writes, what it refuses, and that nothing is lost or judged twice."""

import argparse
import functools
import json
import shutil
import signal
import threading
import time
import zlib
from unittest import mock

import jax
import numpy as np
import pytest
from safetensors.numpy import save_file

import mlit_jax
from mlit_jax import judge
from mlit_jax import mesh as meshes
from mlit_jax.training.console import Terminal
from tests import commands
from tests.evals.judging.serving import Served

ASSETS = commands.ROOT / "mlit_jax" / "assets"
LANGUAGES = ("he", "sw", "zh")
ROWS = 5
SHORT = "{question}\n@@\n{answer_a}\n@@\n{answer_b}\n=====\nMark?\n"


@functools.cache
def bundled(lang):
  lines = (ASSETS / "instructions12" / "eval" / f"{lang}.jsonl").read_text(encoding="utf-8")
  return [json.loads(line) for line in lines.splitlines()]


def answers(response, languages=LANGUAGES, rows=ROWS, model="m"):
  """Answers to bundled prompts; response(row, i) -> text."""
  return [
    {"id": row["group_id"], "lang": lang, "prompt": row["prompt"], "response": response(row, i)}
    | {"model": model}
    for lang in languages
    for i, row in enumerate(bundled(lang)[:rows])
  ]


def good(row, i):
  return row["completion"]


def fair(row, i):
  """Half of a good answer, in its language."""
  return row["completion"][: len(row["completion"]) // 2]


def english(row, i):
  return " ".join(r["completion"] for r in bundled("en")[i : i + 3])


@pytest.fixture(scope="module", autouse=True)
def one_device():
  """A model this small on eight devices spends its time between them."""
  mesh = meshes.make_mesh(1, 1, 1, devices=jax.devices()[:1])
  with mock.patch.object(judge, "whole_mesh", lambda: mesh), mock.patch.object(judge, "ROWS", 2):
    yield


@pytest.fixture
def files(tmp_path):
  """files(a=rows, b=rows) -> [--a, PATH, --b, PATH]."""

  def files(**rows_of):
    words = []
    for name, rows in rows_of.items():
      path = tmp_path / f"{name}.jsonl"
      lines = [json.dumps(row, ensure_ascii=False) for row in rows]
      path.write_text("\n".join(lines) + "\n", encoding="utf-8")
      words += [f"--{name}", path]
    return words

  return files


@pytest.fixture
def template(tmp_path):
  path = tmp_path / "short.txt"
  path.write_text(SHORT)
  return path


def shown(messages):
  """(question, first answer, second answer) as they stand in the short template, codes removed."""
  parts = messages[-1]["content"].partition("\n\nMark?")[0].split("\n@@\n")
  return ["\n".join(part.split("\n")[1:-1]) for part in parts]


def prefers_long(messages):
  _, first, second = shown(messages)
  return f"[[{'C' if len(first) == len(second) else 'A' if len(first) > len(second) else 'B'}]]"


def ok(*args):
  code, out, err = commands.here(judge, *args)
  assert code == 0, out + err
  return out


def refused(*args):
  code, out, err = commands.here(judge, *args)
  assert code == 2, out + err
  assert err.startswith("error: ") and err.count("\n") == 1 and "Traceback" not in out + err, err
  return err


def summary(folder):
  return json.loads((folder / "summary.json").read_text())["judging"]


def lines_of(path):
  return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n")[:-1]]


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
  page = (out / "report.md").read_text(encoding="utf-8")
  assert "| sw | 4 | 100.0" in page and "tie 0.5" in page
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


# --- a local model


@pytest.fixture(scope="module")
def says_a(tmp_path_factory):
  """A real model, made by hand: after <|assistant|> comes A, after A the end."""
  folder = tmp_path_factory.mktemp("says_a")
  for path in (ASSETS / "base12").iterdir():
    if path.suffix != ".safetensors":
      shutil.copy(path, folder)
  config = json.loads((folder / "config.json").read_text())
  config |= {"tie_word_embeddings": False, "num_hidden_layers": 1, "dtype": "float32"}
  config |= {"max_position_embeddings": 4096}
  (folder / "config.json").write_text(json.dumps(config))
  width, heads, pairs = config["hidden_size"], 6 * 32, 3 * 32
  ask, a, end = 6, 4897, 7
  embed, head = np.zeros((2, config["vocab_size"], width), np.float32)
  embed[:, 0] = 1
  embed[ask], embed[a] = np.eye(width, dtype=np.float32)[[1, 2]]
  head[a, 1] = head[end, 2] = 1
  zeros = {"q_proj": (heads, width), "k_proj": (pairs, width), "v_proj": (pairs, width)}
  layer = "model.layers.0."
  tensors = {f"{layer}self_attn.{k}.weight": np.zeros(v, np.float32) for k, v in zeros.items()}
  tensors[f"{layer}self_attn.o_proj.weight"] = np.zeros((width, heads), np.float32)
  for name, shape in {"gate": (512, width), "up": (512, width), "down": (width, 512)}.items():
    tensors[f"{layer}mlp.{name}_proj.weight"] = np.zeros(shape, np.float32)
  for name in (f"{layer}input_layernorm", f"{layer}post_attention_layernorm", "model.norm"):
    tensors[f"{name}.weight"] = np.ones(width, np.float32)
  tensors |= {"model.embed_tokens.weight": embed, "lm_head.weight": head}
  save_file(tensors, folder / "model.safetensors", {"format": "pt"})
  return folder


def test_a_local_model_that_follows_the_order_scores_parity(tmp_path, files, says_a):
  """It always says A: 50 everywhere, consistency 0, first slot 1. The second run asks nothing."""
  words = files(a=answers(good, rows=1), b=answers(fair, rows=1))
  words += ["--judge", f"model:{says_a}", "--max_new_tokens", 4, "--rubric_language", "en"]
  out = tmp_path / "out"
  assert "6 to judge" in ok(*words, "--out", out)
  for lang in LANGUAGES:
    figures = summary(out)[lang]
    assert figures["win_score"]["value"] == 50 and figures["tie_rate"]["value"] == 1
    assert figures["order_consistency"]["value"] == 0 and figures["first_slot_rate"]["value"] == 1
    assert figures["invalid_rate"]["value"] == 0
  before = commands.contents(out)
  assert "0 to judge" in ok(*words, "--out", out)
  assert commands.contents(out) == before
  # The name of a folder does not say what is in it: other weights are another judge.
  changed = tmp_path / "changed"
  shutil.copytree(says_a, changed)
  from safetensors.numpy import load_file

  tensors = load_file(changed / "model.safetensors")
  tensors["lm_head.weight"][4897, 1] = 2
  save_file(tensors, changed / "model.safetensors", {"format": "pt"})
  words[words.index(f"model:{says_a}")] = f"model:{changed}"
  assert "6 to judge" in ok(*words, "--out", out)


def test_a_prompt_that_a_local_model_cannot_hold_is_refused(tmp_path, files):
  words = files(a=answers(good, rows=1), b=answers(fair, rows=1))
  err = refused(*words, "--judge", f"model:{ASSETS / 'base12'}", "--out", tmp_path / "out")
  assert "has 256 positions" in err and "--template" in err
  words += ["--judge", f"model:{ASSETS / 'base12'}", "--out", tmp_path / "out"]
  assert "a local judge is greedy" in refused(*words, "--temperature", 1)


# --- a real model behind a real server


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
  """tiny(messages) -> what the bundled base model says, through our engine, and a verdict drawn from it.

  For one prompt of seven it leaves the verdict out.
  """
  folder = tmp_path_factory.mktemp("tiny")
  shutil.copytree(ASSETS / "base12", folder, dirs_exist_ok=True)
  config = json.loads((folder / "config.json").read_text()) | {"max_position_embeddings": 4096}
  (folder / "config.json").write_text(json.dumps(config))
  args = argparse.Namespace(max_new_tokens=6, temperature=0.0, dtype="float32")
  answer, _ = judge.local_model(args, str(folder), Terminal(shown=False))
  lock, known = threading.Lock(), {}

  def tiny(messages):
    key = json.dumps(messages)
    with lock:
      if key not in known:
        (known[key],) = answer([messages])
    said = known[key]
    drawn = zlib.crc32((said + key).encode())
    return said if drawn % 7 == 0 else f"{said}\n[[{'ABC'[drawn % 3]}]]"

  return tiny


def flaky(n):
  """Of ten requests, five meet something else than an answer."""
  return {0: 500, 2: 429, 5: "text", 7: "empty", 8: "closed"}.get(n % 10)


@pytest.fixture
def quick(monkeypatch):
  monkeypatch.setattr("mlit_jax.evals.judging.endpoint.FIRST_WAIT_SECONDS", 0.01)
  monkeypatch.setattr("mlit_jax.evals.judging.endpoint.SAY_SECONDS", 0.0)


def test_a_real_model_behind_a_bad_server(tmp_path, files, template, tiny, quick):
  """The score is that of a server without faults; swapped files give 100 - score."""
  a, b = answers(good, rows=3), answers(fair, rows=3)
  words = ["--yes", "--key_env", "none", "--template", template, "--retries", 12, "--timeout", 20]
  with Served(tiny) as server:
    out = tmp_path / "calm"
    ok(*files(a=a, b=b), "--judge", f"{server.url}#tiny", *words, "--out", out)
  calm, choices = summary(out), {row["choice"] for row in lines_of(out / "verdicts.jsonl")[1:]}
  assert choices >= {"first", "second", "tie"} and calm["mean"]["invalid_rate"]["value"] < 0.5
  stalled = []

  def fault(n):
    if n == 12:
      stalled.append(n)
      return "stall"
    return flaky(n)

  with Served(tiny, fault, stall_seconds=30) as server:
    out = tmp_path / "bad"
    spec = f"{server.url}#tiny"
    shown = ok(*files(a=a, b=b), "--judge", spec, *words, "--timeout", 2, "--out", out)
    assert len(server.asked) > 1.6 * len(server.answered) and stalled
  for trouble in ("HTTP 500", "HTTP 429", "no reply within 2 s", "without choices"):
    assert trouble in shown
  assert summary(out) == calm
  with Served(tiny) as server:
    out = tmp_path / "swapped"
    ok(*files(b=a, a=b), "--judge", f"{server.url}#tiny", *words, "--out", out)
  for lang in (*LANGUAGES, "mean"):
    for metric in ("win_score", "win_score_gated"):
      assert summary(out)[lang][metric]["value"] == pytest.approx(100 - calm[lang][metric]["value"])
    assert summary(out)[lang]["first_slot_rate"] == calm[lang]["first_slot_rate"]


@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGTERM])
def test_killed_and_resumed_gives_the_same_bytes(tmp_path, files, template, tiny, end):
  """And no verdict that was kept is asked for again."""
  words = files(a=answers(good), b=answers(fair))
  words += ["--key_env", "none", "--template", template, "--yes", "--concurrency", 2]
  with Served(tiny) as server:
    ok(*words, "--judge", f"{server.url}#tiny", "--out", tmp_path / "whole")
    whole = sorted(body["messages"][-1]["content"] for body in server.asked)
  with Served(tiny, lambda n: 500 if n % 9 == 0 else None, delay=0.15) as server:
    out = tmp_path / "cut"
    spec = f"{server.url}#tiny"
    process = commands.start("judge", *words, "--judge", spec, "--out", out)
    while not (out / "verdicts.jsonl").exists() or len(lines_of(out / "verdicts.jsonl")) < 8:
      assert process.poll() is None, commands.ended(process)
      time.sleep(0.02)
    process.send_signal(end)
    code, _, err = commands.ended(process)
    assert code == (75 if end == signal.SIGTERM else -9), err
    assert end == signal.SIGKILL or "the same command goes on" in err
    assert not (out / "summary.json").exists()
    kept = lines_of(out / "verdicts.jsonl")[1:]
    assert 7 <= len(kept) < 30
    before = len(server.asked)
    with open(out / "verdicts.jsonl", "ab") as file:
      file.write(b'{"key": "cut off in the mid')
    shown = ok(*words, "--judge", spec, "--out", out)
    assert f"{len(kept)} of 30 verdicts are there; {30 - len(kept)} to judge" in shown
    rows = lines_of(out / "verdicts.jsonl")[1:]
    assert rows[: len(kept)] == kept and len({row["key"] for row in rows}) == len(rows) == 30
    # What was asked for after the restart, first tries and repeats alike, is all that was missing.
    pairs = {(row["lang"], row["id"], row["order"]): row for row in kept}
    asked = [body["messages"] for body in server.asked[before:]]
    again = {places(words)[tuple(shown_to[1:])] for shown_to in map(globals()["shown"], asked)}
    assert not again & pairs.keys() and len(again) == 30 - len(kept)
    assert set(whole) == {body["messages"][-1]["content"] for body in server.asked}
  for name in ("summary.json", "scores.jsonl"):
    assert (out / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def places(words):
  """{(first answer, second answer): (lang, id, order)}."""
  a, b = (lines_of(words[words.index(f"--{side}") + 1]) for side in "ab")
  out = {}
  for x, y in zip(a, b, strict=True):
    out[x["response"], y["response"]] = x["lang"], x["id"], "ab"
    out[y["response"], x["response"]] = x["lang"], x["id"], "ba"
  return out


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
    (["--key_env", "none", "--request", "[1]"], ["--request [1]"]),
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
  assert summary(tmp_path / "out")["mean"]["win_score"] == {
    "value": 50,
    "n": 15,
    "low": 50,
    "high": 50,
  }
  assert json.loads((tmp_path / "out" / "judging.json").read_text())["identical"] == 15


def test_the_verb_is_there():
  from mlit_jax import cli

  assert "judge" in cli.VERBS and mlit_jax.__file__
