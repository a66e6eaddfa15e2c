"""Suites of multiple choice, from local copies: Belebele, Global-MMLU, XCOPA, XStoryCloze, SIB-200."""

from __future__ import annotations

from mlit_jax.data.languages import normalise_tag
from mlit_jax.errors import UserError
from mlit_jax.evals.suites.copies import Row, read_copy
from mlit_jax.evals.suites.suite import Item, Suite, ask

LETTERS = "ABCDEFGHIJ"
# XCOPA asks for the cause of a premise, or for its effect: words that lead from the premise to each.
LEADS = {
  "et": ("sest", "nii et"),
  "ht": ("paske", "kidonk"),
  "id": ("karena", "sehingga"),
  "it": ("perché", "quindi"),
  "qu": ("imaraykuchus", "chayrayku"),
  "sw": ("kwa sababu", "kwa hiyo"),
  "ta": ("ஏனெனில்", "எனவே"),
  "th": ("เพราะ", "ดังนั้น"),
  "tr": ("çünkü", "bu yüzden"),
  "vi": ("bởi vì", "vì vậy"),
  "zh": ("因为", "所以"),
  "en": ("because", "so"),
}
NO_SPACES = ("zh", "th")
TOPICS = (
  "science/technology", "travel", "politics", "sports", "health", "entertainment", "geography",
)  # fmt: skip


def belebele(path: str) -> Suite:
  """Reading: a passage, a question and four answers (Bandarkar et al. 2023); A to D are compared."""
  items = []
  for row in read_copy(path):
    lang = _flores(row, "dialect")
    answers = tuple(str(row[f"mc_answer{i}"]) for i in (1, 2, 3, 4))
    question = f"{row['flores_passage']}\n\n{row['question']}"
    group = f"{row['link']}#{row['question_number']}"
    right = _number(row, "correct_answer_num", 4) - 1
    items.append(_lettered(f"{group}", lang, question, answers, right, group))
  return Suite("belebele", items, measure=())


def global_mmlu(path: str) -> Suite:
  """Knowledge: a question and four answers (Singh et al. 2024); A to D are compared."""
  items = []
  for row in read_copy(path):
    answers = tuple(str(row[f"option_{x}"]) for x in "abcd")
    group = str(row["sample_id"])
    right = "ABCD".find(str(row["answer"]).strip().upper())
    if right < 0:
      raise UserError(f"{row.place}: answer is {row['answer']!r}, not one of A, B, C, D")
    items.append(_lettered(group, row.language(), str(row["question"]), answers, right, group))
  return Suite("global_mmlu", items, measure=())


def xcopa(path: str) -> Suite:
  """Common sense: which of two sentences is the cause, or the effect (Ponti et al. 2020), continued as text."""
  items = []
  for row in read_copy(path):
    lang = row.language()
    base = lang.split("-")[0]
    if base not in LEADS:
      raise UserError(
        f"{row.place}: XCOPA in {lang} has no words for 'because' and 'so' here; known are {', '.join(LEADS)}"
      )
    lead = LEADS[base][str(row["question"]) != "cause"]
    gap = "" if base in NO_SPACES else " "
    premise = str(row["premise"]).rstrip(" .。")
    choices = tuple(gap + _lowered(str(row[f"choice{i}"])) for i in (1, 2))
    key = row.get("idx", "id")
    key = str(row.number if key is None else key)
    right = _number(row, "label", 1, first=0)
    items.append(Item(key, lang, ask(f"{premise}{gap}{lead}"), choices, right, key))
  return Suite("xcopa", items, measure=(), chat=False)


def xstorycloze(path: str) -> Suite:
  """Stories: which of two sentences ends a story of four (Lin et al. 2022), continued as text."""
  items = []
  for row in read_copy(path, split="validation"):
    lang = row.language()
    gap = "" if lang.split("-")[0] in NO_SPACES else " "
    told = gap.join(str(row[f"input_sentence_{i}"]).strip() for i in (1, 2, 3, 4))
    choices = tuple(gap + str(row[f"sentence_quiz{i}"]).strip() for i in (1, 2))
    key = str(row.get("story_id", "InputStoryid") or row.number)
    right = _number(row, "answer_right_ending", 2) - 1
    items.append(Item(key, lang, ask(told), choices, right, key))
  return Suite("xstorycloze", items, measure=(), chat=False)


def sib200(path: str) -> Suite:
  """Topics: which of seven a sentence is about (Adelani et al. 2024); the names of topics are compared."""
  items = []
  for row in read_copy(path):
    topic = str(row.get("category", "label") or "")
    if topic not in TOPICS:
      raise UserError(f"{row.place}: the topic {topic!r} is not one of {', '.join(TOPICS)}")
    key = str(row.get("index_id") or row.number)
    question = f"What is this text about? Answer with one of: {', '.join(TOPICS)}.\n\n{row['text']}"
    items.append(Item(key, row.language(), ask(question), TOPICS, TOPICS.index(topic), key))
  return Suite("sib200", items, measure=())


def _lettered(key, lang, question, answers, right, group) -> Item:
  listed = "\n".join(f"{letter}. {a}" for letter, a in zip(LETTERS, answers, strict=False))
  text = f"{question}\n\n{listed}\n\nAnswer with the letter alone."
  return Item(key, lang, ask(text), tuple(LETTERS[: len(answers)]), right, group)


def _flores(row: Row, column: str) -> str:
  """The language, from a column of FLORES codes where there is one, else as of any row."""
  code = row.get(column)
  return normalise_tag(code) if code else row.language()


def _number(row: Row, column: str, most: int, first: int = 1) -> int:
  try:
    number = int(row[column])
  except (TypeError, ValueError):
    number = first - 1
  if not first <= number <= most:
    raise UserError(f"{row.place}: {column} is {row[column]!r}; it must be {first} to {most}")
  return number


def _lowered(text: str) -> str:
  """A sentence that goes on in another: its first letter small (names become small too, in both choices alike)."""
  return text[:1].lower() + text[1:]
