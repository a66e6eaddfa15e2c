import dataclasses
from pathlib import Path

import numpy as np
import pytest

import mlit_jax
from mlit_jax.data.evalset import make_eval_set, make_question
from mlit_jax.data.rows import Conversation, Message, read_sources
from mlit_jax.data.tokenizer import Tokenizer

ASSETS = Path(mlit_jax.__file__).parent / "assets"


@pytest.fixture(scope="module")
def tokenizer():
  return Tokenizer.load(str(ASSETS / "tokenizer12"))


@pytest.fixture(scope="module")
def conversations():
  return read_sources([str(ASSETS / "instructions12" / "eval" / "*.jsonl")]).conversations


@pytest.fixture(scope="module")
def held_out(tokenizer, conversations):
  return make_eval_set("heldout", conversations, tokenizer, max_length=96, generate_rows=3)


@pytest.mark.parametrize("packing", [True, False])
def test_every_row_that_fits_is_scored_once(tokenizer, conversations, packing):
  made = make_eval_set(
    "s", conversations, tokenizer, max_length=96, generate_rows=0, packing=packing
  )
  dropped = sum(n for reasons in made.encoded.dropped.values() for n in reasons.values())
  assert dropped > 0 and len(made.encoded) + dropped == len(conversations) == 240
  assert made.questions == []
  assert sorted(i for row in made.rows for i in row) == list(range(len(made.encoded)))
  assert made.num_segments == max(map(len, made.rows)) and (made.num_segments > 1) == packing

  seen, tokens, weights = [], 0, 0
  batches = list(made.batches(7, made.num_segments + 2))
  assert len(batches) == -(-len(made.rows) // 7) and len(made.rows) % 7
  for batch, examples in batches:
    assert batch.tokens.shape == (7, 96) and examples.shape == (7, made.num_segments + 2)
    for r in range(7):
      # Segment s of a row is examples[r, s - 1]: what the scores are gathered by.
      for s, i in enumerate(examples[r], start=1):
        ids = batch.tokens[r][batch.segments[r] == s]
        if i < 0:
          assert len(ids) == 0
          continue
        seen.append(int(i))
        np.testing.assert_array_equal(ids, made.encoded.tokens_of(i))
        assert set(batch.language[r][batch.segments[r] == s]) == {made.encoded.language[i]}
    tokens += (batch.segments > 0).sum()
    weights += batch.weights.sum()
  assert sorted(seen) == list(range(len(made.encoded)))
  assert tokens == made.encoded.lengths.sum() and weights == made.encoded.trained_counts.sum()


def test_all_languages_answer_the_same_questions(held_out, conversations):
  by_lang = {}
  for q in held_out.questions:
    by_lang.setdefault(q.lang, []).append(q.group_id)
  assert len(by_lang) == 12
  assert all(groups == by_lang["en"] and len(set(groups)) == 3 for groups in by_lang.values())
  first = [c.group_id for c in conversations if c.lang == "en"][:3]
  assert by_lang["en"] != first  # by hash, not the head of the file


def test_only_rows_that_fit_are_asked(tokenizer, conversations):
  made = make_eval_set("s", conversations, tokenizer, max_length=60, generate_rows=8)
  assert made.encoded.dropped.keys() == set(made.encoded.languages)
  assert {q.example_id for q in made.questions} <= {
    made.encoded.example_id(i) for i in range(len(made.encoded))
  }
  assert all(len(q.tokens) < 60 for q in made.questions)


def test_more_questions_contain_the_fewer_and_the_order_of_rows_does_not_matter(
  tokenizer, conversations, held_out
):
  more = make_eval_set("heldout", conversations[::-1], tokenizer, max_length=96, generate_rows=5)
  assert {q.example_id for q in held_out.questions} < {q.example_id for q in more.questions}
  assert len(more.questions) == 60
  # Two rows of one group in one language: the same one, whichever comes first.
  twice = [dataclasses.replace(c, group_id="g") for c in conversations if c.lang == "hi"]
  one, two = (
    make_eval_set("s", rows, tokenizer, max_length=96, generate_rows=4)
    for rows in (twice, twice[::-1])
  )
  assert one.questions == two.questions


def test_a_question_is_the_prompt_of_the_last_answer_as_training_shows_it(tokenizer):
  messages = [
    ("system", "كن موجزًا"),
    ("user", "你好？"),
    ("assistant", "क्ष"),
    ("user", "Mitä?"),
    ("assistant", "Öö 🌙"),
  ]
  c = Conversation(tuple(Message(*m) for m in messages), "fi", "id", "g", "f", "f:1")
  q = make_question(c, tokenizer)
  assert (q.example_id, q.group_id, q.lang, q.prompt, q.reference) == (
    "id",
    "g",
    "fi",
    "Mitä?",
    "Öö 🌙",
  )
  rendered = tokenizer.template.render([dataclasses.asdict(m) for m in c.messages])
  start = rendered.spans[-1][0]
  assert rendered.text[start:].startswith("Öö 🌙")
  ids, _, ends = tokenizer.encode_with_offsets([rendered.text])[0]
  assert q.tokens == ids[: len(q.tokens)].tolist() and ends[len(q.tokens) - 1] == start
  assert q.tokens.count(tokenizer.bos_id) == 1


def test_a_set_without_rows_that_fit_is_empty(tokenizer, conversations):
  made = make_eval_set("s", conversations[:3], tokenizer, max_length=2, generate_rows=0)
  assert len(made.encoded) == 0 and made.num_segments == 1 and list(made.batches(4, 1)) == []
