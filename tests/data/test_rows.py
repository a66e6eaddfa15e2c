import pickle

import pytest
from twelve import ANSWERED, ASKED, LANGUAGES
from written import messages, write

from mlit_jax.data import rows as rows_module
from mlit_jax.data.languages import normalise_tag
from mlit_jax.data.rows import BadRow, Message, parse_row, read_sources
from mlit_jax.data.sources import open_sources
from mlit_jax.errors import UserError

Q, A = Message("user", "q"), Message("assistant", "a")


def read_one(tmp_path, row, **kwargs):
  return read_sources({"sw": [write(tmp_path / "a.jsonl", [row])]}, **kwargs).conversations[0]


@pytest.mark.parametrize(
  "row, expected",
  [
    ({"messages": messages("q", "a")}, (Q, A)),
    ({"messages": messages("q", "a"), "prompt": "other"}, (Q, A)),
    (
      {"messages": [{"role": "system", "content": "s"}, *messages("q", "a", "q", "a")]},
      (Message("system", "s"), Q, A, Q, A),
    ),
    ({"messages": messages("q", "a", roles=("prompter", "Bot"))}, (Q, A)),
    ({"prompt": "q", "completion": "a"}, (Q, A)),
    ({"prompt": messages("q"), "completion": [{"role": "assistant", "content": "a"}]}, (Q, A)),
    ({"prompt": messages("q", "a", "q"), "completion": "a"}, (Q, A, Q, A)),
    ({"instruction": "q", "input": "", "output": "a"}, (Q, A)),
    ({"instruction": "q", "output": "a"}, (Q, A)),
    ({"instruction": "q", "input": "i", "output": "a"}, (Message("user", "q\n\ni"), A)),
    ({"inputs": "q", "targets": "a"}, (Q, A)),
    ({"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]}, (Q, A)),
    ({"conversations": ["q", "a", "q", "a"]}, (Q, A, Q, A)),
    ({"prompt": "q", "completion": "a", "system": "s"}, (Message("system", "s"), Q, A)),
    ({"prompt": "q", "completion": "a", "system": ""}, (Q, A)),
  ],
)
def test_every_shape_becomes_the_same_record(row, expected, tmp_path):
  assert read_one(tmp_path, row).messages == expected


def test_text_is_kept_as_it_is(tmp_path):
  content = " \tq\u2028\u00a0e\u0301\r\n\n"
  found = read_one(tmp_path, {"messages": messages(content, "\n a ")})
  assert [m.content for m in found.messages] == [content, "\n a "]
  for lang in LANGUAGES:
    found = read_sources(
      {lang: [write(tmp_path / "b.jsonl", [{"messages": messages(ASKED[lang], ANSWERED[lang])}])]}
    )
    assert [m.content for m in found.conversations[0].messages] == [ASKED[lang], ANSWERED[lang]]


def test_the_language_comes_from_the_config_or_the_row(tmp_path):
  row = {"prompt": "q", "completion": "a"}
  assert read_one(tmp_path, row | {"lang": "swh_Latn"}).lang == "sw"
  path = write(
    tmp_path / "b.jsonl",
    [
      row | {"language": "Standard Arabic", "language_code": "arb"},
      row | {"tongue": "fin", "lang": "de"},
    ],
  )
  assert [c.lang for c in read_sources([path]).conversations] == ["ar", "de"]
  with pytest.raises(UserError, match="none of tongue is set"):
    read_sources([path], language_field="tongue")
  assert [
    c.lang for c in read_sources({"zh-CN": [write(tmp_path / "c.jsonl", [row])]}).conversations
  ] == ["zh"]


def test_the_id_is_that_of_language_and_messages_only(tmp_path):
  first = read_one(tmp_path, {"messages": messages("q", "a"), "id": 1, "group_id": "g"})
  again = read_one(tmp_path, {"inputs": "q", "targets": "a", "id": 2})
  assert first.example_id == again.example_id and len(first.example_id) == 32
  assert first.example_id != read_one(tmp_path, {"inputs": "q ", "targets": "a"}).example_id
  path = write(tmp_path / "a.jsonl", [{"inputs": "q", "targets": "a"}])
  assert first.example_id != read_sources({"fi": [path]}).conversations[0].example_id
  assert (first.group_id, again.group_id) == ("g", None)


def test_duplicates_are_dropped_and_counted_by_language(tmp_path):
  row = {"prompt": "q", "completion": "a"}
  path = write(
    tmp_path / "a.jsonl",
    [row, row | {"id": 5}, {"inputs": "q", "targets": "a"}, row | {"completion": "b"}],
  )
  rows = read_sources({"sw": [path], "fi": [path, path]})
  assert len(rows.conversations) == 4
  assert rows.dropped == {("sw", "duplicate"): 2, ("fi", "duplicate"): 6}


BAD = [
  ("{broken", "broken JSON", "broken JSON .*'{broken'.*one JSON object a line"),
  ('"text"', "unknown shape", "the row is 'text', not an object"),
  ({"text": "q"}, "unknown shape", r"unknown shape, with keys \['text'\].*Accepted: messages"),
  ({"messages": []}, "unknown shape", r"messages is \[\]"),
  ({"messages": [["user", "q"]]}, "unknown shape", r"messages\[0\] is \['user', 'q'\]"),
  ({"messages": messages("q", "a", roles=("user", "tool"))}, "unknown role", r"messages\[1\] has the role 'tool'.*Roles are system"),
  ({"messages": messages("q", "a", roles=("user", "user"))}, "roles", "turn 1 has the role 'user'; expected 'assistant'"),
  ({"messages": messages("a", "q", roles=("assistant", "user"))}, "roles", "turn 0 has the role 'assistant'"),
  ({"messages": [*messages("q", "a"), {"role": "system", "content": "s"}]}, "roles", "turn 2 has the role 'system'"),
  ({"messages": messages("q", "a", "q")}, "roles", "the last turn is 'user'.*End the conversation"),
  ({"conversations": ["q"]}, "roles", "the last turn is 'user'"),
  ({"messages": [{"role": "system", "content": "s"}]}, "roles", "the last turn is 'system'"),
  ({"messages": [{"role": "system", "content": "s"}, *messages("q", "a")], "system": "t"}, "roles", "a `system` column and"),
  ({"prompt": "q", "completion": " \n\u3000"}, "empty answer", r"turn 1 \(assistant\) is empty: ' \\n"),
  ({"prompt": "", "completion": "a"}, "empty question", r"turn 0 \(user\) is empty"),
  ({"prompt": "q", "completion": 3}, "not text", "completion is 3, not text"),
  ({"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": None}]}, "not text", "content is None"),
  ({"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a", "tool_calls": [1]}]}, "tool calls", "calls tools"),
  ('{"prompt": "q \\ud83d", "completion": "a"}', "lone surrogate", r"the lone surrogate '\\ud83d'"),
  ({"prompt": "q", "completion": "a", "lang": "fi"}, "other language", "says lang = 'fi' .fi., but its file is listed under 'sw'"),
  ('{"prompt": "q", "completion": "a", "id": ' + "9" * 5000 + "}", "broken JSON", "broken JSON .*digits"),
  ("[" * 100_000, "broken JSON", "broken JSON"),
  ({"prompt": "q", "completion": "a", "group_id": ["g"]}, "not text", r"group_id is \['g'\], not text"),
  ('{"prompt": "q", "completion": "a", "group_id": "\\ud83d"}', "lone surrogate", "the lone surrogate"),
  ({"prompt": "q", "completion": "a", "lang": 3}, "unknown language", "lang: 3 is not text"),
  ({"prompt": "q", "completion": "a", "lang": "x" * 999}, "unknown language", "is not a language tag"),
  ({"message_id": "m", "parent_id": "p", "role": "user", "text": "q"}, "unknown shape", "no tree of messages.*need the format"),
  ({"messages": {"role": ["user"], "content": ["q", "a"]}}, "unknown shape", "messages is {"),
  ({"prompt": "q", "completion": "a", "lang": "swahilli"}, "unknown language", "'swahilli' is not a language.*Did you mean 'sw'"),
]  # fmt: skip


@pytest.mark.parametrize("row, reason, message", BAD)
def test_a_bad_row_is_one_clear_error_or_one_counted_drop(row, reason, message, tmp_path):
  good = {"prompt": "good", "completion": "a"}
  path = write(tmp_path / "a.jsonl", [good, row, good | {"prompt": "too"}])
  with pytest.raises(UserError, match=rf"a\.jsonl:2: .*{message}"):
    read_sources({"sw": [path]})
  rows = read_sources({"sw": [path]}, drop_bad=True)
  assert [c.messages[0].content for c in rows.conversations] == ["good", "too"]
  assert rows.dropped == {("sw", reason): 1}


def test_a_row_without_language(tmp_path):
  path = write(
    tmp_path / "a.jsonl",
    [{"prompt": "q", "completion": "a"}, {"prompt": "q", "completion": "", "lang": "fin"}],
  )
  with pytest.raises(
    UserError, match=r"a\.jsonl:1: the row has no language: none of lang, language_code, language"
  ):
    read_sources([path])
  assert read_sources([path], drop_bad=True).dropped == {
    ("?", "no language"): 1,
    ("fi", "empty answer"): 1,
  }


def test_a_language_is_detected_where_nothing_states_it(tmp_path):
  texts = [
    {"prompt": ASKED[lang] + " " + ANSWERED[lang], "completion": ANSWERED[lang]}
    for lang in LANGUAGES
  ]
  path = write(tmp_path / "a.jsonl", [*texts, texts[0] | {"lang": "sw"}])
  with pytest.raises(UserError, match="a.jsonl:1: the row has no language.*data.detect_language"):
    read_sources([path])
  rows = read_sources([path], detect_language=LANGUAGES, drop_bad=True)
  found = rows.conversations
  stated = {ANSWERED[lang]: lang for lang in LANGUAGES}
  assert all(c.lang == stated[c.messages[-1].content] for c in found[:-1]) and len(found) >= 11
  assert rows.dropped.keys() <= {("?", "unsure language")}
  assert all(0.5 <= c.confidence <= 1 for c in found[:-1])
  assert (found[-1].lang, found[-1].confidence) == ("sw", None)  # the row says it
  placed = read_sources({"en": path}, detect_language=True, drop_bad=True).conversations
  assert {(c.lang, c.confidence) for c in placed} == {
    ("en", None)
  }  # its place in the config says it
  given = read_sources({found[0].lang: [write(tmp_path / "b.jsonl", texts[:1])]}).conversations
  assert given[0].example_id == found[0].example_id


def test_a_language_that_cannot_be_told_is_refused(tmp_path):
  path = write(
    tmp_path / "a.jsonl",
    [
      {"prompt": "?", "completion": "42"},
      {"prompt": ASKED["fi"], "completion": "Museossa kannattaa käydä aamulla."},
    ],
  )
  rows = read_sources([path], detect_language=["fi", "sw"], drop_bad=True)
  assert rows.dropped == {("?", "unsure language"): 1} and rows.conversations[0].lang == "fi"
  with pytest.raises(
    UserError,
    match="a.jsonl:1: the language of the row cannot be told: None with confidence 0.00, below 0.5",
  ):
    read_sources([path], detect_language=["fi", "sw"])
  (source,) = open_sources([path], detect_language=["fi", "sw"], min_confidence=1.1)
  with pytest.raises(BadRow) as caught:
    parse_row(list(source.rows())[1][1], source, 2)
  assert caught.value.reason == "unsure language" and "fi with confidence" in caught.value.detail
  german = write(
    tmp_path / "c.jsonl",
    [{"prompt": "Wann?", "completion": "Am besten besucht man das Museum am Morgen."}],
  )
  with pytest.raises(
    UserError, match="the row is in de .* not among the languages to detect, fi, sw"
  ):
    read_sources([german], detect_language=["fi", "sw"])


def test_a_bad_row_can_be_sent_to_another_process():
  bad = BadRow("roles", "detail", "remedy", "sw")
  bad.lang = "fi"
  again = pickle.loads(pickle.dumps(bad))
  assert vars(again) == vars(bad) and str(again) == str(bad)


def test_an_unknown_tag_is_looked_up_once(tmp_path, monkeypatch):
  calls = []
  monkeypatch.setattr(
    rows_module, "normalise_tag", lambda tag: calls.append(tag) or normalise_tag(tag)
  )
  path = write(
    tmp_path / "a.jsonl", [{"prompt": "q", "completion": "a", "lang": "nosuchlanguage"}] * 50
  )
  assert read_sources([path], drop_bad=True).dropped == {("?", "unknown language"): 50}
  assert len(calls) <= 1  # finding the nearest name takes 50 ms


@pytest.mark.parametrize(
  "group, expected", [("g", "g"), (7, "7"), (None, None), (float("nan"), None)]
)
def test_groups(group, expected, tmp_path):
  assert (
    read_one(tmp_path, {"prompt": "q", "completion": "a", "group_id": group}).group_id == expected
  )


def test_a_row_longer_than_any_line_may_be_is_bad(tmp_path, monkeypatch):
  monkeypatch.setattr(rows_module, "MAX_LINE_BYTES", 1000)
  path = write(tmp_path / "a.jsonl", [{"prompt": "q", "completion": "a" * 1000}])
  with pytest.raises(UserError, match="a.jsonl:1: the row is longer than"):
    read_sources({"sw": path})
