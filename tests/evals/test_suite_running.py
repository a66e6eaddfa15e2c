"""Suites on a real (small) model: choices against transformers by hand, answers against the generator."""

import dataclasses
import math
from pathlib import Path

import jax
import numpy as np
import pytest

import mlit_jax
from mlit_jax.data.tokenizer import Tokenizer
from mlit_jax.errors import UserError
from mlit_jax.evals.evaluator import Evaluator
from mlit_jax.evals.suites.running import choice_records, encode_choices
from mlit_jax.evals.suites.suite import Item, Suite, ask
from mlit_jax.evals.summary import summarise
from mlit_jax.opening import open_model, whole_mesh
from mlit_jax.training.console import Terminal

BASE = Path(mlit_jax.__file__).parent / "assets" / "tiny12"
TEXTS = {
  "en": ("The cat sat on the", (" mat.", " mountain of the moon.")),
  "ru": ("Кошка сидела на", (" окне.", " луне и пела.")),
  "ar": ("جلست القطة على", (" الكرسي.", " القمر.")),
  "he": ("החתול ישב על", (" הכיסא.", " הירח.")),
  "hi": ("बिल्ली बैठी थी", (" कुर्सी पर।", " चाँद पर।")),
  "zh": ("猫坐在", ("椅子上。", "月亮上。")),
}


@pytest.fixture(scope="module")
def model():
  return open_model(str(BASE), whole_mesh(), Terminal(shown=False))


def choosing(chat):
  items = [
    Item(lang, lang, ask(question), choices, i % 2, "cat")
    for i, (lang, (question, choices)) in enumerate(TEXTS.items())
  ]
  return Suite("cats", items, measure=(), chat=chat)


@pytest.mark.parametrize("chat", [True, False])
def test_choices_are_as_likely_as_transformers_says(model, chat):
  torch = pytest.importorskip("torch")
  transformers = pytest.importorskip("transformers")
  theirs = transformers.AutoModelForCausalLM.from_pretrained(BASE, dtype=torch.float32)
  tokenizer = transformers.AutoTokenizer.from_pretrained(BASE)
  suite = choosing(chat)
  evaluator = Evaluator(
    model.cfg, whole_mesh(), model.tokenizer, [], rows=8, max_new_tokens=4, dtype=np.float32, suites=[suite]
  )  # fmt: skip
  choices = evaluator.suites[0].choices
  from mlit_jax.evals import likelihood

  batches = choices.rows.batches(8, evaluator.num_segments)
  scores = likelihood.score(model.params, evaluator.score_step, batches, range(12))
  row = 0
  for item in suite.items:
    for choice in item.choices:
      if chat:
        messages = [dataclasses.asdict(m) for m in item.messages]
        before = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
      else:
        before = "<s>" + item.prompt
      text = before + choice
      found = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
      ids = torch.tensor([found["input_ids"]])
      with torch.no_grad():
        logp = torch.log_softmax(theirs(ids).logits[0].double(), -1)
      start = len(before) + len(choice) - len(choice.lstrip())
      mine = [i for i, (a, b) in enumerate(found["offset_mapping"]) if b > start]
      nll = -sum(float(logp[i - 1, ids[0, i]]) for i in mine)
      assert scores[row][0] == pytest.approx(nll, rel=1e-4), (item.lang, choice)
      assert scores[row][1] == len(mine)
      row += 1


def test_the_likeliest_choice_is_taken_and_a_tie_is_a_miss(model):
  items = [Item("1", "en", ask("?"), ("aa", "bbbb"), 1), Item("2", "en", ask("?"), ("cc", "d"), 0)]
  choices = encode_choices(Suite("s", items), model.tokenizer, 128)

  def hits(*nll):
    records = choice_records(choices, {i: (x, 1.0) for i, x in enumerate(nll)})
    return [tuple(r.scores.values()) for r in records]

  # (accuracy, accuracy per byte): "bbbb" of 4 bytes costs 3.0, so 0.75 a byte; "aa" 1.0.
  assert hits(2.0, 3.0, 1.0, 5.0) == [(False, True), (True, True)]
  assert hits(2.0, 1.0, 1.0, 1.0) == [(True, True), (False, True)]
  assert hits(math.nan, 1.0, math.nan, 1.0) == [(False, False), (False, False)]


def test_a_prompt_too_long_loses_its_beginning_for_all_choices_alike(model):
  item = Item("1", "en", ask("old words " * 60 + "the end"), ("one", "another one"), 0)
  short = encode_choices(Suite("s", [item], chat=False), model.tokenizer, 64).rows.encoded
  assert short.lengths.max() == 64 and short.tokens[0] == model.tokenizer.bos_id
  texts = [model.tokenizer.decode(short.tokens_of(i)) for i in (0, 1)]
  assert texts[0].endswith("the end" + "one") and texts[1].endswith("the end" + "another one")
  assert texts[0].removesuffix("one") == texts[1].removesuffix("another one")
  with pytest.raises(UserError, match="longer than the 8 tokens"):
    encode_choices(
      Suite("s", [Item("1", "en", ask("?"), ("a", "long " * 40), 0)]), model.tokenizer, 8
    )


def test_answers_are_those_of_the_generator_and_are_scored(model):
  items = [Item(lang, lang, ask(text), (), "mat", "cat") for lang, (text, _) in TEXTS.items()]
  suite = Suite(
    "open", items, lambda item, r: {"length": len(r), "asked": item.lang == "en"}, ("fidelity", "stopped", "chrf"),
    max_new_tokens=6,
  )  # fmt: skip
  evaluator = Evaluator(
    model.cfg, whole_mesh(), model.tokenizer, [], rows=8, max_new_tokens=99, dtype=np.float32, suites=[suite]
  )  # fmt: skip
  figures, records = evaluator.run(model.params)
  assert {r.lang for r in records} == set(TEXTS) and all(r.response_tokens <= 6 for r in records)
  by_lang = figures["open"]
  assert {"fidelity", "coverage", "stopped", "chrf", "length", "asked"} <= set(by_lang["en"])
  assert "exact" not in by_lang["en"]
  assert by_lang["en"]["length"]["value"] == len(
    next(r.response for r in records if r.lang == "en")
  )
  assert by_lang["mean"]["asked"]["value"] == pytest.approx(1 / 6)
  assert by_lang["worst"]["asked"]["value"] == 0.0
  assert by_lang["en"]["asked"]["low"] == pytest.approx(0.2065, abs=1e-3)  # Wilson, 1 of 1
  again, _ = evaluator.run(model.params)
  assert again == figures


def test_a_stop_string_of_the_suite_ends_an_answer(model):
  """Cut at a piece of what the model says of itself: before it, and counted as stopped."""

  def answers(stop):
    suite = Suite("s", items, None, ("stopped",), max_new_tokens=12, stop=stop)
    evaluator = Evaluator(
      model.cfg, whole_mesh(), model.tokenizer, [], rows=8, max_new_tokens=99, dtype=np.float32, suites=[suite]
    )  # fmt: skip
    return evaluator.run(model.params)[1]

  items = [Item(lang, lang, ask(text)) for lang, (text, _) in TEXTS.items()]
  whole = answers(())
  long = next(r for r in whole if len(r.response) > 4)
  stop = long.response[2:4]
  for before, after in zip(whole, answers((stop,)), strict=True):
    found = before.response.find(stop)
    if found < 0:
      assert after == before
    else:
      assert (after.response, after.stopped) == (before.response[:found], True)
      assert after.response_tokens < before.response_tokens


def test_a_score_that_is_no_number_is_refused(model):
  suite = Suite(
    "bad", [Item("1", "en", ask("?"))], lambda item, r: {"x": "y"}, (), max_new_tokens=1
  )
  evaluator = Evaluator(
    model.cfg, whole_mesh(), model.tokenizer, [], rows=8, max_new_tokens=1, dtype=np.float32, suites=[suite]
  )  # fmt: skip
  with pytest.raises(UserError, match="the suite bad scores en/1 x = 'y'"):
    evaluator.run(model.params)


def test_scores_of_suites_are_summed_up_beside_the_others():
  from mlit_jax.evals.summary import Record

  records = [
    Record("s", lang, str(i), scores={"f1": value, "hit": value > 0.4})
    for lang in ("en", "sw")
    for i, value in enumerate([0.0, 0.5, 1.0])
  ]
  figures = summarise(records)["s"]
  assert figures["en"]["f1"]["value"] == 0.5 and figures["en"]["hit"]["value"] == pytest.approx(
    2 / 3
  )
  assert figures["mean"]["hit"]["n"] == 6 and figures["worst"]["f1"]["lang"] == "en"


def test_the_model_is_on_the_mesh(model):
  assert len(jax.devices()) == 8
  assert isinstance(model.tokenizer, Tokenizer)
