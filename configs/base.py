"""Every key, once, with its unit and default. Other configs change what they need.

  from configs import base

  def get_config():
    c = base.get_config()
    c.optimizer.learning_rate = 2e-5
    return c

Any key can be set on the command line: --config.optimizer.learning_rate=2e-5.
A key that holds a mapping or a list takes a Python or JSON literal: --config.data.mixture='{"counts": {"en": 100, "*": 40}}'.
"""

from ml_collections import ConfigDict


def get_config():
  c = ConfigDict(convert_dict=False)

  c.seed = 0  # of parameters made from scratch, of the choice of rows, and of their order
  c.steps = 0  # optimizer steps; 0: as many as `epochs` need. Give one of the two.
  c.epochs = 0  # passes over the mixture, each example exactly once in each
  c.workdir = ""  # where everything of the run is written; also --workdir

  c.model = m = ConfigDict(convert_dict=False)
  m.path = ""  # Hugging Face folder or hub id of the base model; "" makes a new one of `sizes`
  m.sizes = {}  # of a model from scratch: d_model, num_layers, num_heads, num_kv_heads, d_ff, ...
  m.dtype = "bfloat16"  # of the computation
  m.param_dtype = "float32"  # or bfloat16, rounded up or down by chance: docs/memory.md
  m.remat = "attention_saved"  # or none, dots_saved, offload, full: docs/memory.md
  # The fastest that can; or xla, xla_chunked; on CPU xla_causal; on GPU cudnn, mosaic_gpu; on TPU splash, jax_splash:
  m.attention = "auto"  # see docs/attention.md
  m.loss_chunk = 0  # trained tokens whose logits a device holds at a time; 0: by size; -1: all

  c.tokenizer = t = ConfigDict(convert_dict=False)
  t.path = ""  # folder, tokenizer.json or SentencePiece .model; "": the base model's folder
  t.chat_template = ""  # file with a Jinja template; "": the tokenizer's own, else one that fits
  t.template_kwargs = {"enable_thinking": False}  # handed to the template
  t.date = "2024-07-26"  # what a template that prints the date is told: rows never change

  c.data = d = ConfigDict(convert_dict=False, type_safe=False)  # train may be a list
  d.train = {}  # {language: [files]} or [files whose rows carry `lang`]; globs allowed
  d.language_field = ""  # the column that names a row's language; "": lang, language_code, language
  d.detect_language = False  # of rows that state none: True, or the languages to choose among
  d.mixture = {}  # {"counts": {"en": 4350, "*": 40}} and others, see docs/mixtures.md
  d.seed = -1  # of the choice of rows alone, so that it and the order vary apart; -1: as `seed`
  d.max_repeats = 1  # how often one row may stand in one epoch; a mixture may say so by language
  d.groups = "together"  # parallel rows (`group_id`): together | disjoint | independent
  d.over_long = "drop"  # than batch.max_length: drop | truncate_prompt | truncate_answer | error
  d.bad_rows = "error"  # rows that cannot be used: error | drop (counted by language and reason)
  # What is found out about rows: off | report | drop; counted by language and reason.
  d.near_duplicates = "off"  # rows of one language that are nearly the same
  d.near_duplicate_similarity = 0.8  # Jaccard similarity from which they are
  d.overlap = "report"  # rows that share a question, or 13 words in a row, with an evaluation set
  d.wrong_script = "report"  # answers in a script that the language is not written in
  d.wrong_language = "report"  # answers that a detector takes for another language
  d.control_characters = "report"  # invisible ones that no script needs
  d.empty_answers = "report"  # answers of punctuation and invisible characters alone
  d.cache_dir = ""  # token cache; "": <workdir>/cache
  d.workers = 0  # processes that tokenise; 0: one for each core

  c.batch = b = ConfigDict(convert_dict=False)
  b.rows = 8  # rows of a global step
  b.max_length = 1024  # tokens of a row
  b.packing = True  # several examples in one row, isolated from one another
  b.microbatches = 1  # a step in so many parts, one after the other, to save memory
  b.accumulation_dtype = "float32"  # or bfloat16: of the sum of the parts' gradients

  c.optimizer = o = ConfigDict(convert_dict=False)
  o.name = "adamw"  # or muon, adafactor: docs/memory.md
  o.moments = "float32"  # what is kept of adamw and muon between steps; or bfloat16, int8
  o.offload = False  # True: what is kept lies in the host's memory, a layer of it on the device
  o.learning_rate = 1e-5  # at its peak
  o.schedule = "cosine"  # after the warmup: cosine | linear | constant
  o.warmup_steps = 0
  o.final_learning_rate = 0.0  # where cosine and linear end
  o.weight_decay = 0.0  # on matrices, not on norms and biases
  o.b1 = 0.9
  o.b2 = 0.999
  o.eps = 1e-8
  o.gradient_clip_norm = 1.0  # global norm; 0 clips nothing
  o.nonfinite = "stop"  # a loss or gradient that is no number: stop, or skip: leave that step out
  o.max_skipped = 10  # steps that "skip" may leave out in a run; one more ends it
  o.z_loss = 0.0  # e.g. 1e-4: this times log(sum of exp of logits)^2 joins the loss of a token

  c.eval = e = ConfigDict(convert_dict=False, type_safe=False)  # suites may be a list
  e.sets = {}  # {"heldout": {language: [files]} or [files]}
  e.suites = ()  # suites besides: "belebele:PATH", "mine.py", ...; see docs/suites.md
  e.suite_items = 0  # of a suite, per language; 0: all
  e.every_steps = 0  # 0: only before the first and after the last step
  e.at_start = True
  e.patience = 0  # end the run after so many evaluations without a better checkpoint.best; 0: never
  e.generate_rows = 8  # per language and set: answers written and judged; 0: loss only
  e.max_new_tokens = 64  # of such an answer
  e.max_seconds = 0.0  # of answering in one evaluation; then the rest is left out. 0: no limit
  e.temperature = 0.0  # 0 is greedy
  e.top_p = 1.0
  e.lid = ""  # tells the language of an answer: "" (lingua), or a fastText .bin or .ftz file

  c.checkpoint = k = ConfigDict(convert_dict=False)
  k.every_steps = 100  # evaluated steps (if keep_best) and the last one are saved too
  k.keep_latest = 2
  k.keep_best = 1
  k.best = ""  # "<set>/<language, mean or worst>/<metric>"; "": mean loss of the first set

  c.profile = p = ConfigDict(convert_dict=False)
  p.steps = ""  # "10:13": a trace of the steps 10, 11 and 12 in <workdir>/profile, for TensorBoard

  # What ends a run that no longer gets on, with the stacks of all threads: docs/interruptions.md. 0: never.
  c.watchdog = w = ConfigDict(convert_dict=False)
  w.step_seconds = 1800.0  # for a step, waiting for its data included; from the second step on
  w.other_seconds = 7200.0  # between two signs of life of all else: start, evaluation, save
  w.peer_seconds = 100.0  # without a sign of life of another process of the run

  c.mesh = s = ConfigDict(convert_dict=False)
  s.data = 1  # replicas
  s.fsdp = -1  # parameters and batch are split so many times; -1: all devices that are left
  s.expert = 1  # experts and batch are split so many times; without experts the batch alone
  s.context = 1  # the tokens of a row and parameters are split so many times, for long rows
  s.tensor = 1  # heads, MLP and vocabulary are split so many times

  c.log = g = ConfigDict(convert_dict=False, type_safe=False)  # trackers may be a list
  g.every_steps = 10
  g.trackers = ()  # besides TensorBoard: "wandb", "trackio"
  g.batches = False  # a line for each row of each step: its examples, and a digest of what was fed
  g.spikes = 8.0  # how far above the usual a loss or gradient norm is reported; 0: never
  g.peak_tflops = 0.0  # of one device in m.dtype, for train/mfu; 0: known devices only

  c.debug = x = ConfigDict(convert_dict=False)
  # Every so many steps one is computed twice and compared.
  x.recheck_every = 0  # 0: only the first two of a start on several devices of one CPU; -1: none

  return c.lock()
