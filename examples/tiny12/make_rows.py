"""Public text in twelve languages as rows for a small base model.

  python examples/tiny12/make_rows.py --data ../shared/data --out runs/tiny12/rows

A row is a passage cut after its first word: {"lang", "prompt", "completion"}. The template of
config.py puts the two together again, so the model learns to go on with text. Left out for configs/study
and for the evaluation here: the last documents of NTREX and the dev sentences of SIB-200. Sources and
licences: NTREX-128 (CC BY-SA 4.0), SIB-200 (CC BY-SA 4.0), Tatoeba (CC BY 2.0 FR), Home Assistant
intents (CC BY 4.0), Bible corpus (CC0, sw and et), OpenAssistant (Apache-2.0, en), ChatterBot corpus
(BSD-3-Clause).
"""

import argparse
import collections
import csv
import json
import re
from pathlib import Path
from xml.etree import ElementTree

import yaml

# ours -> NTREX, SIB-200, Tatoeba, ChatterBot
CODES = {
  "ar": ("arb", "arb_Arab", "ara", ""),
  "cs": ("ces", "ces_Latn", "ces", ""),
  "en": ("eng", "eng_Latn", "eng", "english"),
  "es": ("spa", "spa_Latn", "spa", "spanish"),
  "et": ("est", "est_Latn", "est", ""),
  "fi": ("fin", "fin_Latn", "fin", ""),
  "he": ("heb", "heb_Hebr", "heb", "hebrew"),
  "hi": ("hin", "hin_Deva", "hin", "hindi"),
  "it": ("ita", "ita_Latn", "ita", "italian"),
  "ru": ("rus", "rus_Cyrl", "rus", "russian"),
  "sw": ("swa", "swh_Latn", "swh", ""),
  "zh": ("zho-CN", "zho_Hans", "cmn", "chinese"),
}
BIBLES = {"sw": "Swahili-NT.xml", "et": "Estonian-PART.xml"}
PASSAGE = 3  # sentences of running text in one row
HELD_OUT_DOCUMENTS = 18  # of NTREX's 123, the last ones
MOST_BIBLE = 3000  # verses, so that no language has much more than the others
MOST_OASST = 100_000  # characters


def main():
  parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
  parser.add_argument("--data", type=Path, required=True, help="folder with the public data")
  parser.add_argument("--out", type=Path, required=True)
  args = parser.parse_args()
  for split in ("train", "eval"):
    (args.out / split).mkdir(parents=True, exist_ok=True)
  for lang in CODES:
    held_out = [*sib(args.data, lang, "dev")]
    train = [*ntrex(args.data, lang), *sib(args.data, lang, "train"), *tatoeba(args.data, lang)]
    train += [*home(args.data, lang), *bible(args.data, lang)]
    train += [*oasst(args.data, lang), *chatterbot(args.data, lang)]
    write(args.out / "train" / f"{lang}.jsonl", lang, train)
    write(args.out / "eval" / f"{lang}.jsonl", lang, held_out)
    print(f"{lang}: {len(train):,} passages, {sum(len(t.encode()) for t in train):,} bytes")


def ntrex(data: Path, lang: str):
  """Passages of consecutive sentences of one news document, but for the last documents."""
  space = "" if lang == "zh" else " "
  for sentences in list(ntrex_documents(data, lang).values())[:-HELD_OUT_DOCUMENTS]:
    for start in range(0, len(sentences), PASSAGE):
      yield space.join(sentences[start : start + PASSAGE])


def ntrex_documents(data: Path, lang: str) -> dict[str, list[str]]:
  """{document: sentences}, the same documents and sentences in every language."""
  code = CODES[lang][0]
  kind = "src" if lang == "en" else "ref"
  folder = data / "ntrex128"
  lines = (folder / "NTREX-128" / f"newstest2019-{kind}.{code}.txt").read_text("utf-8").splitlines()
  documents = collections.defaultdict(list)
  ids = (folder / "DOCUMENT_IDS.tsv").read_text("utf-8").splitlines()
  for name, line in zip(ids, lines, strict=True):
    documents[name].append(line.strip())
  return dict(documents)


def sib(data: Path, lang: str, split: str):
  path = data / "sib200" / "data" / "annotated" / CODES[lang][1] / f"{split}.tsv"
  with open(path, encoding="utf-8", newline="") as file:
    for row in csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE):
      yield row["text"].strip()


def tatoeba(data: Path, lang: str):
  code = CODES[lang][2]
  pair = "ara-eng" if lang == "en" else f"{code}-eng"
  path = data / "tatoeba_laser" / "data" / "tatoeba" / "v1" / f"tatoeba.{pair}.{code}"
  yield from (line.strip() for line in path.read_text("utf-8").splitlines())


def bible(data: Path, lang: str):
  if lang in BIBLES:
    root = ElementTree.parse(data / "bible_corpus" / "bibles" / BIBLES[lang]).getroot()
    verses = [" ".join(seg.text.split()) for seg in root.iter("seg") if seg.text]
    for start in range(0, min(len(verses), MOST_BIBLE), PASSAGE):
      yield " ".join(verses[start : start + PASSAGE])


def home(data: Path, lang: str):
  """What people say to their home, and its reply where the tests have one."""
  folder = data / "home_assistant_intents" / "tests" / ("zh-cn" if lang == "zh" else lang)
  for file in sorted(folder.glob("*.yaml")):
    for test in yaml.load(file.read_text("utf-8"), Loader=yaml.CSafeLoader).get("tests") or ():
      reply = test.get("response", "")
      reply = reply[0] if isinstance(reply, list) else reply
      for sentence in test.get("sentences") or ():
        yield f"{sentence}\n{reply}".strip()


def oasst(data: Path, lang: str):
  """Messages of OpenAssistant's English validation part."""
  if lang != "en":
    return
  path = data / "oasst1_en_fi" / "original-data" / "en-validation.jsonl"
  left = MOST_OASST
  for line in path.read_text("utf-8").splitlines():
    text = json.loads(line)["text"]
    left -= len(text)
    if left < 0:
      return
    yield text


def chatterbot(data: Path, lang: str):
  name = CODES[lang][3]
  if name:
    folder = data / "chatterbot_corpus" / "chatterbot_corpus" / "data" / name
    for file in sorted(folder.glob("*.yml")):
      for turns in yaml.safe_load(file.read_text("utf-8")).get("conversations", []):
        yield " ".join(" ".join(str(t).split()) for t in turns)


def write(path: Path, lang: str, passages):
  seen = set()
  with open(path, "w", encoding="utf-8") as file:
    for text in map(str.strip, passages):
      first = text[:1] if lang == "zh" else (re.match(r"\S+\s*", text) or [""])[0]
      if text in seen or not text[len(first) :].strip():
        continue
      seen.add(text)
      row = {"lang": lang, "prompt": first, "completion": text[len(first) :]}
      file.write(json.dumps(row, ensure_ascii=False) + "\n")


if __name__ == "__main__":
  main()
