"""What fuzz.py feeds: each target takes the parts of a case as files in a folder and reads them as a command would.

A target returns True where all was accepted; a UserError is a refusal; anything else is a fault.
"""

from __future__ import annotations

import fuzz_files as files
import fuzz_training as training
from fuzz_common import Target

TARGETS = {
  "config": Target(training.run_config, training.config_seeds, training.config_strategy),
  "rows": Target(training.run_rows, training.rows_seeds, training.rows_strategy),
  "template": Target(training.run_template, training.template_seeds, training.template_strategy),
  "tokenizer": Target(
    training.run_tokenizer, training.tokenizer_seeds, training.tokenizer_strategy
  ),
  "weights": Target(files.run_weights, files.weights_seeds, files.weights_strategy),
  "suite": Target(files.run_suite, files.suite_seeds, files.suite_strategy),
  "verdicts": Target(files.run_verdicts, files.verdict_seeds, files.verdict_strategy),
  "cache": Target(files.run_cache, files.cache_seeds, files.cache_strategy),
  "workdir": Target(files.run_workdir, files.workdir_seeds, files.workdir_strategy),
  "saved": Target(training.run_saved, training.saved_seeds, training.saved_strategy),
}
