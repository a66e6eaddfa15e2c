"""Our verdicts on English instructions against those of the published checkers, as lm_eval ships them.

Every answer is also shouted, whispered, quoted, put under a preamble and so on, and every instruction is
asked of every one. Where the two differ, it stands below with the reason.
"""

import importlib.util

import pytest

from mlit_jax.evals.suites.instructions import read_instruction

LESS, LEAST = {"relation": "less than"}, {"relation": "at least"}

ASKED = [
  ("keywords:existence", {"keywords": ["bridge"]}),
  ("keywords:existence", {"keywords": ["river", "town"]}),
  ("keywords:frequency", {"keyword": "the", "frequency": 3, **LEAST}),
  ("keywords:frequency", {"keyword": "bridge", "frequency": 2, **LESS}),
  ("keywords:forbidden_words", {"forbidden_words": ["rain", "town"]}),
  ("keywords:forbidden_words", {"forbidden_words": ["art"]}),
  ("keywords:letter_frequency", {"letter": "e", "let_frequency": 12, "let_relation": "at least"}),
  ("keywords:letter_frequency", {"letter": "b", "let_frequency": 3, "let_relation": "less than"}),
  ("language:response_language", {"language": "fi"}),
  ("language:response_language", {"language": "en"}),
  ("language:response_language", {"language": "ru"}),
  ("length_constraints:number_sentences", {"num_sentences": 3, **LEAST}),
  ("length_constraints:number_sentences", {"num_sentences": 2, **LESS}),
  ("length_constraints:number_sentences", {"num_sentences": 5, **LEAST}),
  ("length_constraints:number_paragraphs", {"num_paragraphs": 2}),
  ("length_constraints:number_paragraphs", {"num_paragraphs": 1}),
  ("length_constraints:number_words", {"num_words": 25, **LEAST}),
  ("length_constraints:number_words", {"num_words": 12, **LESS}),
  ("length_constraints:nth_paragraph_first_word", {"num_paragraphs": 2, "nth_paragraph": 2, "first_word": "repairs"}),
  ("length_constraints:nth_paragraph_first_word", {"num_paragraphs": 1, "nth_paragraph": 1, "first_word": "the"}),
  ("detectable_content:number_placeholders", {"num_placeholders": 2}),
  ("detectable_content:postscript", {"postscript_marker": "P.S."}),
  ("detectable_content:postscript", {"postscript_marker": "P.P.S"}),
  ("detectable_format:number_bullet_lists", {"num_bullets": 2}),
  ("detectable_format:number_bullet_lists", {"num_bullets": 3}),
  ("detectable_format:constrained_response", {}),
  ("detectable_format:number_highlighted_sections", {"num_highlights": 1}),
  ("detectable_format:number_highlighted_sections", {"num_highlights": 2}),
  ("detectable_format:multiple_sections", {"section_spliter": "Section", "num_sections": 2}),
  ("detectable_format:json_format", {}),
  ("detectable_format:title", {}),
  ("combination:two_responses", {}),
  ("combination:repeat_prompt", {"prompt_to_repeat": "Why was the bridge closed?"}),
  ("startend:end_checker", {"end_phrase": "Any other questions?"}),
  ("startend:end_checker", {"end_phrase": "the rain stopped."}),
  ("startend:quotation", {}),
  ("change_case:capital_word_frequency", {"capital_frequency": 2, "capital_relation": "at least"}),
  ("change_case:capital_word_frequency", {"capital_frequency": 1, "capital_relation": "less than"}),
  ("change_case:english_capital", {}),
  ("change_case:english_lowercase", {}),
  ("punctuation:no_comma", {}),
]  # fmt: skip

PLAIN = "The old bridge was closed, and the town waited. Repairs began when the rain stopped."
ANSWERS = {
  "plain": PLAIN,
  "question": "Why was the bridge closed? The river had risen after the rain. Any other questions?",
  "paragraphs": "The bridge is closed to all traffic this week.\n\nRepairs, they say, will last until the end of May.",
  "dividers": "The bridge is closed to all traffic.\n***\nThe river has risen again after the storm.",
  "responses": "The bridge is closed because of the flood.\n******\nThe bridge is shut because the river rose.",
  "same twice": "The bridge is closed today.\n******\nThe bridge is closed today.",
  "bullets": "Things to bring to the old bridge:\n* a warm coat\n* a good map\n- the keys",
  "bold": "The **old bridge** over the *wide river* is closed to all traffic this week.",
  "title": "<<The Closed Bridge>>\nThe river rose and the town was cut off for a week.",
  "letter": "Dear [name], please meet me at [place] by the bridge.\n\nYours, Ann\n\nP.S. Bring the map. P.P.S. And a coat.",
  "sections": "Section 1\nThe bridge was closed in spring.\nSection 2\nThe repairs were done by autumn.",
  "json": '{"bridge": "closed", "reason": "the river rose after the rain"}',
  "fenced": '```json\n["the bridge", "the river"]\n```',
  "chosen": "My answer is no.",
  "capitals": "NASA and ESA measured the river near the bridge, and the UK paid for all of it.",
  "abbreviations": "Dr. Smith met Mrs. Jones at 3.30 p.m. by the bridge. They spoke of the U.S. plan, i.e. the repairs. Good!",
  "pauses": "Well... the bridge is closed, isn't it? Yes! It's closed; the well-known river rose.",
  "finnish": "Vanha silta joen yli on suljettu kahdeksi viikoksi, koska sateet olivat rankkoja ja joki nousi.",
  "russian": "Старый мост через реку закрыли на две недели, потому что после сильных дождей поднялась вода.",
  "spanish": "El viejo puente sobre el río estuvo cerrado dos semanas por las fuertes lluvias de abril.",
  "one word": "Bridge",
  "empty": " \n",
}  # fmt: skip
CHANGES = {
  "as it is": lambda a: a,
  "shouted": str.upper,
  "whispered": str.lower,
  "quoted": lambda a: f'"{a}"',
  "under a preamble": lambda a: f"Sure, here it is:\n{a}",
  "with a last line": lambda a: f"{a}\n\nAny other questions?",
  "without commas": lambda a: a.replace(",", ""),
  "twice": lambda a: f"{a}\n\n{a}",
  "starred": lambda a: f"*{a}*",
}

ALONE = ("as it is", "shouted", "whispered", "quoted", "without commas", "starred")
LANGUAGE, SENTENCES = "language:response_language", "length_constraints:number_sentences"
# Why ours is another on purpose: reason, instruction, answers, changes.
DIFFERENCES = [
  ("asterisks are in no language; theirs counts as followed what it finds no letter in",
   LANGUAGE, ("dividers", "responses", "same twice"), ALONE),
  ("an answer without letters is in no language", LANGUAGE, ("empty",), ("quoted", "starred")),
  ("capitals are read as small letters", LANGUAGE, ("finnish", "russian", "sections"), ("shouted",)),
  ("capitals are read as small letters", "change_case:english_capital", ("sections",), ("shouted",)),
  ("one word is too little to tell a language", LANGUAGE, ("one word",), ALONE + ("twice",)),
  ("a few words are too little to be sure of a language",
   LANGUAGE, ("finnish", "russian", "spanish", "empty"), ("under a preamble",)),
  ("titles and code are in no language, and little else is there",
   LANGUAGE, ("fenced",), ALONE + ("twice",)),
  ("titles and code are in no language, and little else is there",
   "change_case:english_capital", ("fenced",), ("shouted",)),
  ("titles and code are in no language, and little else is there",
   "change_case:english_lowercase", ("fenced",), tuple(set(CHANGES) - {"shouted", "with a last line"})),
  ("an asterisk at the end is no sentence", SENTENCES,
   ("plain", "paragraphs", "dividers", "responses", "same twice", "sections", "bold", "title", "chosen", "capitals",
    "finnish", "russian", "spanish", "abbreviations"), ("starred",)),
  ("P.S. and P.P.S. are no sentences", SENTENCES, ("letter",), ALONE + ("under a preamble",)),
  ("no sentence ends at i.e.", SENTENCES, ("abbreviations",), ("with a last line",)),
  ("*emphasis at the beginning of a line is no bullet", "detectable_format:number_bullet_lists", ("bullets",), ("starred",)),
]  # fmt: skip
REASONS = {
  (n, a, c): why for why, n, answers, changes in DIFFERENCES for a in answers for c in changes
}


@pytest.fixture(scope="module")
def theirs():
  for name in ("lm_eval", "nltk", "langdetect", "immutabledict"):
    if importlib.util.find_spec(name) is None:
      pytest.skip(f"{name} is not installed: pip install 'lm_eval[ifeval]'")
  import nltk

  try:  # else the import below tries to fetch it
    nltk.data.find("tokenizers/punkt_tab/english/")
  except LookupError:
    pytest.skip("no punkt_tab of nltk: python -m nltk.downloader punkt_tab")
  import langdetect
  from lm_eval.tasks.ifeval import utils

  langdetect.DetectorFactory.seed = 0

  def verdicts(name, given, answer):
    asked = utils.InputExample(0, [name], "?", [given])
    return tuple(
      test(asked, answer).follow_instruction_list[0]
      for test in (utils.test_instruction_following_strict, utils.test_instruction_following_loose)
    )

  return verdicts


def test_verdicts_are_those_of_the_published_checkers(theirs):
  differing, asked = {}, 0
  for name, given in ASKED:
    instruction = read_instruction(name, given, "here")
    for answer, text in ANSWERS.items():
      for change, changed in CHANGES.items():
        text_now, asked = changed(text), asked + 1
        ours = (instruction.follows(text_now), instruction.follows_loosely(text_now))
        published = theirs(name, given, text_now)
        if ours != published:
          differing[name, answer, change] = (given, text_now, ours, published)
  assert asked == 8118
  print("\n".join(f"{k}: {v}" for k, v in differing.items() if k not in REASONS))
  assert set(differing) <= set(REASONS)
  # Which short texts a detector is sure of changes with its version.
  assert {
    k for k in REASONS if k[0] in (SENTENCES, "detectable_format:number_bullet_lists")
  } <= set(differing)
  assert len(differing) < asked / 100
