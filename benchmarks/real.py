"""Real instruction-like rows in twelve languages for the other benchmarks, from folders below --data.

What examples/real_rows.py makes (commands and their replies, conversations), and passages of NTREX-128 to
be translated: a passage is one to ten sentences of one document in a row. Into English from eleven languages,
from English into each of them; so English has most rows, as in public instruction data.
"""

import collections
import hashlib
import importlib.util
import json
from pathlib import Path

from mlit_jax.data.cache import open_cache
from mlit_jax.data.encoded import Encoded
from mlit_jax.data.hygiene import DEFAULTS, make_hygiene
from mlit_jax.data.parts import Recipe
from mlit_jax.data.sources import open_sources
from mlit_jax.data.tokenizer import Tokenizer

ROOT = Path(__file__).resolve().parent.parent
DATA = ROOT.parent / "shared" / "data"
LONGEST = 10  # sentences of a passage
NTREX = {
  "ar": ("ref.arb", "Arabic"), "cs": ("ref.ces", "Czech"), "en": ("src.eng", "English"),
  "es": ("ref.spa", "Spanish"), "et": ("ref.est", "Estonian"), "fi": ("ref.fin", "Finnish"),
  "he": ("ref.heb", "Hebrew"), "hi": ("ref.hin", "Hindi"), "it": ("ref.ita", "Italian"),
  "ru": ("ref.rus", "Russian"), "sw": ("ref.swa", "Swahili"), "zh": ("ref.zho-CN", "Chinese"),
}  # fmt: skip


def real_examples(
  folder: Path, tokenizer: Tokenizer, max_length: int, data: Path = DATA
) -> Encoded:
  """The rows, tokenised into a cache in `folder` and mapped into memory, as a run has them."""
  recipe = Recipe(
    tokenizer=tokenizer,
    max_length=max_length,
    over_long="drop",
    drop_bad=False,
    hygiene=make_hygiene(dict.fromkeys(DEFAULTS, "off")),
  )
  return open_cache(open_sources(write_rows(folder, data)), recipe, folder / "cache")[0]


def write_rows(folder: Path, data: Path = DATA) -> dict[str, list[str]]:
  """{language: [its JSONL file in `folder`]}, the same wherever it is made."""
  by_lang = collections.defaultdict(list)
  for row in (*commands_and_conversations(data), *translations(data)):
    by_lang[row["lang"]].append(json.dumps(row, ensure_ascii=False) + "\n")
  folder.mkdir(parents=True, exist_ok=True)
  for lang, lines in by_lang.items():
    (folder / f"{lang}.jsonl").write_text("".join(lines), encoding="utf-8", newline="\n")
  return {lang: [str(folder / f"{lang}.jsonl")] for lang in sorted(by_lang)}


def commands_and_conversations(data: Path) -> list[dict]:
  spec = importlib.util.spec_from_file_location("real_rows", ROOT / "examples" / "real_rows.py")
  script = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(script)
  left_out = collections.Counter()
  found = script.home_assistant(data / script.HOME, left_out)
  found += script.oasst(data / script.OASST, left_out)
  return [{"messages": row["messages"], "lang": row["lang"]} for _, row in found]


def translations(data: Path) -> list[dict]:
  folder = data / "ntrex128"
  documents = (folder / "DOCUMENT_IDS.tsv").read_text(encoding="utf-8").split("\n")
  texts = {
    lang: (folder / "NTREX-128" / f"newstest2019-{name}.txt")
    .read_text(encoding="utf-8")
    .split("\n")
    for lang, (name, _) in NTREX.items()
  }
  rows = []
  for other in NTREX:
    for into, source in ((other, "en"), ("en", other)):
      if into != source:
        rows += _passages(into, source, documents, texts)
  return rows


def _passages(into: str, source: str, documents: list[str], texts: dict) -> list[dict]:
  rows, at = [], 0
  while at < len(documents) and documents[at]:
    key = f"{into} {source} {at}".encode()
    wanted = 1 + hashlib.blake2b(key).digest()[0] % LONGEST
    end = at + documents[at : at + wanted].count(documents[at])  # a passage is of one document
    question, answer = (" ".join(texts[lang][at:end]) for lang in (source, into))
    prompt = f"Translate into {NTREX[into][1]}:\n\n{question}"
    rows.append({"prompt": prompt, "completion": answer, "lang": into})
    at = end
  return rows
