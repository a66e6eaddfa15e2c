"""The command on the bundled base model."""

import json
import socket

import pytest

from mlit_jax import generate
from tests import commands

BASE = commands.ROOT / "mlit_jax" / "assets" / "tiny12"
PROMPTS = [
  {"id": 1, "lang": "sw", "prompt": "Kwa nini anga ni la bluu?"},
  {"id": 1, "lang": "zh", "prompt": "为什么天是蓝的？请用一句话回答。"},
  {"id": "c", "lang": "uk", "messages": [{"role": "user", "content": "Чому небо синє?"}]},
  {"id": "d", "lang": "en", "prompt": "Why is the sky blue? " * 5},
  {"id": "e", "lang": "ar", "prompt": "لماذا السماء زرقاء؟"},
]
SAMPLED = ("--temperature", 0.9, "--top_k", 200, "--min_p", 0.001, "--seed", 5)


def write(path, rows):
  path.write_text("".join(json.dumps(r, ensure_ascii=False) + "\n" for r in rows), "utf-8")
  return path


def arguments(folder, rows, *more):
  prompts, out = write(folder / "prompts.jsonl", rows), folder / "answers.jsonl"
  args = ["--model", BASE, "--prompts", prompts, "--out", out, "--max_new_tokens", 16, *more]
  return args, out


def answers(path):
  return [json.loads(line) for line in path.read_text("utf-8").split("\n")[:-1]]


def answered(folder, rows, *more):
  args, out = arguments(folder, rows, *more)
  code, text, err = commands.here(generate, *args)
  assert code == 0, err
  assert text == f"{len(rows)} answers in {out}\n"
  return answers(out)


@pytest.fixture(scope="module")
def sampled(tmp_path_factory):
  return answered(tmp_path_factory.mktemp("sampled"), PROMPTS, *SAMPLED)


def test_answers_stand_in_the_order_of_their_prompts_and_do_not_depend_on_it(sampled, tmp_path):
  assert [(r["id"], r["lang"]) for r in sampled] == [(r["id"], r["lang"]) for r in PROMPTS]
  assert len({r["response"] for r in sampled}) == len(PROMPTS)
  some = [3, 1, 0]
  assert answered(tmp_path, [PROMPTS[i] for i in some], *SAMPLED) == [sampled[i] for i in some]


def test_a_stop_string_ends_answers(sampled, tmp_path):
  stops = [sampled[0]["response"][4:7], sampled[3]["response"][-2:]]
  cut = answered(tmp_path, PROMPTS, *SAMPLED, "--stop", stops[0], "--stop", stops[1])
  for row, whole in zip(cut, sampled, strict=True):
    places = [whole["response"].find(s) for s in stops if s in whole["response"]]
    assert row["response"] == (whole["response"][: min(places)] if places else whole["response"])
    assert row["stopped"] == (whole["stopped"] or bool(places))
  assert cut[0]["tokens"] < sampled[0]["tokens"]


@pytest.mark.parametrize(
  "bad, words",
  [
    (("--top_k", -1), "top_k is -1"),
    (("--min_p", 2), "min_p is 2.0"),
    (("--stop", ""), "stop strings"),
    (("--max_new_tokens", 0), "max_new_tokens is 0"),
  ],
)
def test_values_out_of_range_end_with_one_message(tmp_path, bad, words):
  args, out = arguments(tmp_path, PROMPTS, *bad)
  code, _, err = commands.here(generate, *args)
  assert code == 2 and words in err and "Traceback" not in err
  assert not out.exists()


@pytest.mark.slow
def test_two_processes_answer_as_one(sampled, tmp_path):
  """Two devices each, the rows spread over all four."""
  args, out = arguments(tmp_path, PROMPTS, *SAMPLED)
  with socket.socket() as s:
    s.bind(("localhost", 0))
    address = f"localhost:{s.getsockname()[1]}"
  both = [
    commands.start(
      "generate",
      *args,
      devices=2,
      JAX_COORDINATOR_ADDRESS=address,
      JAX_NUM_PROCESSES="2",
      JAX_PROCESS_ID=str(i),
    )
    for i in range(2)
  ]
  ends = [commands.ended(p) for p in both]
  assert [code for code, *_ in ends] == [0, 0], ends
  assert answers(out) == sampled
