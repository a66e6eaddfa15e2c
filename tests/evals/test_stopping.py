"""Tokens are bytes here, so that characters span several of them."""

import pytest

from mlit_jax.errors import UserError
from mlit_jax.evals.stopping import GrowingText, check_stop_texts, cut


def decode(tokens):
  return bytes(tokens).decode("utf-8", errors="replace")


def words(tokens):
  """Tokens of several characters each."""
  return "".join(WORDS[t] for t in tokens)


WORDS = ["One", ".\n", "\nTwo", " and\n\nQ", "\n\n"]


def test_cut_by_hand():
  assert cut([0, 1, 2, 3], words, ["\n\n"]) == (2, "One.")
  assert cut([0, 3], words, ["\n\n"]) == (2, "One and")  # one token holds text and stop
  assert cut([4, 0], words, ["\n\n"]) == (0, "")
  assert cut([0, 1, 0], words, ["\n\n"]) is None
  assert cut([], words, ["\n\n"]) is None


@pytest.mark.parametrize("text", ["Ndiyo. Насправді, так. Q: 你好", "नमस्ते।\nQ: हाँ", "שלום ◆ עולם"])
def test_the_answer_does_not_depend_on_how_many_tokens_more_are_known(text):
  tokens = list(text.encode())
  stop_texts = ["так. Q", "।\n", "◆", "Q:"]
  answers = [cut(tokens[:n], decode, stop_texts) for n in range(len(tokens) + 1)]
  first = next(n for n, answer in enumerate(answers) if answer)
  assert len(set(answers[first:])) == 1 and not any(answers[:first])
  num, answer = answers[first]
  assert decode(tokens[:num]) == answer  # each character has bytes of its own
  assert any(text.startswith(answer + stop) for stop in stop_texts)
  for known in range(first):
    assert cut(tokens, decode, stop_texts, known=known) == (num, answer)


def test_the_first_stop_string_to_be_complete_counts():
  """The longer one begins earlier, but is complete later: nobody has waited for it."""
  text = "a bcd e"
  assert cut(list(text.encode()), decode, ["bcd e", "cd"]) == (3, "a b")
  assert cut(list(text.encode()), decode, ["bcd e"]) == (2, "a ")


def test_growing_text_shows_whole_characters_and_holds_back_what_may_be_a_stop_string():
  growing = GrowingText(decode, ["\n\nQ"])
  pieces = [growing.add(t) for t in "né\n\nל\n\nQ".encode()]
  assert pieces == ["n", "", "é", "", "", "", "\n\nל", "", "", ""]
  assert growing.stopped and growing.shown == "né\n\nל" and growing.rest() == ""


def test_growing_text_shows_the_rest_when_no_stop_string_came():
  growing = GrowingText(decode, ["\n\nQ"])
  shown = "".join(growing.add(t) for t in b"ab\n\n")
  assert (shown, growing.rest(), growing.shown) == ("ab", "\n\n", "ab\n\n")
  growing = GrowingText(decode)
  assert growing.add(0xE4) == "" and growing.rest() == "\ufffd"  # half a character, and no more


@pytest.mark.parametrize("bad", ["text", ["a", ""], [1]])
def test_stop_strings_that_are_none_are_refused(bad):
  with pytest.raises(UserError, match="stop strings"):
    check_stop_texts(bad)
