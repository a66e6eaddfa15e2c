"""Real public rows in 12 languages, as JSONL for configs/real_rows.py.

  python examples/real_rows.py --data ../shared/data --out runs/real_rows

Writes <out>/train/<lang>.jsonl and <out>/eval/<lang>.jsonl, and prints what was left out and why.
Two sources, as folders below --data:

  home_assistant_intents  a command and the reply to it, written by volunteers. CC BY 4.0,
                          github.com/home-assistant/intents. Whether a light is on stands in a
                          fixture that the rows do not show, so some replies cannot be known.
  oasst1_en_fi            OASST1 (English, written by people) and its Finnish translation by DeepL,
                          row by row parallel. Apache-2.0, github.com/TurkuNLP/oasst-fi. DeepL's
                          terms forbid training machine translation on the Finnish text. Some rows
                          are unpleasant; nothing is filtered for that.
"""

import argparse
import collections
import hashlib
import json
import re
import unicodedata
import zipfile
from pathlib import Path
from xml.etree import ElementTree

import yaml

HOLD_OUT = 0.1  # of the rows of a language and source ...
HOLD_OUT_MOST = 40  # ... but no more than so many
HOME, OASST = "home_assistant_intents", "oasst1_en_fi"
LANGUAGES = {"zh-cn": "zh"}  # the folder's name where it is not the language's
SCRIPTS = {"ar": "ARABIC", "he": "HEBREW", "hi": "DEVANAGARI", "ru": "CYRILLIC", "zh": "CJK"}
W = "{http://schemas.openxmlformats.org/wordprocessingml/2006/main}"


def main():
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("--data", type=Path, required=True, help="folder that holds the two sources")
  parser.add_argument("--out", type=Path, required=True)
  args = parser.parse_args()
  for source in (HOME, OASST):
    if not (args.data / source).is_dir():
      parser.error(
        f"--data {args.data}: there is no folder {source!r}; --help says where to get it"
      )

  left_out = collections.Counter()  # (language, source, reason) -> rows
  candidates = home_assistant(args.data / HOME, left_out) + oasst(args.data / OASST, left_out)
  train, held_out = split(candidates, left_out)
  write(args.out / "train", train)
  write(args.out / "eval", held_out)
  print_table(train, held_out, left_out)


# --------------------------------------------------------------------------------- Home Assistant


def home_assistant(folder: Path, left_out) -> list[tuple[str, dict]]:
  """(what is held out together, row) of every command that has a usable reply."""
  candidates, seen = [], set()
  for file in sorted(folder.glob("tests/*/**/*.yaml")):
    path = file.relative_to(folder / "tests")
    lang = LANGUAGES.get(path.parts[0], path.parts[0])
    number = 0
    for test in read_yaml(file).get("tests") or []:  # fixtures and known failures have no tests
      response = test.get("response")
      if isinstance(response, list):  # any of them would do
        response = response[0] if response else None
      answer = one_line(response or "")
      for sentence in test["sentences"]:
        number += 1
        prompt = one_line(sentence)
        reason = unusable(prompt, answer, lang)
        if not reason and (lang, prompt, answer) in seen:
          reason = "duplicate"
        if reason:
          left_out[lang, HOME, reason] += 1
          continue
        seen.add((lang, prompt, answer))
        row = {
          "messages": conversation([prompt, answer]),
          "lang": lang,
          "id": f"{HOME}/{path.with_suffix('').as_posix()}/{number}",
          "source": HOME,
          "provenance": "human",
        }
        # One reply has many wordings of one command, which must not stand on both sides.
        candidates.append((f"{path.as_posix()} {answer}", row))
  return candidates


def read_yaml(file: Path) -> dict:
  loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # the one in C is ten times as fast
  return yaml.load(file.read_text(encoding="utf-8"), loader)


def unusable(prompt: str, answer: str, lang: str) -> str | None:
  if not answer:
    return "no reply"
  if re.search(r"[\[\](){}|<>]", prompt + answer):
    return "unrendered template"  # kuchy(ň|ni|ně)
  letters = [c for c in answer if c.isalpha()]
  own = [c for c in letters if unicodedata.name(c, "").startswith(SCRIPTS.get(lang, ""))]
  if 2 * len(own) < len(letters):
    return "reply in another script"  # zh: "3 minutes left."
  return None


def one_line(text: str) -> str:
  return " ".join(text.split())


# ------------------------------------------------------------------------------------------ OASST1


def oasst(folder: Path, left_out) -> list[tuple[str, dict]]:
  """(tree, row) of every prompt and its best-ranked reply, with the turns before, in en and fi.

  The turns before are the ones that the prompt answers, whatever their rank. Trees are held out,
  not prompts, because the row of a later turn repeats the earlier ones.
  """
  lines = (folder / "original-data" / "en-validation.jsonl").read_text(encoding="utf-8").split("\n")
  messages = [json.loads(line) for line in lines if line]
  english = [m["text"] for m in messages]
  finnish = docx_texts(sorted(folder.glob("doc-out/en-validation-*.docx")))
  if len(finnish) != len(messages):
    raise SystemExit(f"{folder}: {len(messages)} English messages, {len(finnish)} Finnish ones")
  texts = {
    m["message_id"]: {"en": en.strip(), "fi": reindent(fi, en).strip()}
    for m, en, fi in zip(messages, english, finnish, strict=True)
  }
  by_id = {m["message_id"]: m for m in messages}
  replies = collections.defaultdict(list)
  for m in messages:
    replies[m["parent_id"]].append(m)

  candidates = []
  for prompt in messages:
    if prompt["role"] != "prompter":
      continue
    good = [m for m in replies[prompt["message_id"]] if not m["deleted"] and m["review_result"]]
    if not good:
      reason = "only rejected replies" if replies[prompt["message_id"]] else "no reply"
      for lang in ("en", "fi"):
        left_out[lang, OASST, reason] += 1
      continue
    best = min(good, key=lambda m: m["rank"] or 0)  # 0 is best; an only reply has none
    path = path_to(best, by_id)
    if any(lost_a_line(texts[m["message_id"]]) for m in path):
      for lang in ("en", "fi"):
        left_out[lang, OASST, "line lost in translation"] += 1
      continue
    for lang, provenance in (("en", "human"), ("fi", "machine translation (DeepL)")):
      row = {
        "messages": conversation([texts[m["message_id"]][lang] for m in path]),
        "lang": lang,
        "group_id": prompt["message_id"],
        "id": f"{OASST}/{best['message_id']}/{lang}",
        "source": OASST,
        "provenance": provenance,
      }
      candidates.append((prompt["message_tree_id"], row))
  return candidates


def path_to(message: dict, by_id: dict) -> list[dict]:
  """The messages from the root of the tree to this one."""
  path = [message]
  while path[0]["parent_id"] is not None:
    path.insert(0, by_id[path[0]["parent_id"]])
  return path


def docx_texts(files: list[Path]) -> list[str]:
  """The texts under the headings "Asiakirja 0", "Asiakirja 1", ...; numbered over all files."""
  marks = {W + "br": "\n", W + "tab": "\t"}
  texts = []
  for file in files:
    document = ElementTree.fromstring(zipfile.ZipFile(file).read("word/document.xml"))
    for paragraph in document.iter(W + "p"):
      text = "".join(
        (e.text or "") if e.tag == W + "t" else marks.get(e.tag, "") for e in paragraph.iter()
      )
      if heading := re.fullmatch(r"Asiakirja (\d+)", text.strip()):
        if int(heading[1]) != len(texts):
          raise SystemExit(f"{file}: heading {text!r} where number {len(texts)} should be")
        texts.append("")
      else:
        texts[-1] += "\n" + text if texts[-1] else text
  return texts


def reindent(translated: str, original: str) -> str:
  r"""The translation, indented as the original; DeepL put a space after line breaks.

  translated "Edut:\n\n Python"    original "Benefits:\n\nPython"    ->    "Edut:\n\nPython"
  """
  lines, models = translated.split("\n"), original.split("\n")
  if len(lines) != len(models):
    raise SystemExit(f"{len(models)} lines became {len(lines)} in translation: {translated[:60]!r}")
  indents = [model[: len(model) - len(model.lstrip())] for model in models]
  return "\n".join(i + line.lstrip() for i, line in zip(indents, lines, strict=True))


def lost_a_line(text: dict[str, str]) -> bool:
  """Whether DeepL left a line empty; most often the last one of a list or of code."""
  filled = [[bool(line.strip()) for line in text[lang].split("\n")] for lang in ("en", "fi")]
  return filled[0] != filled[1]


# ------------------------------------------------------------------------------------ both sources


def conversation(texts: list[str]) -> list[dict]:
  """The texts as turns of user and assistant."""
  return [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(texts)]


def split(candidates: list[tuple[str, dict]], left_out) -> tuple[list[dict], list[dict]]:
  """Train and held-out rows. Rows with one key stand on one side, in all languages of a source.

  Keys are held out in the order of their hash as long as they fit into a tenth of the rows, so that
  new rows move few old ones. A key with more than a quarter of what may be held out stays in
  train: else one reply would be most of what is evaluated.
  """
  parts = collections.defaultdict(list)
  for key, row in candidates:
    parts[row["lang"], row["source"]].append((key, row))
  train, held_out = [], []
  for rows in parts.values():
    room = min(HOLD_OUT_MOST, round(HOLD_OUT * len(rows)))
    most, chosen = max(1, room // 4), set()
    sizes = collections.Counter(key for key, _ in rows)
    for key in sorted(sizes, key=stable_hash):
      if sizes[key] <= min(most, room):
        chosen.add(key)
        room -= sizes[key]
    held_out += [row for key, row in rows if key in chosen]
    train += [row for key, row in rows if key not in chosen]

  prompts = {prompt_key(row) for row in held_out}
  for row in train:
    if prompt_key(row) in prompts:
      left_out[row["lang"], row["source"], "prompt also held out"] += 1
  return [row for row in train if prompt_key(row) not in prompts], held_out


def prompt_key(row: dict) -> tuple[str, str]:
  """All before the last answer, without case, spaces and punctuation."""
  text = "\n".join(m["content"] for m in row["messages"][:-1]).casefold()
  return row["lang"], "".join(c for c in text if unicodedata.category(c)[0] not in "PZC") or text


def stable_hash(text: str) -> str:
  return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


def write(folder: Path, rows: list[dict]) -> None:
  folder.mkdir(parents=True, exist_ok=True)
  by_lang = collections.defaultdict(list)
  for row in rows:
    by_lang[row["lang"]].append(json.dumps(row, ensure_ascii=False) + "\n")
  for lang, lines in by_lang.items():
    (folder / f"{lang}.jsonl").write_text("".join(lines), encoding="utf-8", newline="\n")


def print_table(train: list[dict], held_out: list[dict], left_out) -> None:
  counts = [
    collections.Counter((r["lang"], r["source"]) for r in rows) for rows in (train, held_out)
  ]
  print(f"{'lang':5}{'source':24}{'train':>6}{'eval':>6}  left out")
  for part in sorted({*counts[0], *counts[1], *(key[:2] for key in left_out)}):
    reasons = ", ".join(f"{n} {key[2]}" for key, n in sorted(left_out.items()) if key[:2] == part)
    print(f"{part[0]:5}{part[1]:24}{counts[0][part]:6}{counts[1][part]:6}  {reasons}")
  print(f"{'all':29}{len(train):6}{len(held_out):6}  {sum(left_out.values())}")


if __name__ == "__main__":
  main()
