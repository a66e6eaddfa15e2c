"""The shipped suites, each on a copy made here in its published shape, and one's own on a page."""

import json
from decimal import Decimal
from pathlib import Path

import pytest
from test_copies import put

from mlit_jax.errors import UserError
from mlit_jax.evals.suites.answering import units
from mlit_jax.evals.suites.opening import SHIPPED, is_suite, open_suite
from mlit_jax.evals.suites.suite import Item, Suite, as_rows, ask, check, metric_names

BELEBELE = {
  "link": "http://x", "question_number": 1, "flores_passage": "Habari ndefu.", "question": "Nani?",
  "mc_answer1": "a", "mc_answer2": "b", "mc_answer3": "c", "mc_answer4": "d", "correct_answer_num": "3",
  "dialect": "swh_Latn",
}  # fmt: skip
MMLU = {
  "sample_id": "abstract_algebra/test/0", "question": "2+2?", "option_a": "1", "option_b": "2", "option_c": "3",
  "option_d": "4", "answer": "D",
}  # fmt: skip
XCOPA = {
  "premise": "那人打开水龙头。",
  "choice1": "厕所里满是水。",
  "choice2": "水流出。",
  "question": "effect",
  "label": 1,
  "idx": 0,
}
STORY = {
  "story_id": "s1", **{f"input_sentence_{i}": f"S{i}." for i in (1, 2, 3, 4)}, "sentence_quiz1": "No.",
  "sentence_quiz2": "Yes.", "answer_right_ending": 2,
}  # fmt: skip


def suite_of(tmp_path, name, file, rows, **options) -> Suite:
  put(tmp_path / "copy", file, rows, **options)
  return open_suite(f"{name}:{tmp_path / 'copy'}")


def test_belebele(tmp_path):
  suite = suite_of(tmp_path, "belebele", "data/swh_Latn.jsonl", [BELEBELE])
  (item,) = suite.items
  assert (item.lang, item.choices, item.answer) == ("sw", ("A", "B", "C", "D"), 2)
  assert item.prompt.startswith("Habari ndefu.\n\nNani?\n\nA. a\nB. b\nC. c\nD. d\n")
  assert metric_names(suite) == ["accuracy", "accuracy_per_byte"] and suite.chat


def test_global_mmlu(tmp_path):
  suite = suite_of(tmp_path, "global_mmlu", "fi/test-00000-of-00001.parquet", [MMLU])
  (item,) = suite.items
  assert (item.lang, item.answer, item.group_id) == ("fi", 3, "abstract_algebra/test/0")


def test_xcopa_goes_on_as_text_with_the_language_s_own_words(tmp_path):
  suite = suite_of(tmp_path, "xcopa", "zh/test.zh.jsonl", [XCOPA])
  (item,) = suite.items
  assert item.prompt + item.choices[1] == "那人打开水龙头所以水流出。" and item.answer == 1
  italian = {
    "premise": "Aprì.",
    "choice1": "Uno.",
    "choice2": "Due.",
    "question": "cause",
    "label": 0,
    "idx": 0,
  }
  suite = suite_of(tmp_path / "it", "xcopa", "it/test.it.jsonl", [italian])
  assert suite.items[0].prompt + suite.items[0].choices[0] == "Aprì perché uno." and not suite.chat


def test_xstorycloze(tmp_path):
  suite = suite_of(tmp_path, "xstorycloze", "sw/eval-00000-of-00001.parquet", [STORY])
  (item,) = suite.items
  assert item.prompt + item.choices[item.answer] == "S1. S2. S3. S4. Yes."


def test_sib200(tmp_path):
  row = [["7", "sports", "Mbio."]]
  suite = suite_of(
    tmp_path, "sib200", "swh_Latn/test.tsv", row, columns=["index_id", "category", "text"]
  )
  (item,) = suite.items
  assert item.choices[item.answer] == "sports" and item.prompt.endswith("\n\nMbio.")


@pytest.mark.parametrize(
  "response, correct",
  [("Kwa hiyo jibu ni 1,200.", True), ("1200 au 7", False), ("", False), ("mia mbili", False)],
)
def test_mgsm(tmp_path, response, correct):
  suite = suite_of(tmp_path, "mgsm", "mgsm_sw.tsv", [["Ngapi?", "1,200"]])
  (item,) = suite.items
  assert item.answer == Decimal(1200) and suite.score(item, response)["correct"] == correct


@pytest.mark.parametrize("nested", [True, False])
def test_xquad(tmp_path, nested):
  answers = {"text": ["北京市"], "answer_start": [0]}
  if nested:
    qa = {"id": "q1", "question": "哪里？", "answers": [{"text": "北京市", "answer_start": 0}]}
    file = {"data": [{"paragraphs": [{"context": "北京市很大。", "qas": [qa]}]}]}
    suite = suite_of(tmp_path, "xquad", "xquad.zh.json", [file])
  else:
    row = {"id": "q1", "context": "北京市很大。", "question": "哪里？", "answers": answers}
    suite = suite_of(tmp_path, "xquad", "xquad.zh/validation.parquet", [row])
  (item,) = suite.items
  assert (item.lang, item.id, item.answer) == ("zh", "q1", ("北京市",))
  assert suite.score(item, " 北京市。") == {"exact_words": True, "f1": 1.0}
  assert suite.score(item, "在北京") == {"exact_words": False, "f1": pytest.approx(4 / 6)}
  assert suite.score(item, "") == {"exact_words": False, "f1": 0.0}


@pytest.mark.parametrize(
  "text, wanted",
  [
    ("In 1999, Peking!", ["in", "1999", "peking"]),
    ("Дом № 5", ["дом", "no", "5"]),
    ("«Привет», — сказал он", ["привет", "сказал", "он"]),
    ("مرحبا، يا عالم", ["مرحبا", "يا", "عالم"]),
    ("שלום, עולם", ["שלום", "עולם"]),
    ("क्या हाल है?", ["क्या", "हाल", "है"]),
    ("北京 2008", ["北", "京", "2008"]),
  ],
)
def test_units_of_a_text(text, wanted):
  assert units(text) == wanted


def test_open_questions_keep_their_ids_and_references(tmp_path):
  rows = [
    {"id": 5, "inputs": "Swali?", "targets": "Jibu.", "language": "swh", "script": "Latn"},
    {"id": 5, "inputs": "問題？", "targets": "答", "language": "zho", "script": "Hant"},
  ]
  suite = suite_of(tmp_path, "aya", "test.jsonl", rows)
  assert [(i.lang, i.id, i.group_id, i.answer) for i in suite.items] == [
    ("sw", "5", "5", "Jibu."), ("zh-Hant", "5", "5", "答"),
  ]  # fmt: skip
  rows = [{"prompt": "Kysymys?", "source": "okapi", "language": "fi"}] * 2
  suite = suite_of(tmp_path / "lcb", "language_confusion", "monolingual/okapi/fi.jsonl", rows)
  assert [i.id for i in suite.items] == ["fi.jsonl:1", "fi.jsonl:2"] and suite.items[
    0
  ].group_id is None
  suite = suite_of(
    tmp_path / "h", "m_arenahard", "fi/test.jsonl", [{"question_id": "q", "prompt": "Miksi?"}]
  )
  assert suite.items[0].lang == "fi" and suite.items[0].id == "q"
  suite = suite_of(
    tmp_path / "q", "multiq", "q.jsonl", [{"question": "Miksi?", "language": "Finnish"}]
  )
  assert suite.items[0].lang == "fi" and metric_names(suite) == ["fidelity", "stopped"]


IFEVAL = {
  "key": 1000,
  "prompt": "Sema mambo mawili, bila alama ya mkato.",
  "instruction_id_list": ["punctuation:no_comma", "detectable_format:number_bullet_lists"],
  "kwargs": [{"num_bullets": None, "relation": None}, {"num_bullets": 2, "relation": None}],
}


@pytest.mark.parametrize(
  "file", ["sw/train.jsonl", "ifeval/sw/train.parquet", "sw_input_data.jsonl"]
)
def test_ifeval(tmp_path, file):
  suite = suite_of(tmp_path, "ifeval", file, [IFEVAL])
  (item,) = suite.items
  assert (item.lang, item.id, item.group_id) == ("sw", "1000", None)
  metrics = ["prompt_strict", "prompt_loose", "instruction_strict", "instruction_loose"]
  assert metric_names(suite) == ["stopped", *metrics]
  assert dict(suite.score(item, "* moja\n* mbili")) == dict(zip(metrics, (True, True, 1.0, 1.0)))
  assert dict(suite.score(item, "* moja, mbili")) == dict(zip(metrics, (False, False, 0.0, 0.0)))
  preamble = "Sawa, haya hapa:\n* moja\n* mbili"
  assert dict(suite.score(item, preamble)) == dict(zip(metrics, (False, True, 0.5, 1.0)))
  assert dict(suite.score(item, " ")) == dict(zip(metrics, (False, False, 0.0, 0.0)))


def test_ifeval_of_several_languages_beside_saved_answers(tmp_path):
  prefixed = IFEVAL | {"instruction_id_list": ["fr:detectable_format:title"], "kwargs": [{}]}
  put(
    tmp_path / "copy", "data/fr_input_response_data_model.jsonl", [{"prompt": "?", "response": "!"}]
  )
  put(tmp_path / "copy", "data/es_input_data.jsonl", [IFEVAL])
  suite = suite_of(tmp_path, "ifeval", "data/prompts.jsonl", [prefixed])
  assert [i.lang for i in suite.items] == ["es", "fr"]
  assert suite.score(suite.items[1], "## Été ##")["prompt_strict"]


def test_ifeval_in_a_table(tmp_path):
  fields = ["7", "Why?", '["startend:quotation"]', "[null]"]
  columns = ["key", "prompt", "instruction_id_list", "kwargs"]
  suite = suite_of(tmp_path, "ifeval", "en/test.tsv", [fields], columns=columns)
  assert suite.score(suite.items[0], '"So."')["prompt_strict"]


def test_one_of_one_s_own_in_python(tmp_path):
  (tmp_path / "capitals.py").write_text(
    '''"""Capitals: does the answer name the city?"""

from mlit_jax.evals.suites.suite import Item, Suite, ask

CITIES = {"fi": ("Mikä on Suomen pääkaupunki?", "Helsinki"), "sw": ("Mji mkuu wa Kenya ni upi?", "Nairobi")}


def get_suite():
  items = [Item(lang, lang, ask(question), (), city) for lang, (question, city) in CITIES.items()]
  return Suite("capitals", items, names_the_city, max_new_tokens=32)


def names_the_city(item, response):
  return {"named": item.answer in response}
'''
  )
  assert is_suite(str(tmp_path / "capitals.py"))
  suite = open_suite(str(tmp_path / "capitals.py"))
  assert metric_names(suite) == ["fidelity", "stopped", "named"]
  assert suite.score(suite.items[0], "Se on Helsinki.") == {"named": True}


def test_one_of_one_s_own_in_json(tmp_path):
  prompts = [
    {"id": "a", "lang": "swa", "prompt": "Habari?"},
    {"id": "b", "lang": "fi", "messages": [{"role": "user", "content": "Moi?"}], "answer": "Moi!"},
  ]
  put(tmp_path, "prompts.jsonl", prompts)
  spec = {
    "prompts": "prompts.jsonl",
    "measure": ["chrf"],
    "max_new_tokens": 9,
    "languages": ["fin"],
  }
  (tmp_path / "mine.suite.json").write_text(json.dumps(spec))
  suite = open_suite(str(tmp_path / "mine.suite.json"))
  assert [(i.lang, i.id, i.answer) for i in suite.items] == [("fi", "b", "Moi!")]
  assert (suite.name, suite.measure, suite.max_new_tokens) == ("mine", ("chrf",), 9)


def test_the_same_items_of_parallel_languages_are_kept():
  items = [
    Item(str(i), lang, ask("?"), (), None, str(i)) for lang in ("fi", "sw") for i in (3, 1, 2)
  ]
  suite = Suite("s", items).only({"sw", "fi"}, 2)
  assert [(i.lang, i.id) for i in suite.items] == [
    ("fi", "3"),
    ("fi", "1"),
    ("sw", "3"),
    ("sw", "1"),
  ]
  assert {i.lang for i in Suite("s", items).only({"sw"}).items} == {"sw"}
  with pytest.raises(UserError, match="--languages he: the suite s has none of it; it has fi, sw"):
    Suite("s", items).only({"he"})


def test_rows_to_look_for_in_training_data():
  items = [Item("1", "sw", ask("Swali?")), Item("2", "sw", ask("Swali?"), ("a", "b"), 1)]
  rows = list(as_rows(Suite("s", items)))
  assert [r.messages[0].content for r in rows] == ["Swali?", "Swali?"]
  assert rows[0].example_id != rows[1].example_id


@pytest.mark.parametrize(
  "items, says",
  [
    ([], "has no items"),
    ([Item("1", "sw", ask(" "))], "asks nothing"),
    ([Item("1", "sw", ask("a", "b"))], "must be a user's"),
    ([Item("1", "sw", ask("?"), ("a", "b"), 2)], "2 choices and the answer 2"),
    ([Item("1", "sw", ask("?"), ("a", "b"), "a")], "the answer 'a'"),
    ([Item("1", "sw", ask("?"), ("a", "a"), 1)], "empty or equal"),
    ([Item("1", "sw", ask("?"))] * 2, "stands there twice"),
  ],
)
def test_a_wrong_suite_is_refused(items, says):
  with pytest.raises(UserError) as e:
    check(Suite("s", items))
  assert says in str(e.value)


@pytest.mark.parametrize(
  "spec, says",
  [
    ("belebele", "needs the path of a local copy: belebele:PATH"),
    ("belebele:nowhere", "nowhere: no such file"),
    ("nothing.py", "nothing.py: no such file"),
    ("other", "names no suite. Shipped are"),
    ("belebelle:copy", "names no suite (did you mean belebele?). Shipped are"),
    ("x.suite.json", "cannot be read"),
  ],
)
def test_a_spec_that_names_nothing_is_refused(spec, says):
  assert is_suite(spec) == (spec != "other")  # which may be a file of rows
  with pytest.raises(UserError) as e:
    open_suite(spec)
  assert says in str(e.value)


@pytest.mark.parametrize(
  "name, row, says",
  [
    ("belebele", BELEBELE | {"correct_answer_num": "5"}, "correct_answer_num is '5'; it must be 1 to 4"),
    ("global_mmlu", MMLU | {"answer": "E"}, "not one of A, B, C, D"),
    ("xcopa", XCOPA | {"label": None}, "label is None"),
    ("xcopa", {"question": "cause", "lang": "fi"}, "XCOPA in fi"),
    ("mgsm", {"question": "?", "answer": "many"}, "is not one number"),
    ("sib200", {"text": "a", "category": "love"}, "the topic 'love'"),
    ("aya", {"prompt": "?"}, "no question in inputs"),
    ("xquad", {"other": 1}, "has no column 'id'"),
    ("ifeval", IFEVAL | {"kwargs": [{}]}, "2 instruction ids and 1 kwargs"),
    ("ifeval", IFEVAL | {"kwargs": "many"}, "kwargs is 'many'; it must be a list"),
    ("ifeval", IFEVAL | {"instruction_id_list": [3, 4]}, "the instruction 3 with"),
    ("ifeval", IFEVAL | {"instruction_id_list": ["a:b"] * 2}, "'a:b' is not known; known are keywords:existence"),
    ("ifeval", {"question": "?"}, "has no column"),
  ],
)  # fmt: skip
def test_rows_of_another_shape_are_named(tmp_path, name, row, says):
  with pytest.raises(UserError) as e:
    suite_of(tmp_path, name, "zh/test.jsonl", [row])
  assert says in str(e.value) and "test.jsonl:1" in str(e.value)


def test_ifeval_needs_a_language(tmp_path):
  with pytest.raises(UserError, match=r"such as en/train.jsonl"):
    suite_of(tmp_path, "ifeval", "ifeval_input_data.jsonl", [IFEVAL])


def test_every_shipped_suite_is_tested_here():
  text = Path(__file__).read_text(encoding="utf-8")
  assert all(f'"{name}"' in text for name in SHIPPED)
