"""Sweeps for tests: a sweep.json and the workdirs of its runs, written with the functions that write the real ones."""

import json
import zlib
from pathlib import Path

import numpy as np

from mlit_jax.evals.fidelity import Verdict
from mlit_jax.evals.judging.scores import Judged, summarise
from mlit_jax.evals.summary import Record, write_evaluation
from mlit_jax.evals.summary import summarise as summarise_records

LANGUAGES = ("ar", "cs", "en", "es", "et", "fi", "he", "hi", "it", "ru", "sw", "zh")
SEEN, UNSEEN = ("ar", "fi", "it", "ru", "sw"), ("cs", "es", "et", "he", "hi", "zh")


def seed_of(*parts) -> int:
  return zlib.crc32(repr(parts).encode())


def write_run(
  workdir: Path, goodness, *, languages=LANGUAGES, prompts=12, seed=0, steps=20, finished=True,
  likelihood=True, response="vastaus {}", name="heldout",
) -> None:  # fmt: skip
  """A workdir with an evaluation at step 0 and one at the end. goodness: {lang: 0 to 1, how good the answers are}."""
  for step, scale in ((0, 0.3), (steps, 1.0)) if finished else ((0, 0.3),):
    records = []
    for lang in languages:
      rng = np.random.default_rng(seed_of("prompt", lang))
      hard = rng.normal(0, 0.1, prompts)
      rng = np.random.default_rng(seed_of(seed, lang))
      for i in range(prompts):
        share = float(np.clip(scale * goodness[lang] + hard[i] + rng.normal(0, 0.05), 0, 1))
        right = bool(rng.random() < share)
        records.append(
          Record(
            name, lang, f"{lang}-{i}", group_id=f"g{i}", prompt=f"kysymys {i}",
            response=response.format(i), response_tokens=3, stopped=bool(rng.random() < share),
            chrf=100 * share, exact=bool(rng.random() < share / 4),
            verdict=Verdict(right, lang if right else "en", 0.9, "" if right else "wrong language"),
            **({"nll": 40 * (2 - share), "tokens": 20.0, "bytes": 60} if likelihood else {}),
          )
        )  # fmt: skip
    write_evaluation(workdir / "evals" / str(step), summarise_records(records), records, model="m")
  counts = {"examples": 4, "tokens": 40, "trained_tokens": 20}
  entry = counts | {"rows_read": 4, "repeats": 0, "truncated": 0, "share_of_trained_tokens": 1.0}
  entry |= {"per_epoch": 4, "bytes_per_token": 3.0, "dropped": {}}
  ledger = {"steps": steps, "languages": {"en": entry | ({"trained": counts} if finished else {})}}
  (workdir / "data_plan.json").write_text(json.dumps(ledger))
  (workdir / "config.json").write_text(json.dumps({"config": {}, "versions": {}}))
  (workdir / "metrics.jsonl").write_text(json.dumps({"step": steps // 2, "train/loss": 1.0}) + "\n")


def write_judging(out: Path, run: str, languages, score: float, *, prompts=30) -> None:
  """summary.json and scores.jsonl as mlit_jax.judge writes them; score: the share of prompts that are won."""
  table = []
  for lang in languages:
    rng = np.random.default_rng(seed_of(run, lang))
    for i in range(prompts):
      won = "a" if rng.random() < score else "b"
      faithful = bool(rng.random() < 0.8)
      table.append(Judged(f"q{i}", lang, f"q{i}", (("ab", won), ("ba", won)), 9, 9, faithful, True))
  out.mkdir(parents=True)
  (out / "summary.json").write_text(json.dumps({"judging": summarise(table)}))
  (out / "scores.jsonl").write_text("".join(json.dumps(row.row()) + "\n" for row in table))


def write_sweep(folder: Path, arms, runs, **more) -> Path:
  """sweep.json. arms: {name: (tuned, factors)}. runs: [(id, arm, draw, seed)]."""
  folder.mkdir(parents=True, exist_ok=True)
  sweep = {
    "title": "A pinch of multilinguality", "about": "How little of other languages is enough?", "base": "en",
    "languages": list(LANGUAGES), "groups": {"seen": list(SEEN), "unseen": list(UNSEEN)},
    "curves": [{"key": "percent", "label": "multilingual part P, %"}], "matrix": False,
    "set": "heldout", "at": "last",
    "arms": [
      {"name": n, "tuned": list(tuned), "factors": factors, "counts": dict.fromkeys(tuned, 4)}
      for n, (tuned, factors) in arms.items()
    ],
    "runs": [
      {"id": i, "arm": a, "draw": d, "seed": s, "workdir": f"../trained/{i}"} for i, a, d, s in runs
    ],
    "comparisons": [], "covariates": [], **more,
  }  # fmt: skip
  (folder / "sweep.json").write_text(json.dumps(sweep, ensure_ascii=False), encoding="utf-8")
  return folder


def pinch(
  root: Path, *, percents=(0, 1, 10, 50, 100), replicates=5, jump=0.3, languages=LANGUAGES, prompts=12, **more
) -> Path:  # fmt: skip
  """A percent curve with a jump at 1 % in all languages but English, and none after."""
  arms, runs = {}, []
  for x in percents:
    arms[f"P={x}"] = (("en", *SEEN) if x else ("en",), {"percent": x})
    for k in range(replicates):
      rng = np.random.default_rng(seed_of(x, k))
      goodness = {
        lang: 0.7 if lang == "en" else 0.4 + jump * (x > 0) + rng.normal(0, 0.02)
        for lang in languages
      }
      runs.append((f"p{x}r{k}", f"P={x}", k, k))
      write_run(
        root / "trained" / f"p{x}r{k}",
        goodness,
        languages=languages,
        prompts=prompts,
        seed=seed_of(x, k),
      )
  groups = {
    "seen": [x for x in SEEN if x in languages],
    "unseen": [x for x in UNSEEN if x in languages],
  }
  return write_sweep(root / "sweep", arms, runs, languages=list(languages), groups=groups, **more)
