"""Our verdicts on real answers to English IFEval beside those of the published checkers, as lm_eval ships them.

  python benchmarks/instructions.py --prompts en/input_data.jsonl --answers answers/*.jsonl

Answers are objects with `prompt` and `response`, one a line, as the repository of M-IFEval has them of many models.
Needs `pip install 'lm_eval[ifeval]'` and `python -m nltk.downloader punkt_tab`.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from pathlib import Path

import langdetect
from lm_eval.tasks.ifeval import utils

from mlit_jax.evals.suites.ifeval import ifeval

WAYS = ("strict", "loose")


def main():
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--prompts", required=True)
  parser.add_argument("--answers", nargs="+", required=True)
  args = parser.parse_args()
  langdetect.DetectorFactory.seed = 0
  items = {item.prompt.strip(): item for item in ifeval(args.prompts).items}
  asked, other = Counter(), Counter()
  for path in args.answers:
    rows = [json.loads(line) for line in Path(path).read_bytes().split(b"\n") if line.strip()]
    answers = [(items[row["prompt"].strip()], row["response"] or "") for row in rows]
    verdicts = [(ours(*pair), theirs(*pair)) for pair in answers]
    print(Path(path).stem)
    for way in WAYS:
      print(
        f"  {way}: ours {rates([v[0][way] for v in verdicts])}, theirs {rates([v[1][way] for v in verdicts])}"
      )
      for (item, _), (mine, published) in zip(answers, verdicts, strict=True):
        for one, a, b in zip(item.answer, mine[way], published[way], strict=True):
          asked[way] += 1
          other[way, one.id] += a != b
  for way in WAYS:
    kinds = {kind: n for (at, kind), n in sorted(other.items()) if at == way and n}
    equal = asked[way] - sum(kinds.values())
    print(
      f"{way}: {equal} of {asked[way]} verdicts equal ({equal / asked[way]:.2%}); others: {kinds}"
    )


def ours(item, response: str) -> dict[str, list[bool]]:
  strict = [one.follows(response) for one in item.answer]
  return {"strict": strict, "loose": [one.follows_loosely(response) for one in item.answer]}


def theirs(item, response: str) -> dict[str, list[bool]]:
  names = [one.id.removeprefix("en:") for one in item.answer]
  asked = utils.InputExample(0, names, item.prompt, [dict(one.given) for one in item.answer])
  return {
    "strict": utils.test_instruction_following_strict(asked, response).follow_instruction_list,
    "loose": utils.test_instruction_following_loose(asked, response).follow_instruction_list,
  }


def rates(verdicts: list[list[bool]]) -> str:
  """Of all prompts, and of all instructions."""
  flat = [v for one in verdicts for v in one]
  return f"{sum(map(all, verdicts)) / len(verdicts):.1%} {sum(flat) / len(flat):.1%}"


if __name__ == "__main__":
  main()
