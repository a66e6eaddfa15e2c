"""How often are the detectors of languages right themselves? On sentences whose language is known.

PYTHONPATH=. python benchmarks/detectors.py --data ../shared/data [--lid lid.176.ftz]

The twelve languages of the data are in play. A true sentence is asked for in its own language, a
foreign one is each of the other languages' in turn, and is asked for in this one. Figures go into
mlit_jax/assets/detector_accuracy.json, which keeps those of other detectors.
"""

import argparse
import csv
import datetime
import json
from pathlib import Path

from mlit_jax.detectors import open_detector
from mlit_jax.detectors.accuracy import MEASURED
from mlit_jax.evals.fidelity import judge

# Language -> folder of SIB-200, file of NTREX-128, file of Tatoeba.
FILES = {
  "ar": ("arb_Arab", "ref.arb", "ara-eng.ara"),
  "cs": ("ces_Latn", "ref.ces", "ces-eng.ces"),
  "en": ("eng_Latn", "src.eng", "fin-eng.eng"),
  "es": ("spa_Latn", "ref.spa", "spa-eng.spa"),
  "et": ("est_Latn", "ref.est", "est-eng.est"),
  "fi": ("fin_Latn", "ref.fin", "fin-eng.fin"),
  "he": ("heb_Hebr", "ref.heb", "heb-eng.heb"),
  "hi": ("hin_Deva", "ref.hin", "hin-eng.hin"),
  "it": ("ita_Latn", "ref.ita", "ita-eng.ita"),
  "ru": ("rus_Cyrl", "ref.rus", "rus-eng.rus"),
  "sw": ("swh_Latn", "ref.swa", "swh-eng.swh"),
  "zh": ("zho_Hans", "ref.zho-CN", "cmn-eng.cmn"),
}
NUM_FOREIGN = 100  # of each other language
SHIPPED = Path(__file__).parents[1] / "mlit_jax/assets" / MEASURED


def main():
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("--data", type=Path, default=Path("../shared/data"))
  parser.add_argument("--lid", default="", help='"" is lingua')
  args = parser.parse_args()
  detector = open_detector(args.lid, list(FILES))
  sources = {lang: read(args.data, *FILES[lang]) for lang in FILES}
  languages = {lang: measure(lang, sources, detector) for lang in FILES}
  for lang, entry in languages.items():
    print(lang, json.dumps(entry))
  known = json.loads(SHIPPED.read_text("utf-8")) if SHIPPED.exists() else {}
  known[detector.name] = {
    "date": datetime.date.today().isoformat(),
    "among": list(FILES),
    "languages": languages,
  }
  SHIPPED.write_text(json.dumps(known, indent=1, sort_keys=True) + "\n", "utf-8")


def measure(lang, sources, detector) -> dict:
  """Headline: SIB-200. Beside it lines of news, and Tatoeba's short sentences with its too short ones."""
  out = {}
  for key, name in (("sib200", "SIB-200"), ("ntrex128", "NTREX-128"), ("tatoeba", "Tatoeba")):
    verdicts = judge(sources[lang][key], [lang] * len(sources[lang][key]), detector)
    share = sum(v.right for v in verdicts) / len(verdicts)
    if key == "sib200":
      out |= {"right": round(share, 4), "n": len(verdicts), "source": name}
    else:
      out |= {key: round(share, 4), f"n_{key}": len(verdicts)}
    if key == "tatoeba":
      out["tatoeba_judged"] = round(sum(v.judged for v in verdicts) / len(verdicts), 4)
  foreign = [t for other in FILES if other != lang for t in sources[other]["sib200"][:NUM_FOREIGN]]
  passed = sum(v.right for v in judge(foreign, [lang] * len(foreign), detector))
  return out | {"passed": round(passed / len(foreign), 4), "n_foreign": len(foreign)}


def read(data: Path, sib: str, ntrex: str, tatoeba: str) -> dict[str, list[str]]:
  sentences = []
  for part in ("train", "dev"):
    with open(data / f"sib200/data/annotated/{sib}/{part}.tsv", encoding="utf-8", newline="") as f:
      rows = csv.DictReader(f, delimiter="\t", quoting=csv.QUOTE_NONE)
      sentences += [row["text"] for row in rows]
  return {
    "sib200": sentences,
    "ntrex128": lines(data / f"ntrex128/NTREX-128/newstest2019-{ntrex}.txt"),
    "tatoeba": lines(data / f"tatoeba_laser/data/tatoeba/v1/tatoeba.{tatoeba}"),
  }


def lines(path: Path) -> list[str]:
  """Those with text: a line of NTREX-128 is empty."""
  return [line for line in path.read_text("utf-8").split("\n") if line.strip()]


if __name__ == "__main__":
  main()
