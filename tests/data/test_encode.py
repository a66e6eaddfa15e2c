import dataclasses
import shutil
from pathlib import Path

import numpy as np
import pytest
from twelve import ANSWERED, ASKED, LANGUAGES

import mlit_jax
from mlit_jax.data import encode
from mlit_jax.data.encode import ARRAYS, encode_conversations
from mlit_jax.data.rows import Conversation, Message
from mlit_jax.data.tokenizer import Tokenizer
from mlit_jax.errors import UserError

FOLDER = Path(mlit_jax.__file__).parent / "assets" / "tokenizer12"


@pytest.fixture(scope="module")
def tokenizer():
  return Tokenizer.load(str(FOLDER))


def talk(lang, *contents, system=None, group=None, number=1):
  messages = [Message("system", system)] if system else []
  messages += [Message(("user", "assistant")[i % 2], text) for i, text in enumerate(contents)]
  example_id = "|".join([lang, *(m.content for m in messages)])
  return Conversation(tuple(messages), lang, example_id, group, "file", f"file:{number}")


ROWS = [
  talk(lang, ASKED[lang], ANSWERED[lang], group="g", number=i)
  for i, lang in enumerate(LANGUAGES, 1)
]
LONGER = talk(
  "zh", ASKED["zh"], ANSWERED["zh"], ANSWERED["ru"], ANSWERED["hi"], system=ASKED["ar"], number=13
)


def assert_same(one, two):
  for name in ARRAYS:
    np.testing.assert_array_equal(getattr(one, name), getattr(two, name), err_msg=name, strict=True)
  for name in ("languages", "example_ids", "group_ids", "dropped", "fingerprint"):
    assert getattr(one, name) == getattr(two, name), name


# --- what is encoded


def test_tokens_spell_the_render_and_the_trained_ones_spell_the_answers(tokenizer):
  rows = [*ROWS, LONGER]
  encoded = encode_conversations(rows, tokenizer, max_length=512)
  assert len(encoded) == 13 and encoded.dropped == {} and not encoded.truncated.any()
  assert encoded.languages == LANGUAGES
  assert encoded.example_ids == [c.example_id for c in rows]
  assert encoded.group_ids == ["g"] * 12 + [None]
  for i, c in enumerate(rows):
    here = slice(encoded.offsets[i], encoded.offsets[i + 1])
    ids, trained = encoded.tokens[here], encoded.trained[here].astype(bool)
    render = tokenizer.template.render([dataclasses.asdict(m) for m in c.messages])
    assert ids.tolist() == tokenizer.encode_text(render.text)
    assert encoded.languages[encoded.language[i]] == c.lang
    assert encoded.text_bytes[i] == len(render.text.encode())
    answers = [m.content for m in c.messages if m.role == "assistant"]
    assert encoded.answer_bytes[i] == sum(len(a.encode()) for a in answers)
    spelt = tokenizer.decode(ids[trained], skip_special=False)
    assert spelt.count("<|end|>") == len(answers) and spelt.endswith("<|end|>")
    assert all(tokenizer.decode(tokenizer.encode_text(a)) in spelt for a in answers)
    assert trained.sum() == encoded.trained_counts[i] < encoded.lengths[i]


def test_the_first_token_is_never_trained(tokenizer):
  """It is predicted from nothing. A template that starts with an answer's marker at once would train it."""
  bare = Tokenizer.load(
    str(FOLDER),
    template="{% for m in messages %}{% if m['role'] == 'assistant' %}{% generation %}{{ m['content'] }}<|end|>"
    "{% endgeneration %}{% endif %}{% endfor %}",
  )
  encoded = encode_conversations(ROWS, bare, max_length=512)
  assert len(encoded) == 12
  firsts = encoded.trained[encoded.offsets[:-1]]
  assert not firsts.any()
  assert encoded.trained_counts.tolist() == (encoded.lengths - 1).tolist()


def test_answer_bytes_count_only_what_the_assistant_says(tokenizer):
  rows = [talk("hi", "x" * 50, "क्ष", system="y" * 70), talk("zh", "你好", "你", "再", "见了")]
  encoded = encode_conversations(rows, tokenizer, max_length=512)
  assert encoded.answer_bytes.tolist() == [9, 3 + 6]


def test_languages_may_be_given_a_fixed_numbering(tokenizer):
  encoded = encode_conversations(ROWS[:2], tokenizer, max_length=512, languages=["zh", "cs", "ar"])
  assert encoded.languages == ("zh", "cs", "ar") and encoded.language.tolist() == [2, 1]


def test_progress_counts_every_row_and_chunks_join(tokenizer, monkeypatch):
  whole = encode_conversations(ROWS, tokenizer, max_length=512)
  monkeypatch.setattr(encode, "CHUNK", 5)
  seen = []
  assert_same(encode_conversations(ROWS, tokenizer, max_length=512, progress=seen.append), whole)
  assert seen == [5, 5, 2]


# --- rows that are too long


def lengths_of(tokenizer, rows):
  return encode_conversations(rows, tokenizer, max_length=4096).lengths


def test_drop_counts_what_it_drops(tokenizer):
  lengths = lengths_of(tokenizer, ROWS)
  limit = int(np.sort(lengths)[6])
  encoded = encode_conversations(ROWS, tokenizer, max_length=limit)
  fits = lengths <= limit  # as long as max_length is not too long
  assert 0 < fits.sum() < 12
  assert encoded.example_ids == [c.example_id for c, fit in zip(ROWS, fits, strict=True) if fit]
  assert encoded.dropped == {
    c.lang: {"over_long": 1} for c, fit in zip(ROWS, fits, strict=True) if not fit
  }
  assert not encoded.truncated.any()


def test_truncate_answer_cuts_the_end_and_drops_what_has_no_answer_left(tokenizer):
  rows = [
    talk("en", "Short?", "Yes."),
    talk("fi", "Lyhyt kysymys?", ANSWERED["fi"] * 4),
    talk("sw", ASKED["sw"] * 9, "Ndiyo."),
    talk("zh", ASKED["zh"] * 9, "是"),
    talk("zh", ASKED["zh"] * 9, "不"),
  ]
  whole = encode_conversations(rows, tokenizer, max_length=4096)
  limit = int(whole.lengths[0]) + 9
  encoded = encode_conversations(rows, tokenizer, max_length=limit, over_long="truncate_answer")
  assert encoded.dropped == {"sw": {"nothing_left_to_train": 1}, "zh": {"nothing_left_to_train": 2}}
  assert encoded.languages == ("en", "fi", "sw", "zh") and encoded.language.tolist() == [0, 1]
  assert encoded.truncated.tolist() == [0, 1] and encoded.lengths.tolist() == [limit - 9, limit]
  first = int(whole.offsets[1])
  np.testing.assert_array_equal(encoded.tokens[-limit:], whole.tokens[first : first + limit])
  np.testing.assert_array_equal(encoded.trained[-limit:], whole.trained[first : first + limit])
  # Bytes are those of the part that is left: the text exactly, the answer in proportion to its tokens.
  left = tokenizer.decode(encoded.tokens[-limit:], skip_special=False)
  assert encoded.text_bytes[0] == whole.text_bytes[0]
  assert (
    abs(int(encoded.text_bytes[1]) - len(left.encode())) <= 3
  )  # a letter may be cut in its bytes
  share = encoded.trained_counts[1] / whole.trained_counts[1]
  assert 0.1 < share < 0.9
  assert encoded.answer_bytes[1] == round(int(whole.answer_bytes[1]) * share)


def test_error_names_place_length_and_limit(tokenizer):
  lengths = lengths_of(tokenizer, ROWS)
  limit = int(lengths.max())
  encode_conversations(ROWS, tokenizer, max_length=limit, over_long="error")
  with pytest.raises(UserError) as e:
    encode_conversations(ROWS, tokenizer, max_length=limit - 1, over_long="error")
  assert f"file:{int(lengths.argmax()) + 1}: the row has {limit} tokens" in str(e.value)
  assert f"allows {limit - 1}" in str(e.value)


def test_an_unknown_policy_is_refused(tokenizer):
  with pytest.raises(
    UserError, match=r"data.over_long is 'cut'; it must be one of drop, truncate_answer, error"
  ):
    encode_conversations(ROWS, tokenizer, max_length=9, over_long="cut")


def test_a_row_that_the_template_refuses_is_named(tokenizer):
  strict = Tokenizer.load(
    str(FOLDER),
    template="{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system turns') }}{% endif %}"
    "{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}<|end|>{% endfor %}",
  )
  with pytest.raises(UserError, match=r"file:13: .*no system turns"):
    encode_conversations([*ROWS, LONGER], strict, max_length=512)


# --- the cache


def fingerprint(rows, tokenizer, **kwargs):
  return encode_conversations(rows, tokenizer, **{"max_length": 512} | kwargs).fingerprint


def test_the_fingerprint_tells_every_change_apart(tokenizer):
  template = (FOLDER / "chat_template.jinja").read_text(encoding="utf-8")
  other = Tokenizer.load(str(FOLDER), template=template.replace("<|end|>", "<|end|>\n"))
  changed = talk("ar", ASKED["ar"], ANSWERED["ar"] + ".", group="g")
  prints = [
    fingerprint(ROWS, tokenizer),
    fingerprint([changed, *ROWS[1:]], tokenizer),
    fingerprint([dataclasses.replace(ROWS[0], group_id="h"), *ROWS[1:]], tokenizer),
    fingerprint([dataclasses.replace(ROWS[0], group_id=None), *ROWS[1:]], tokenizer),
    fingerprint([dataclasses.replace(ROWS[0], group_id="None"), *ROWS[1:]], tokenizer),
    fingerprint(ROWS[::-1], tokenizer),
    fingerprint(ROWS[1:], tokenizer, languages=LANGUAGES),
    fingerprint(ROWS, other),
    fingerprint(ROWS, tokenizer, max_length=513),
    fingerprint(ROWS, tokenizer, over_long="truncate_answer"),
    fingerprint(ROWS, tokenizer, languages=LANGUAGES[::-1]),
  ]
  assert len(set(prints)) == len(prints)
  elsewhere = [dataclasses.replace(c, source="moved", place="moved:1") for c in ROWS]
  assert fingerprint(elsewhere, Tokenizer.load(str(FOLDER))) == prints[0]


def test_a_raised_version_is_another_fingerprint(tokenizer, monkeypatch):
  before = fingerprint(ROWS, tokenizer)
  monkeypatch.setattr(encode, "VERSION", encode.VERSION + 1)
  assert fingerprint(ROWS, tokenizer) != before


@pytest.mark.parametrize("limit", [4096, 28, 2])  # all rows, some, none
def test_what_the_cache_gives_back_equals_what_was_built(tokenizer, tmp_path, monkeypatch, limit):
  built = encode_conversations(
    ROWS, tokenizer, max_length=limit, cache_dir=tmp_path / "a" / "cache"
  )
  assert_same(built, encode_conversations(ROWS, tokenizer, max_length=limit))
  assert [p.name for p in (tmp_path / "a" / "cache").iterdir()] == [built.fingerprint]

  monkeypatch.setattr(encode, "_encode", None)  # whoever builds now fails
  read = encode_conversations(ROWS, tokenizer, max_length=limit, cache_dir=tmp_path / "a" / "cache")
  assert_same(read, built)
  assert isinstance(read.tokens, np.memmap) and len(read) == 12 - len(read.dropped)
  assert {4096: len(read) == 12, 28: 0 < len(read) < 12, 2: len(read) == 0}[limit]
  with pytest.raises(TypeError):
    encode_conversations(ROWS, tokenizer, max_length=limit + 1, cache_dir=tmp_path / "a" / "cache")


def test_a_killed_build_is_not_loaded(tokenizer, tmp_path, monkeypatch):
  class Killed(BaseException):
    pass

  # Killed after the arrays are written, before the renaming: all files but the last are there.
  monkeypatch.setattr(encode.json, "dumps", die_when(encode.json.dumps, "example_ids", Killed))
  with pytest.raises(Killed):
    encode_conversations(ROWS, tokenizer, max_length=512, cache_dir=tmp_path)
  monkeypatch.undo()
  left = [p.name for p in tmp_path.iterdir()]
  assert len(left) == 1 and left[0].startswith(".building-")
  assert (tmp_path / left[0] / "tokens.npy").is_file()

  built = encode_conversations(ROWS, tokenizer, max_length=512, cache_dir=tmp_path)
  assert len(built) == 12
  assert sorted(p.name for p in tmp_path.iterdir()) == sorted([*left, built.fingerprint])
  assert_same(built, encode_conversations(ROWS, tokenizer, max_length=512))


def die_when(dumps, key, error):
  def patched(value, **kwargs):
    if isinstance(value, dict) and key in value:
      raise error
    return dumps(value, **kwargs)

  return patched


def test_another_process_may_be_faster(tokenizer, tmp_path, monkeypatch):
  """Two build the same; the second finds the folder there, keeps its own arrays and leaves nothing behind."""
  other = encode_conversations(ROWS, tokenizer, max_length=512, cache_dir=tmp_path / "other")
  load = encode.load_cache

  def load_then_lose(folder):
    found = load(folder)
    shutil.copytree(tmp_path / "other" / other.fingerprint, folder)
    return found

  monkeypatch.setattr(encode, "load_cache", load_then_lose)
  mine = encode_conversations(ROWS, tokenizer, max_length=512, cache_dir=tmp_path / "mine")
  assert_same(mine, other)
  assert [p.name for p in (tmp_path / "mine").iterdir()] == [other.fingerprint]


def test_a_cache_that_cannot_be_written_names_the_key(tokenizer, tmp_path, monkeypatch):
  def full(*args, **kwargs):
    raise OSError(28, "No space left on device")

  monkeypatch.setattr(encode.np, "save", full)
  with pytest.raises(
    UserError, match=r"cannot write the token cache .*No space left.*data.cache_dir"
  ):
    encode_conversations(ROWS, tokenizer, max_length=512, cache_dir=tmp_path)
  assert list(tmp_path.iterdir()) == []
