"""lm-evaluation-harness, the real package, on a real (small) model: numbers against transformers by hand."""

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

import mlit_jax
from mlit_jax.errors import UserError
from mlit_jax.evals.harness import begin, continuation, make_lm, run_harness
from mlit_jax.opening import open_model, whole_mesh
from mlit_jax.training.console import Terminal

BASE = Path(mlit_jax.__file__).parent / "assets" / "tiny12"
PAIRS = [
  ("The cat sat on the", " mat."),
  ("The cat sat on the ", "mat."),  # white space belongs to what follows
  ("Кошка сидела на", " окне."),
  ("猫坐在", "椅子上。"),
  ("", "Habari ya asubuhi."),
]


@pytest.fixture(scope="module")
def model():
  return open_model(str(BASE), whole_mesh(), Terminal(shown=False))


@pytest.fixture(scope="module")
def lm(model):
  pytest.importorskip("lm_eval")
  return make_lm(
    "tiny12",
    model.cfg,
    model.params,
    model.tokenizer,
    whole_mesh(),
    max_length=64,
    dtype=np.float32,
  )


@pytest.fixture(scope="module")
def theirs():
  torch = pytest.importorskip("torch")
  transformers = pytest.importorskip("transformers")
  model = transformers.AutoModelForCausalLM.from_pretrained(BASE, dtype=torch.float32)

  def logp(ids):
    with torch.no_grad():
      return torch.log_softmax(model(torch.tensor([ids])).logits[0].double(), -1).numpy()

  return logp


def asked(*args):
  return [SimpleNamespace(args=a) for a in args]


def test_continuations_are_as_likely_as_transformers_says(lm, model, theirs):
  found = lm.loglikelihood(asked(*PAIRS))
  for (context, text), (logp, greedy) in zip(PAIRS, found, strict=True):
    ids, mask = continuation(model.tokenizer, context, text, 64)
    rows = theirs(ids.tolist())
    mine = np.flatnonzero(mask)
    wanted = sum(rows[i - 1, ids[i]] for i in mine)
    assert logp == pytest.approx(wanted, rel=1e-4), (context, text)
    assert greedy == all(rows[i - 1].argmax() == ids[i] for i in mine)
  assert found[0] == found[1]


def test_what_is_masked_is_the_continuation(model):
  tokenizer = model.tokenizer
  for context, text in PAIRS:
    ids, mask = continuation(tokenizer, context, text, 64)
    assert not mask[0] and ids[0] == tokenizer.bos_id
    assert tokenizer.decode(ids[mask]).strip() == text.strip()
    assert tokenizer.decode(ids).strip() == (context + text).strip()
  ids, mask = continuation(tokenizer, "word " * 100, " end.", 32)
  assert len(ids) == 32 and tokenizer.decode(ids[mask]).strip() == "end."
  with pytest.raises(UserError, match="longer than a row"):
    continuation(tokenizer, "a", " word" * 100, 32)


def test_greedy_is_said_of_what_the_model_would_write(lm, model):
  (text,) = lm.generate_until(asked(("The cat sat on the", {"until": [], "max_gen_toks": 3})))
  tokens = begin(model.tokenizer, "The cat sat on the")
  written = begin(model.tokenizer, "The cat sat on the" + text)
  if written[: len(tokens)] == tokens and len(written) == len(tokens) + 3:
    assert lm.loglikelihood(asked(("The cat sat on the", text)))[0][1] is True
  assert lm.loglikelihood(asked(("The cat sat on the", " xylophone")))[0][1] is False


def test_a_whole_text_is_scored_once_per_token_in_windows(lm, model, theirs):
  text = "Habari ya asubuhi. " * 30
  (found,) = lm.loglikelihood_rolling(asked((text,)))
  tokens = list(model.tokenizer.encode_text(text))
  assert len(tokens) > 150
  ids, wanted, at = [model.tokenizer.bos_id, *tokens], 0.0, 0
  while at < len(tokens):  # 63 tokens are predicted in a window of 64; one stands before each
    end = min(at + 63, len(tokens))
    start = 0 if at == 0 else end - 63
    rows = theirs(ids[start : end + 1])
    wanted += sum(rows[i - start, ids[i + 1]] for i in range(at, end))
    at = end
  assert found == pytest.approx(wanted, rel=1e-4)


@pytest.mark.slow
def test_answers_are_cut_at_stop_strings_and_lengths(lm):
  prompts = [
    (f"<|user|>{q}<|assistant|>", {"until": ["."], "max_gen_toks": 24}) for q in ("Why?", "Miksi?")
  ]
  whole = lm.generate_until(asked(*((p, {"max_gen_toks": 24}) for p, _ in prompts)))
  cut = lm.generate_until(asked(*prompts))
  assert cut == [w.split(".")[0] for w in whole]
  long, short = lm.generate_until(
    asked(*(("The cat sat on the", {"max_gen_toks": n}) for n in (24, 2)))
  )
  assert long.startswith(short) and 0 < len(short) < len(long)


@pytest.mark.slow
def test_the_package_runs_its_tasks_on_our_model(lm, tmp_path):
  rows = [
    {"q": "Two and two?", "a": "four", "b": "the moon", "right": 0},
    {"q": "Who barks?", "a": "the sea", "b": "a dog", "right": 1},
  ]
  (tmp_path / "rows.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
  (tmp_path / "two.yaml").write_text(f"""task: two_choices
dataset_path: json
dataset_kwargs: {{data_files: {{test: {tmp_path}/rows.jsonl}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{q}}}}"
doc_to_choice: "{{{{[a, b]}}}}"
doc_to_target: right
metric_list: [{{metric: acc}}]
""")
  found = run_harness(lm, ["two_choices"], include=str(tmp_path), chat=True)
  score = found["results"]["two_choices"]["acc,none"]
  prompts = [lm.apply_chat_template([{"role": "user", "content": r["q"]}]) for r in rows]
  pairs = [(p, f"{r[k]}") for p, r in zip(prompts, rows) for k in "ab"]
  by_hand = [x[0] for x in lm.loglikelihood(asked(*pairs))]
  hits = [int(np.argmax(by_hand[2 * i : 2 * i + 2]) == r["right"]) for i, r in enumerate(rows)]
  assert score == pytest.approx(np.mean(hits))
  with pytest.raises(UserError, match="names no_such_task"):
    run_harness(lm, ["no_such_task"])


def test_without_the_package_the_extra_is_named(model, monkeypatch):
  monkeypatch.setitem(sys.modules, "lm_eval.api.model", None)
  monkeypatch.setitem(sys.modules, "lm_eval", None)
  with pytest.raises(UserError, match="pip install"):
    make_lm("m", model.cfg, model.params, model.tokenizer, whole_mesh(), max_length=8)
