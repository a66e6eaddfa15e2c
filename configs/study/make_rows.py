"""Instruction rows of the study: the same 1,600 or so tasks in twelve languages.

  python configs/study/make_rows.py --data ../shared/data --out runs/study/rows \
    --tokenizer runs/tiny12/tokenizer/tokenizer.model

Writes <out>/train/<lang>.jsonl and <out>/eval/<lang>.jsonl, rows {"lang", "group_id", "task", "prompt",
"completion"}, and prints how many there are. The tokenizer only counts; the rows are the same without.

  topic        a sentence -> its topic as a sentence, one of seven
  continue     a sentence of the news -> the next of the document, both whole
  first_words  a sentence -> its first three words (zh: four characters), in a sentence
  repeat       the first seven words of a sentence (zh: up to its first mark) -> the same

Sources: SIB-200 (topic; in train first_words and repeat, too) and NTREX-128 (all but topic), both CC BY-SA 4.0, and
so are the rows. Eval is of what examples/tiny12/make_rows.py keeps from the base: NTREX's last documents
and SIB-200's dev sentences. Of train the base has read the sentences, though no instruction.
A group is the same source sentence in every language, or it is left out. Its first words are those of the
language: with another word order they say something else.
Left out: Tatoeba (CC BY 2.0 FR), where no sentence is in more than five of these languages, and Home
Assistant intents, which et, he, hi and sw hardly have.

The wording is in instructions.json, beside this file. A large language model wrote it and looked it over
a second time; no native speaker has read it.
"""

import argparse
import collections
import csv
import importlib.util
import itertools
import json
import random
import statistics
import unicodedata
from pathlib import Path

import regex
import sentencepiece

from mlit_jax.data.foreign import foreign_share, scripts_of
from mlit_jax.detect import LanguageDetector
from mlit_jax.errors import UserError
from mlit_jax.evals import fidelity

HERE = Path(__file__).parent
spec = importlib.util.spec_from_file_location(
  "base_rows", HERE.parent.parent / "examples" / "tiny12" / "make_rows.py"
)
base_rows = importlib.util.module_from_spec(spec)
spec.loader.exec_module(base_rows)

LANGUAGES = tuple(base_rows.CODES)
INSTRUCTIONS = json.loads((HERE / "instructions.json").read_text(encoding="utf-8"))
GROUPS = {"train": 440, "eval": 12}  # of a task, as far as there are so many
SEED = 0
# Characters of a token, about: medians of NTREX with the tokenizer of examples/tiny12. So which rows
# there are does not hang on a tokenizer; a row's real count is up to a quarter higher.
CHARACTERS = {
  "ar": 2.0, "cs": 2.3, "en": 2.8, "es": 2.8, "et": 2.6, "fi": 2.7,
  "he": 2.0, "hi": 2.1, "it": 2.9, "ru": 2.1, "sw": 2.9, "zh": 1.0,
}  # fmt: skip
LONGEST_PROMPT, LONGEST_ANSWER = 110, 48  # tokens by that count
SHORTEST_NEXT = 9  # of `continue`: "Come on." tells no language
MOST_TOKENS = 192  # of a row with its marks, which MARKS leaves room for
MARKS = 8
REPEATED_WORDS = 7

WORD = r"[\p{L}\p{M}'’-]+"
OPENING = r"[\p{Pi}\p{Ps}\"„«]*"  # before the first word
THREE_WORDS = regex.compile(rf"{OPENING}({WORD} {WORD} {WORD})(?=[\s\p{{P}}]|$)")
FOUR_CHARACTERS = regex.compile(r"[\p{Pi}\p{Ps}\"]*(\p{Han}{4})")
QUOTES = regex.compile(r"[\"\p{Pi}\p{Ps}\p{Pe}„”»]")
FIRST_PART = regex.compile(r"[^\p{P}]{6,22}(?:[。！？]|(?=[，；：、…])|$)")
COMMAS = " ,;:،؛–—-"
INVISIBLE = regex.compile(r"[\u00ad\u200b\u200e\u200f\u202a-\u202e\u2060\ufeff]")


def main():
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("--data", type=Path, required=True, help="folder with the public data")
  parser.add_argument("--out", type=Path, required=True)
  parser.add_argument("--tokenizer", type=Path, help="SentencePiece model to count tokens with")
  args = parser.parse_args()
  for path in (args.data / "ntrex128", args.data / "sib200", args.tokenizer):
    if path and not path.exists():
      parser.error(f"{path} is not there; --help says what it is")
  rows = {}
  for split, number in GROUPS.items():
    try:
      found = candidates(args.data, split)
    except UserError as e:
      parser.error(str(e))
    # News repeats itself: a few sentences and beginnings of the held-out documents stand in others.
    known = {lang: base_text(args.data, lang) for lang in LANGUAGES if split == "eval"}
    groups, left_out = choose(found, number, known)
    rows[split] = write(args.out / split, groups)
    print_groups(split, groups, left_out)
  print_languages(rows, args.tokenizer)
  print_judged(rows["eval"])


# ------------------------------------------------------------------------------------- material


def candidates(data: Path, split: str) -> dict[str, list]:
  """{task: [(group_id, {lang: fields})]} in an order by chance; a language that has none is missing."""
  news, labelled = documents(data, split), topics(data, split)
  sentences = [(f"{name}/{i}", texts) for name, doc in news for i, texts in enumerate(doc)]
  # In eval the two have enough of NTREX; SIB-200's dev sentences are fewer, and of `topic`.
  other = [(f"sib/{i}", texts) for i, _, texts in labelled] if split == "train" else []
  out = {
    "topic": [
      (f"sib/{i}", {lang: {"text": t, "topic": topic} for lang, t in texts.items()})
      for i, topic, texts in labelled
    ],
    "continue": [
      (
        f"{name}/{i}",
        {lang: {"text": doc[i][lang], "next": doc[i + 1][lang]} for lang in LANGUAGES},
      )
      for name, doc in news
      for i in range(len(doc) - 1)
    ],
    "first_words": [(i, by_language(texts, first_words)) for i, texts in sentences + other],
    "repeat": [(i, by_language(texts, beginning)) for i, texts in sentences + other],
  }
  for task, entries in out.items():
    random.Random(f"{SEED}/{split}/{task}").shuffle(entries)
  out["topic"] = evenly(out["topic"], lambda entry: entry[1]["en"]["topic"])
  return out


def documents(data: Path, split: str) -> list[tuple[str, list[dict[str, str]]]]:
  """[(name, [{lang: sentence}])] of NTREX: the base's for train, those held out from it for eval."""
  found = {lang: base_rows.ntrex_documents(data, lang) for lang in LANGUAGES}
  names, held_out = list(found["en"]), base_rows.HELD_OUT_DOCUMENTS
  names = names[:-held_out] if split == "train" else names[-held_out:]
  return [
    (name, [parallel(texts) for texts in zip(*(found[lang][name] for lang in LANGUAGES))])
    for name in names
  ]


def topics(data: Path, split: str) -> list[tuple[str, str, dict[str, str]]]:
  """[(index, topic, {lang: sentence})] of SIB-200: train for train, dev for eval."""
  found = {}
  for lang in LANGUAGES:
    path = sib_file(data, lang, split)
    with open(path, encoding="utf-8", newline="") as file:
      found[lang] = list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))
  key = [(row["index_id"], row["category"]) for row in found["en"]]
  for lang, rows in found.items():
    if [(row["index_id"], row["category"]) for row in rows] != key:
      raise UserError(
        f"{sib_file(data, lang, split)}: index_id and category are not those of the English file, so "
        "the sentences are not parallel. Get all languages from one version of SIB-200."
      )
  texts = zip(*([row["text"] for row in found[lang]] for lang in LANGUAGES), strict=True)
  return [(*known, parallel(row)) for known, row in zip(key, texts, strict=True)]


def sib_file(data: Path, lang: str, split: str) -> Path:
  name = "train.tsv" if split == "train" else "dev.tsv"
  return data / "sib200" / "data" / "annotated" / base_rows.CODES[lang][1] / name


def base_text(data: Path, lang: str) -> str:
  """All that the base reads of a language."""
  passages = [*base_rows.ntrex(data, lang), *base_rows.sib(data, lang, "train")]
  for source in ("tatoeba", "home", "bible", "oasst", "chatterbot"):
    passages += getattr(base_rows, source)(data, lang)
  return "\n".join(map(clean, passages))


def parallel(texts) -> dict[str, str]:
  return {lang: clean(text) for lang, text in zip(LANGUAGES, texts, strict=True)}


def clean(text: str) -> str:
  """Without what nobody sees, and without the quotation marks of CSV: '"a ""b"" c"' -> a "b" c."""
  text = " ".join(unicodedata.normalize("NFC", INVISIBLE.sub("", text)).split())
  while len(text) > 1 and text[0] == text[-1] == '"' and '""' in text:  # some twice
    text = text[1:-1].replace('""', '"').strip()
  return text


def by_language(texts: dict[str, str], fields_of) -> dict[str, dict]:
  """{lang: fields}, without the languages for which `fields_of` has none."""
  fields = {lang: fields_of(text, lang) for lang, text in texts.items()}
  return {lang: f for lang, f in fields.items() if f}


def first_words(text: str, lang: str) -> dict | None:
  """Three words of letters with nothing between them: "“We can do more" -> We can do."""
  found = (FOUR_CHARACTERS if lang == "zh" else THREE_WORDS).match(text)
  return {"text": text, "words": found[1]} if found else None


def beginning(text: str, lang: str) -> dict | None:
  """The first words of a sentence (zh: up to its first mark); none where a quotation would be cut."""
  if lang == "zh":
    found = FIRST_PART.match(text)
    start = found[0] if found else ""
  else:
    words = text.split()[:REPEATED_WORDS]
    start = " ".join(words).rstrip(COMMAS) if len(words) == REPEATED_WORDS else ""
  return {"text": start} if start and not QUOTES.search(start) else None


def evenly(entries: list, kind) -> list:
  """One of each kind in turn, as long as there are any."""
  kinds = collections.defaultdict(list)
  for entry in entries:
    kinds[kind(entry)].append(entry)
  turns = itertools.zip_longest(*(kinds[name] for name in sorted(kinds)))
  return [entry for turn in turns for entry in turn if entry]


# ----------------------------------------------------------------------------------------- rows


def choose(found: dict[str, list], number: int, known: dict[str, str]):
  """([{lang: row}], {(task, reason): groups left out}): so many of each task, the tasks in turn."""
  left_out, chosen = collections.Counter(), []
  for task, entries in found.items():
    kept, seen = [], set()
    for name, fields in entries:
      if len(kept) == number:
        left_out[task, "not needed"] += 1
        continue
      group = rows_of(task, name, fields, len(kept))
      if reason := fault(group, fields, seen, known):
        left_out[task, reason] += 1
        continue
      seen.update((lang, fields[lang]["text"]) for lang in LANGUAGES)
      kept.append(group)
    chosen.append(kept)
  turns = itertools.zip_longest(*chosen)
  return [group for turn in turns for group in turn if group], left_out


def rows_of(task: str, name: str, fields: dict[str, dict], number: int) -> dict[str, dict]:
  """{lang: row}, all in the same of the wordings."""
  rows = {}
  for lang, values in fields.items():
    wording = INSTRUCTIONS[task][lang]
    prompts, answers = wording["prompts"], wording["answers"]
    answer = answers[values["topic"]] if task == "topic" else answers
    rows[lang] = {
      "lang": lang,
      "group_id": f"{task}/{name}",
      "task": task,
      "prompt": prompts[number % len(prompts)].format(**values),
      "completion": answer.format(**values),
    }
  return rows


def fault(group: dict[str, dict], fields: dict[str, dict], seen: set, known: dict[str, str]) -> str:
  """Why a group is left out, in whatever language; "" if it is not."""
  if len(group) < len(LANGUAGES):
    return "unfit"
  if any((lang, fields[lang]["text"]) in seen for lang in LANGUAGES):
    return "twice"
  for lang, text in known.items():
    if any(fields[lang].get(key, fields[lang]["text"]) in text for key in ("text", "next")):
      return "read"
  for lang, row in group.items():
    shares = [foreign_share(row[key], scripts_of(lang)) for key in ("prompt", "completion")]
    if max(shares) > fidelity.FOREIGN_SHARE:
      return "script"
    prompt, answer = (len(row[key]) / CHARACTERS[lang] for key in ("prompt", "completion"))
    if row["task"] == "continue" and answer < SHORTEST_NEXT:
      return "short"
    if prompt > LONGEST_PROMPT or answer > LONGEST_ANSWER:
      return "long"
  return ""


def write(folder: Path, groups: list[dict[str, dict]]) -> dict[str, list[dict]]:
  folder.mkdir(parents=True, exist_ok=True)
  rows = {lang: [group[lang] for group in groups] for lang in LANGUAGES}
  for lang in LANGUAGES:
    with open(folder / f"{lang}.jsonl", "w", encoding="utf-8", newline="\n") as file:
      file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows[lang])
  return rows


# --------------------------------------------------------------------------------------- tables


def print_groups(split: str, groups: list[dict[str, dict]], left_out: collections.Counter):
  written = collections.Counter(group["en"]["task"] for group in groups)
  for task in INSTRUCTIONS:
    reasons = ", ".join(f"{reason} {n}" for (t, reason), n in sorted(left_out.items()) if t == task)
    print(f"{split:5} {task:11} {written[task]:4} groups; left out: {reasons or 'none'}")


def print_languages(rows: dict[str, dict[str, list[dict]]], tokenizer: Path | None):
  """Rows and, with a tokenizer, tokens of train and eval together."""
  print(
    f"\nlang  train  eval{'  tokens of train  median answer  longest answer  longest row' * bool(tokenizer)}"
  )
  model = sentencepiece.SentencePieceProcessor(str(tokenizer)) if tokenizer else None
  for lang in LANGUAGES:
    train, held_out = rows["train"][lang], rows["eval"][lang]
    line = f"{lang:4}  {len(train):5}  {len(held_out):4}"
    if model:
      lengths = [
        [len(model.encode(r[k])) for k in ("prompt", "completion")] for r in train + held_out
      ]
      answers, whole = [a for _, a in lengths], [p + a for p, a in lengths]
      line += (
        f"  {sum(whole[: len(train)]):15,}  {statistics.median(answers):13g}  {max(answers):14}"
      )
      line += f"  {max(whole):11}"
      over = sum(n + MARKS > MOST_TOKENS for n in whole)
      line += f"  {over} over {MOST_TOKENS} tokens" if over else ""
    print(line)


def print_judged(rows: dict[str, list[dict]]):
  """How many of the answers of eval are found to be in their language: what a model can reach."""
  detector = LanguageDetector(LANGUAGES)
  print("\neval answers judged right\nlang  " + "  ".join(INSTRUCTIONS))
  for lang in LANGUAGES:
    verdicts = fidelity.judge(
      [row["completion"] for row in rows[lang]],
      [lang] * len(rows[lang]),
      detector,
      [row["prompt"] for row in rows[lang]],
    )
    right = collections.defaultdict(list)
    for row, verdict in zip(rows[lang], verdicts, strict=True):
      right[row["task"]].append(verdict.right)
    shares = [f"{statistics.mean(right[task]):{len(task)}.2f}" for task in INSTRUCTIONS]
    print(f"{lang:4}  " + "  ".join(shares))


if __name__ == "__main__":
  main()
