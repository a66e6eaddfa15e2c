import dataclasses
import hashlib
import pickle

import numpy as np
import pytest
from twelve import ANSWERED, ASKED, LANGUAGES

from mlit_jax.data import rows
from mlit_jax.data.hygiene import DEFAULTS, REASONS, make_hygiene, near_duplicates
from mlit_jax.data.near import SIGNATURE
from mlit_jax.errors import UserError

LONG = "The quick brown fox jumps over the lazy dog and then it sleeps for the rest of the day."


def conversation(question, *answers, lang="en", number=0):
  messages = []
  for answer in answers:
    messages += [rows.Message("user", question), rows.Message("assistant", answer)]
  example_id = hashlib.blake2b(f"{number}{lang}{messages}".encode(), digest_size=16).hexdigest()
  return rows.Conversation(tuple(messages), lang, example_id, None, "made up", "made up:1")


HELD_OUT = [conversation(LONG, "Really?")]
ROWS = {
  "empty answer": conversation("q", "…"),
  "control characters": conversation("q\ufffd", "a"),
  "overlap exact": conversation(LONG.upper(), "Yes."),
  "overlap 13-gram": conversation("q", f"He said: {LONG}"),
  "wrong script": conversation("q", "Это не по-английски, конечно."),
  "wrong language": conversation("q", "Das ist ganz sicher nicht auf Englisch geschrieben."),
}


def alone(key, policy="report"):
  return dict.fromkeys(DEFAULTS, "off") | {key: policy}


@pytest.mark.parametrize("reason", ROWS)
def test_each_reason_is_found_unless_its_check_is_off(reason):
  row, key = ROWS[reason], REASONS[reason]
  assert make_hygiene(alone(key), HELD_OUT).flags(row) == (reason,)
  assert reason in make_hygiene({}, HELD_OUT).flags(row)
  assert reason not in make_hygiene({key: "off"}, HELD_OUT).flags(row)


def test_clean_rows_have_no_flags():
  hygiene = make_hygiene({}, HELD_OUT, languages=LANGUAGES)
  for lang in LANGUAGES:
    assert hygiene.flags(conversation(ASKED[lang], ANSWERED[lang], lang=lang)) == ()


def test_several_reasons_and_any_answer():
  row = conversation("q", "Ok.", f"\x00{LONG}", "…", "Это не по-английски.")
  assert make_hygiene({}, HELD_OUT).flags(row) == (
    "empty answer", "control characters", "overlap 13-gram", "wrong script",
  )  # fmt: skip


def test_the_longest_answer_tells_the_language():
  german = "Das ist ganz sicher nicht auf Englisch geschrieben."
  assert make_hygiene({}).flags(conversation("q", "This is it.", german)) == ("wrong language",)


def test_only_drop_drops():
  for reason, key in REASONS.items():
    assert make_hygiene({key: "drop"}).dropped(reason)
    assert not make_hygiene(alone(key)).dropped(reason)
    others = {other for other in REASONS.values() if other != key}
    assert not make_hygiene(dict.fromkeys(others, "drop")).dropped(reason)


def test_signatures_only_where_near_duplicates_are_asked_for():
  row = conversation(LONG, "Yes.")
  assert make_hygiene({}).signature(row) is None
  hygiene = make_hygiene({"near_duplicates": "report"})
  told = dataclasses.replace(row, messages=(rows.Message("system", LONG[::-1]), *row.messages))
  found = [hygiene.signature(r) for r in (row, told, conversation("q", "a"))]
  assert found[0].shape == (SIGNATURE,)

  assert near_duplicates(np.stack(found), 0.8).tolist() == [False, True, False]


def test_with_many_languages_a_sample_is_judged_unless_rows_are_dropped():
  many = [
    "af",
    "be",
    "bg",
    "bn",
    "ca",
    "da",
    "el",
    "eu",
    "fa",
    "ga",
    "gu",
    "hr",
    "hu",
    "hy",
    "id",
    "is",
    "ja",
    "ka",
    "kk",
    "ko",
    "lt",
    "lv",
    "mk",
    "mn",
    "mr",
    "nl",
    "pl",
    "ro",
  ]
  sample = make_hygiene({}, languages=many)
  every = sample.language_every
  assert every > 1
  assert make_hygiene({"wrong_language": "drop"}, languages=many).language_every == 1
  german = [conversation("q", f"Das ist sicher nicht englisch, Nummer {i}.") for i in range(400)]
  judged = [sample.judges_language(c) for c in german]
  assert 0.7 * 400 / every < sum(judged) < 1.4 * 400 / every
  assert [sample.flags(c) == ("wrong language",) for c in german] == judged
  assert judged == [make_hygiene({}, languages=many[::-1]).judges_language(c) for c in german]


def test_it_pickles_and_stays_the_same():
  hygiene = make_hygiene({"near_duplicates": "drop"}, HELD_OUT)
  copy = pickle.loads(pickle.dumps(hygiene))
  assert copy.fingerprint() == hygiene.fingerprint()
  for row in ROWS.values():
    assert copy.flags(row) == hygiene.flags(row)
    assert (copy.signature(row) == hygiene.signature(row)).all()


def test_the_fingerprint_changes_with_what_flags_depend_on():
  made = [
    make_hygiene({}, HELD_OUT),
    make_hygiene({}, HELD_OUT, languages=["fi"]),
    make_hygiene({}),
    make_hygiene({}, [conversation(LONG, "Other?")]),
    make_hygiene({"overlap": "drop"}, HELD_OUT),
    make_hygiene({"near_duplicates": "report"}, HELD_OUT),
    make_hygiene({"near_duplicate_similarity": 0.7}, HELD_OUT),
  ]
  assert len({hygiene.fingerprint() for hygiene in made}) == len(made)
  assert make_hygiene({}, languages=["sw", "fi", "et"]).languages == ("et", "fi", "sw")
  twice = make_hygiene({"train": "ignored"}, [*HELD_OUT, *HELD_OUT])
  assert twice.fingerprint() == made[0].fingerprint()


@pytest.mark.parametrize(
  "settings, message",
  [
    ({"overlap": "delete"}, "data.overlap is 'delete'; expected one of off, report, drop"),
    ({"wrong_script": True}, "data.wrong_script is True"),
    ({"near_duplicate_similarity": 80}, "data.near_duplicate_similarity is 80"),
    ({"near_duplicate_similarity": "0.8"}, "data.near_duplicate_similarity is '0.8'"),
  ],
)
def test_settings_that_mean_nothing(settings, message):
  with pytest.raises(UserError, match=message):
    make_hygiene(settings)


def test_every_check_has_a_policy():
  assert set(REASONS.values()) == set(DEFAULTS)
