"""Rows as they are shown: the pieces of hand-made rows, in scripts whose characters take several tokens."""

from pathlib import Path

import numpy as np
import pytest
from twelve import ANSWERED, ASKED, LANGUAGES, byte_level, conversation, write_folder

import mlit_jax
from mlit_jax.data.encode import encode_conversations
from mlit_jax.data.rows import Conversation, Message
from mlit_jax.data.shown import pieces, runs, shown_rows
from mlit_jax.data.tokenizer import Tokenizer

FOLDER = Path(mlit_jax.__file__).parent / "assets" / "tokenizer12"


@pytest.fixture(scope="module", params=["sentencepiece", "byte level"])
def tokenizer(request, tmp_path_factory):
  if request.param == "sentencepiece":
    return Tokenizer.load(str(FOLDER))
  return Tokenizer.load(str(write_folder(tmp_path_factory.mktemp("tokenizer") / "t")))


def encoded_row(tokenizer, lang, **options):
  messages = tuple(Message(m["role"], m["content"]) for m in conversation(lang, turns=2))
  c = Conversation(messages, lang, "ab" * 16, None, "file", "file:7")
  options = {"max_length": 2048} | options
  return encode_conversations([c], tokenizer, **options), tokenizer.template.render(messages)


@pytest.mark.parametrize("lang", LANGUAGES)
def test_pieces_spell_the_row_and_the_trained_ones_the_answers(tokenizer, lang):
  encoded, rendered = encoded_row(tokenizer, lang)
  ids, trained = encoded.tokens_of(0), encoded.trained_of(0)
  shown = pieces(ids, trained, tokenizer)
  assert [i for p in shown for i in p.ids] == ids.tolist()
  assert "".join(p.text for p in shown) == tokenizer.decode(ids, skip_special=False)
  assert "\ufffd" not in "".join(p.text for p in shown)
  answers = [p.text for p in runs(shown) if p.trained and not p.special]
  wanted = [ANSWERED[lang], ASKED[lang]]
  assert [a.strip() for a in answers] == [
    tokenizer.decode(tokenizer.encode_text(w)) for w in wanted
  ]
  markers = [p.text for p in shown if p.special]
  assert markers.count(tokenizer.template.end_of_turn) >= 2
  assert all(p.text in tokenizer.engine.added for p in shown if p.special)
  # Every answer has its end token, which is trained: [.. answer E ..].
  ends = [p for p in shown if p.special and p.trained]
  assert [p.text for p in ends] == [tokenizer.template.end_of_turn] * 2
  assert len(rendered.spans) == 2


def test_a_character_of_several_tokens_is_one_piece(tmp_path):
  tokenizer = Tokenizer.load(str(write_folder(tmp_path / "t", tokenizer=byte_level())))
  ids = np.array(tokenizer.encode_text("a𓂀b"), np.uint32)  # a hieroglyph that no merge has: 4 bytes
  shown = pieces(ids, np.ones(len(ids)), tokenizer)
  assert [(p.text, len(p.ids)) for p in shown] == [("a", 1), ("𓂀", 4), ("b", 1)]


def test_a_row_cut_within_a_character_is_shown_in_runs(tmp_path):
  tokenizer = Tokenizer.load(str(write_folder(tmp_path / "t", tokenizer=byte_level())))
  ids = np.array(tokenizer.encode_text("ab <|im_start|>𓂀"), np.uint32)[:-1]
  trained = np.array([False] * (len(ids) - 3) + [True] * 3)
  shown = pieces(ids, trained, tokenizer)
  assert [i for p in shown for i in p.ids] == ids.tolist()
  assert [(p.trained, p.special) for p in shown] == [(False, False), (False, True), (True, False)]
  assert shown[0].text == "ab " and shown[1].text == "<|im_start|>"


def test_neighbours_that_are_alike_are_joined(tokenizer):
  encoded, _ = encoded_row(tokenizer, "sw")
  shown = pieces(encoded.tokens_of(0), encoded.trained_of(0), tokenizer)
  joined = runs(shown)
  kinds = [(p.trained, p.special) for p in joined]
  assert all(a != b for a, b in zip(kinds, kinds[1:]))
  assert "".join(p.text for p in joined) == "".join(p.text for p in shown)


def test_the_caption_names_file_place_in_the_run_and_lengths(tokenizer):
  from mlit_jax.data.plan import make_plan

  talks = [
    Conversation(
      (Message("user", f"a {i}"), Message("assistant", "b " * (3 + i))), "en", f"{i:032x}", None, "f", f"f:{i + 1}"
    )
    for i in range(9)
  ]  # fmt: skip
  encoded = encode_conversations(talks, tokenizer, max_length=64)
  plan = make_plan(
    encoded, {"counts": {"en": 9}}, seed=3, rows_per_step=2, max_length=64, epochs=1, packing=False
  )
  numbers = plan.examples[[0, 3, 8]]
  captions = [r.caption for r in shown_rows(encoded, plan, numbers, tokenizer)]
  for i, caption, place in zip(
    numbers.tolist(), captions, ("step 1, row 1", "step 2, row 2", "step 5, row 1")
  ):
    assert caption == (
      f"f:{i + 1}, {place}: {encoded.lengths[i]} tokens, {encoded.trained_counts[i]} trained"
    )
