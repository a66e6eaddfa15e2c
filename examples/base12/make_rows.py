"""Public text in twelve languages as rows for a small base model.

  python examples/base12/make_rows.py --data ../shared/data --out runs/base12/rows

A row is a passage cut after its first word: {"lang", "prompt", "completion"}. The template of
config.py puts the two together again, so the model learns to go on with text. Sources and licences:
NTREX-128 (CC BY-SA 4.0), SIB-200 (CC BY-SA 4.0), Tatoeba (CC BY 2.0 FR), Bible corpus (CC0, sw and et
only), ChatterBot corpus (BSD-3-Clause).
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
    train += [*bible(args.data, lang), *chatterbot(args.data, lang)]
    write(args.out / "train" / f"{lang}.jsonl", lang, train)
    write(args.out / "eval" / f"{lang}.jsonl", lang, held_out)
    print(f"{lang}: {len(train):,} passages, {sum(len(t.encode()) for t in train):,} bytes")


def ntrex(data: Path, lang: str):
  """Passages of consecutive sentences of one news document."""
  code = CODES[lang][0]
  kind = "src" if lang == "en" else "ref"
  folder = data / "ntrex128"
  lines = (folder / "NTREX-128" / f"newstest2019-{kind}.{code}.txt").read_text("utf-8").splitlines()
  documents = collections.defaultdict(list)
  ids = (folder / "DOCUMENT_IDS.tsv").read_text("utf-8").splitlines()
  for name, line in zip(ids, lines, strict=True):
    documents[name].append(line.strip())
  space = "" if lang == "zh" else " "
  for sentences in documents.values():
    for start in range(0, len(sentences), PASSAGE):
      yield space.join(sentences[start : start + PASSAGE])


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
    for start in range(0, 6000, PASSAGE):
      yield " ".join(verses[start : start + PASSAGE])


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
