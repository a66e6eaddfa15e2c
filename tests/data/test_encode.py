import dataclasses
import hashlib
import random
from pathlib import Path

import numpy as np
import pytest
from twelve import ANSWERED, ASKED, LANGUAGES, write_folder

import mlit_jax
from mlit_jax.data import encode
from mlit_jax.data.encode import encode_conversations
from mlit_jax.data.encoded import COLUMNS
from mlit_jax.data.engines import HuggingFace, overlapping
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
  example_id = hashlib.md5("|".join([lang, *(m.content for m in messages)]).encode()).hexdigest()
  return Conversation(tuple(messages), lang, example_id, group, "file", f"file:{number}")


ROWS = [
  talk(lang, ASKED[lang], ANSWERED[lang], group="g", number=i)
  for i, lang in enumerate(LANGUAGES, 1)
]
LONGER = talk(
  "zh", ASKED["zh"], ANSWERED["zh"], ANSWERED["ru"], ANSWERED["hi"], system=ASKED["ar"], number=13
)


def ids_of(encoded):
  return [encoded.example_id(i) for i in range(len(encoded))]


def assert_same(one, two):
  for name in ("tokens", "trained", "ids", *COLUMNS):
    np.testing.assert_array_equal(getattr(one, name), getattr(two, name), err_msg=name, strict=True)
  for name in ("languages", "sources", "files", "rows_read", "dropped", "fingerprint"):
    assert getattr(one, name) == getattr(two, name), name


# --- what is encoded


def test_tokens_spell_the_render_and_the_trained_ones_spell_the_answers(tokenizer):
  rows = [*ROWS, LONGER]
  encoded = encode_conversations(rows, tokenizer, max_length=512)
  assert len(encoded) == 13 and encoded.dropped == {} and not encoded.truncated.any()
  assert encoded.languages == LANGUAGES
  assert ids_of(encoded) == [c.example_id for c in rows]
  assert len(set(encoded.groups[:12].tolist())) == 1 and encoded.groups[0] > 0 == encoded.groups[12]
  assert [encoded.place(i) for i in range(13)] == [c.place for c in rows]
  for i, c in enumerate(rows):
    ids, trained = encoded.tokens_of(i), encoded.trained_of(i).astype(bool)
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
  firsts = encoded.trained[encoded.starts]
  assert not firsts.any()
  assert encoded.trained_counts.tolist() == (encoded.lengths - 1).tolist()


def test_answer_bytes_count_only_what_the_assistant_says(tokenizer):
  rows = [talk("hi", "x" * 50, "क्ष", system="y" * 70), talk("zh", "你好", "你", "再", "见了")]
  encoded = encode_conversations(rows, tokenizer, max_length=512)
  assert encoded.answer_bytes.tolist() == [9, 3 + 6]


def test_languages_may_be_given_a_fixed_numbering(tokenizer):
  encoded = encode_conversations(ROWS[:2], tokenizer, max_length=512, languages=["zh", "cs", "ar"])
  assert encoded.languages == ("zh", "cs", "ar") and encoded.language.tolist() == [2, 1]


def test_chunks_join(tokenizer, monkeypatch):
  whole = encode_conversations(ROWS, tokenizer, max_length=512)
  monkeypatch.setattr(encode, "CHUNK", 5)
  assert_same(encode_conversations(ROWS, tokenizer, max_length=512), whole)


# --- rows that are too long


def lengths_of(tokenizer, rows):
  return encode_conversations(rows, tokenizer, max_length=4096).lengths


def test_drop_counts_what_it_drops(tokenizer):
  lengths = lengths_of(tokenizer, ROWS)
  limit = int(np.sort(lengths)[6])
  encoded = encode_conversations(ROWS, tokenizer, max_length=limit)
  fits = lengths <= limit  # as long as max_length is not too long
  assert 0 < fits.sum() < 12
  assert ids_of(encoded) == [c.example_id for c, fit in zip(ROWS, fits, strict=True) if fit]
  assert encoded.dropped == {
    c.lang: {"over_long": 1} for c, fit in zip(ROWS, fits, strict=True) if not fit
  }
  assert not encoded.truncated.any()


def talk_of(turns: int):
  """That many turns of one conversation, an answer at the end."""
  return talk("fi", *(f"vuoro {i}" for i in range(turns)))


@pytest.mark.parametrize("over_long", ["drop", "truncate_prompt", "truncate_answer"])
def test_a_row_of_too_many_turns_is_dropped(tokenizer, over_long):
  most = encode.MOST_TURNS
  rows = [talk_of(most + 2), talk_of(most), ROWS[0]]
  encoded = encode_conversations(rows, tokenizer, max_length=10**6, over_long=over_long)
  assert encoded.dropped == {"fi": {"over_long": 1}}
  assert ids_of(encoded) == [c.example_id for c in rows[1:]]
  answers = most // 2
  assert encoded.trained_counts[0] >= 2 * answers  # each with its end token


@pytest.mark.parametrize("kind", ["byte level", "bundled"])
def test_a_chunk_may_have_no_row_left(tokenizer, tmp_path, monkeypatch, kind):
  """As where the last row of a file is alone in its chunk, and is left out before it is tokenised."""
  if kind == "byte level":
    write_folder(tmp_path / "t")
    tokenizer = Tokenizer.load(tmp_path / "t")
    assert isinstance(tokenizer.engine, HuggingFace)
  monkeypatch.setattr(encode, "CHUNK", 1)
  encoded = encode_conversations([ROWS[0], talk_of(1002)], tokenizer, max_length=512)
  assert ids_of(encoded) == [ROWS[0].example_id]
  assert encoded.dropped == {"fi": {"over_long": 1}}
  assert tokenizer.encode_marked([], []) == []


def test_a_row_of_too_many_turns_can_be_refused(tokenizer):
  row = talk_of(encode.MOST_TURNS + 2)
  with pytest.raises(UserError) as e:
    encode_conversations([row], tokenizer, max_length=10**6, over_long="error")
  assert row.place in str(e.value) and "1,002 turns; 1,000 is the most" in str(e.value)


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
  first = int(whole.starts[1])
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
    UserError,
    match=r"data.over_long is 'cut'; it must be one of drop, truncate_prompt, truncate_answer, error",
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


# --- cutting the question


def test_truncate_prompt_cuts_the_beginning_of_the_longest_question_and_nothing_else(tokenizer):
  long = " ".join(f"kappale{i}" for i in range(60)) + " Mikä tämä on?"
  rows = [
    talk("fi", long, ANSWERED["fi"], group="g", system="Vastaa lyhyesti."),
    talk("hi", ASKED["zh"], ANSWERED["hi"], ASKED["hi"] * 20, ANSWERED["ar"]),
    talk("sw", "Ndiyo?", "x" * 900),
  ]
  whole = encode_conversations(rows, tokenizer, max_length=4096)
  limit = 150
  encoded = encode_conversations(rows, tokenizer, max_length=limit, over_long="truncate_prompt")
  # An answer that is too long by itself is not cut: its row is dropped.
  assert encoded.dropped == {"sw": {"over_long": 1}}
  assert ids_of(encoded) == [c.example_id for c in rows[:2]]  # the row is still that row
  assert encoded.truncated.tolist() == [1, 1]
  for i, c in enumerate(rows[:2]):
    assert (
      limit - 12 < encoded.lengths[i] <= limit < whole.lengths[i]
    )  # no more is cut than must be
    assert encoded.trained_counts[i] == whole.trained_counts[i]
    assert encoded.answer_bytes[i] == whole.answer_bytes[i]
    text = tokenizer.decode(encoded.tokens_of(i), skip_special=False)
    asked = max((m.content for m in c.messages if m.role == "user"), key=len)
    kept = text[text.rindex("<|user|>") + len("<|user|>") : text.rindex("<|assistant|>")]
    assert asked.endswith(kept) and asked[-len(kept) - 1] == " "  # from the beginning of a word
    for m in c.messages:
      if m.content != asked:
        assert m.content in text
    assert encoded.text_bytes[i] == len(text.encode())


# --- marks by the ends of spans


@pytest.mark.parametrize("kind", ["byte level", "pieces"])
def test_marks_are_those_of_all_offsets(tokenizer, tmp_path, kind):
  """The quick way asks for two tokens of a span; it must give what all offsets give, in every script."""
  folder = tmp_path / "t"
  if kind == "byte level":
    write_folder(folder)
  else:
    folder.mkdir()
    for name, data in tokenizer.files.items():
      (folder / name).write_bytes(data)
  engine = Tokenizer.load(folder).engine
  assert isinstance(engine, HuggingFace)
  rng = random.Random(0)
  texts = [
    ASKED[lang] + "<|end|>" + ANSWERED[lang] + "🙂🏽 e\u0301 \u200d\U0001d11e" for lang in LANGUAGES
  ] * 8
  cuts = [sorted(rng.sample(range(len(text)), 4)) for text in texts]
  spans = [((a, b), (c, d)) for a, b, c, d in cuts]
  marked = engine.encode_marked(texts, spans)
  whole = engine.encode_with_offsets(texts)
  for (ids, mask), of_text, (wanted, starts, ends) in zip(marked, spans, whole, strict=True):
    assert ids.tolist() == wanted.tolist()
    assert mask.tolist() == overlapping(of_text, starts, ends).tolist()
    assert 0 < mask.sum() < len(mask)
