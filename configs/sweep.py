"""Every key of a sweep, once, with its unit and default; presets are in configs/paper.

A sweep's file has get_config(), a diff on this one, and get_arms(c): what each arm is tuned on.

  from configs import sweep
  from mlit_jax.experiments import designs

  def get_config():
    c = sweep.get_config()
    c.languages = ["en", "fi", "sw"]
    return c

  def get_arms(c):
    return designs.pinch(c.languages, c.base, [0, 1, 10], c.budget.total)

Any key can be set on the command line: --config.model=Qwen/Qwen3-8B-Base, --config.run.steps=500.
"""

from ml_collections import ConfigDict

from configs import base


def get_config():
  c = ConfigDict(convert_dict=False, type_safe=False)  # lists or tuples, rates or lists of them

  c.workdir = ""  # the sweep's own folder; also --workdir
  c.trained = "runs/trained"  # where the runs are; sweeps that need the same run share it
  c.title = ""  # of the report
  c.about = ""  # a sentence or two of plain text, in the report

  c.model = ""  # Hugging Face folder or hub id of the base model; "": run.model.path
  c.rows = ""  # rows to tune on, "rows/{lang}.jsonl"; "": run.data.train
  c.eval_rows = ""  # held-out rows, "held_out/{lang}.jsonl", the set "heldout"; "": run.eval.sets
  c.dev_rows = ""  # rows of the tuned languages that choose the checkpoint: the set "dev"
  c.languages = []  # to tune on
  c.held_out = []  # further ones to evaluate, never tuned on
  c.evaluated = []  # those that count in the report; []: all of both
  c.base = "en"  # the language that others replace

  c.budget = b = ConfigDict(convert_dict=False)
  b.total = 4390  # of an epoch, in `unit`; with `augment`, of one language
  b.unit = "examples"  # or tokens, trained_tokens
  b.design = "replace"  # others take the place of the base | augment: they come on top

  c.seeds = [
    0
  ]  # seeds of training, which also choose rows; or pairs [seed of the choice, of training]
  # {arm or pattern: rate}, the last that fits: {"*": 1e-5, "P=100": 2e-5}
  c.learning_rates = {}

  c.judge = (
    ""  # as mlit_jax.judge has it, https://HOST/v1#MODEL or model:MODEL; "": no side-by-side
  )
  c.judge_prompts = ""  # its prompts, "prompts/{lang}.jsonl"; "": those of eval_rows
  c.judge_options = {}  # further ones of mlit_jax.judge: {"max_cost": 20, "price_in": .4, "price_out": 1.6}
  c.generate_options = {}  # of mlit_jax.generate for the judge: {"temperature": 0.7, "top_p": 0.9}
  c.at = "best"  # the checkpoint that is judged and reported: best (of checkpoint.best) | last

  c.curves = []  # of the report: [{"key": "percent", "label": "P, %"}], keys of the arms' factors
  # The metric that claims are about first, settled before any figure is seen; "": the gated win score, else the
  # plain one, chrf, bits_per_byte, loss, fidelity, whichever was measured
  c.headline = ""
  c.matrix = False  # a transfer matrix: tuned language by evaluated language
  # [{"name", "kind": "pair" or "language", "values" or "file"}], to correlate transfer with
  c.covariates = []

  c.run = base.get_config()  # what all runs have in common; every key of configs/base.py
  return c.lock()
