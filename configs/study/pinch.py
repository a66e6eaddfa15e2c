"""The study: how little of other languages it takes, and how many languages, with the base that is shipped.

  python configs/study/make_rows.py --data ../shared/data --out runs/study/rows
  python -m mlit_jax.sweep --config configs/study/pinch.py --workdir runs/study/pinch --jobs 2

Two curves over the same six languages: P percent of 1,200 rows spread over them, and the 1,200 split evenly over the
first n of them; then all twelve. Five pairs of seeds, in which the draw of rows and the training vary apart.
docs/study.md has what came of it.
"""

import dataclasses
from pathlib import Path

import mlit_jax
from configs import sweep
from mlit_jax.experiments import designs

SEEN = ["en", "ar", "fi", "it", "ru", "sw"]  # as in Shaham et al. 2024, figure 4
UNSEEN = ["cs", "es", "et", "he", "hi", "zh"]
PERCENTS = [0, 1, 10, 50, 100]
SIZES = [1, 2, 3, 4, 6]


def get_config():
  c = sweep.get_config()
  c.title = "A pinch of multilinguality at four million parameters"
  c.about = (
    "The shipped base tiny12 tuned on 1,200 short instruction rows: P percent of them spread over six languages, or "
    "all of them split over 1 to 12 languages. Six languages are seen in tuning, six are only asked."
  )
  c.model = str(Path(mlit_jax.__file__).parent / "assets" / "tiny12")
  c.trained = "runs/study/trained"
  c.rows, c.eval_rows = "runs/study/rows/train/{lang}.jsonl", "runs/study/rows/eval/{lang}.jsonl"
  c.languages, c.held_out = SEEN, UNSEEN
  c.budget.total = 1200
  c.seeds = [(0, 0), (1, 0), (2, 0), (3, 0), (0, 1)]  # draw, training
  c.at = "last"
  c.headline = (
    "bits_per_byte"  # of the reference answers: what the pilot study saw move, beside fidelity
  )
  c.curves = [
    {"key": "percent", "label": "P, percent spread over six languages"},
    {"key": "languages", "label": "languages in tuning"},
  ]
  r = c.run
  r.epochs = 2
  r.model.dtype = "float32"  # on CPU bfloat16 is slower
  r.model.remat = "none"
  r.batch.rows = 16
  r.batch.max_length = 192
  r.optimizer.learning_rate = 1e-3  # of so small a model
  r.optimizer.warmup_steps = 5
  r.eval.at_start = False
  r.eval.generate_rows = 48
  r.eval.max_new_tokens = 56
  r.checkpoint.every_steps = 1000
  r.checkpoint.keep_latest = 1
  r.checkpoint.keep_best = 0
  return c


def get_arms(c):
  """P over six languages; n of them evenly, English first; all twelve."""
  total, base = c.budget.total, c.base
  everything = [*c.languages, *c.held_out]
  pinches = designs.pinch(c.languages, base, PERCENTS, total)
  # P = 0 is one language and P = 100 is six: the same runs.
  sizes = dict.fromkeys([*SIZES, len(everything)])
  counts = designs.nested([everything], list(sizes), total)
  by_number = [
    dataclasses.replace(arm, factors={"languages": arm.factors["languages"]}) for arm in counts
  ]
  return [*pinches, *by_number]
