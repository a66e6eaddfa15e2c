import pytest
from twelve import ANSWERED, ASKED, LANGUAGES

from mlit_jax.data.characters import has_control_characters, says_nothing

ENGLAND = "\U0001f3f4\U000e0067\U000e0062\U000e0065\U000e006e\U000e0067\U000e007f"


@pytest.mark.parametrize(
  "text",
  [
    "a\x00b", "\x07", "\x1b[0m", "\x0c", "\x7f", "\x85", "\x9f", "bad \ufffd byte", "\ufeffstart",
    "\ufff9", "\u206a", "\ue000", "\U000f0000", "\U0010ffff", "\ufdd0", "\uffff",
    "\u202eright to left", "a\u202c", "\u2067open", "a\u2069", "\u202aa\u2069", "\u2066\u202aa\u2069\u202c",
    "\U000e0041hidden", f"{ENGLAND} \U000e0041", "\U0001f3f4\U000e0067 cut off",
  ],
)  # fmt: skip
def test_control_characters(text):
  assert has_control_characters(text)


@pytest.mark.parametrize(
  "text",
  [
    *(texts[lang] for texts in (ASKED, ANSWERED) for lang in LANGUAGES),
    "tab\tline\r\nend", "می\u200cخواهم", "क्\u200dष", "👩\u200d👩\u200d👧", "❤\ufe0f 1\ufe0f\u20e3", ENGLAND,
    "\u200ea\u200f\u061c", "soft\u00adhyphen", "zero\u200bwidth", "word\u2060joiner", "\u2028\u2029",
    "\u2067\u202aabc\u202c\u2069 \u2066x\u2069", "\u202bשלום\u202c", "no\u00a0break", "\U000e0100ivs",
  ],
)  # fmt: skip
def test_what_scripts_and_emoji_need_is_text(text):
  assert not has_control_characters(text)


@pytest.mark.parametrize(
  "text",
  ["", " \n", "...", "—", "?!", "\u200b\u200d", "\u3164", "।", "。", "\u2800", "\ufe0f", "«»"],
)
def test_answers_that_say_nothing(text):
  assert says_nothing(text)


@pytest.mark.parametrize("text", ["a", "7", "👍", "+", "½", "你", "(c)", "→", "... no", "ा क", "$"])
def test_answers_that_say_something(text):
  assert not says_nothing(text)
