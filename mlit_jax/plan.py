"""Whether a run fits, what it sends, and how fast it may be: its real step, compiled for devices that are not here.

  python -m mlit_jax.plan --config configs/quickstart.py --topology cpu:8
  python -m mlit_jax.plan --config FILE --model ~/models/llama-8b --topology v5p:4x4x8 --search
  python -m mlit_jax.plan --config FILE --model config.json --topology h100:8 --rows_per_device 1 --json plan.json
  python -m mlit_jax.plan --topology list

No accelerator, weights or data are needed, and nothing is downloaded. Compilers: pip install 'mlit_jax[plan-tpu]' or
'mlit_jax[plan-gpu]'. Exit codes: 0 done (also where it does not fit: see memory.fits), 2 something to mend.
"""

from __future__ import annotations

import argparse
import copy
import os
import sys
from pathlib import Path

os.environ["JAX_PLATFORMS"] = "cpu"  # before JAX starts: plugins would look for hardware
os.environ.setdefault(
  "TF_CPP_MIN_LOG_LEVEL", "3"
)  # compilers talk of attempts and of missing hardware

import jax

from mlit_jax import checks, checksums, runtime
from mlit_jax.config import load_config
from mlit_jax.errors import UserError
from mlit_jax.model.config import DecoderConfig, from_hf, from_scratch
from mlit_jax.opening import open_tokenizer
from mlit_jax.planning import planner, report
from mlit_jax.planning.topologies import KNOWN, open_topology
from mlit_jax.training.console import Terminal
from mlit_jax.weights import source


def main() -> int:
  parser = argparse.ArgumentParser(
    "mlit_jax.plan", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("--config", default="", help="Python file with get_config()")
  parser.add_argument("--topology", required=True, help="such as v5e:16x16, h100:8, cpu:8; or list")
  parser.add_argument(
    "--model", default="", help="folder with a config.json, or that file; in place of model.path"
  )
  parser.add_argument(
    "--rows_per_device", type=int, default=0, help="in place of batch.rows: of a device at a time"
  )
  parser.add_argument(
    "--mean_segment",
    type=int,
    default=0,
    help="tokens of an example; default: as in the workdir's data_plan.json, else the whole row",
  )
  parser.add_argument(
    "--search", action="store_true", help="find the most rows and the least remat"
  )
  parser.add_argument(
    "--max_compilations", type=int, default=20, help="of the search, the first included"
  )
  parser.add_argument(
    "--memory_gib",
    type=float,
    default=0.0,
    help="usable on a device, in place of what is known of it",
  )
  parser.add_argument("--json", default="", help="write all figures to this file")
  parser.add_argument("--debug", action="store_true", help="tracebacks for user errors too")
  args, overrides = parser.parse_known_args()
  return runtime.run_main(lambda: run(args, overrides), debug=args.debug)


def run(args: argparse.Namespace, overrides: list[str]) -> None:
  """Compile, print, write."""
  terminal = Terminal()
  if args.topology == "list":
    terminal.line(KNOWN)
    return
  if not args.config:
    raise UserError(
      "--config is missing; give the Python file of the run, such as configs/quickstart.py"
    )
  for name, least in (
    ("rows_per_device", 0),
    ("mean_segment", 0),
    ("max_compilations", 1),
    ("memory_gib", 0),
  ):
    if getattr(args, name) < least:
      raise UserError(f"--{name} is {getattr(args, name)}; give {least} or more")
  if args.json:
    runtime.check_output(Path(args.json), "--json")
  jax.config.update("jax_platforms", "cpu")  # where JAX was imported before this module
  c = load_config(args.config, overrides)
  check(c)
  cfg = read_sizes(c, args.model)
  topology = open_topology(args.topology, args.memory_gib)
  if topology.platform != "cpu":  # programs for devices that are not here cannot be read back
    jax.config.update("jax_enable_compilation_cache", False)
  if args.search and not topology.device.usable:
    raise UserError(f"--search: the memory of {args.topology} is not known; give --memory_gib N")
  planned = 0 if args.mean_segment else planned_segment(Path(c.workdir))
  figures = planner.make_plan(
    c,
    cfg,
    topology,
    rows_per_device=args.rows_per_device,
    mean_segment=args.mean_segment or planned,
    most=args.max_compilations if args.search else 0,
    say=terminal.line,
  )
  figures["segment_planned"] = planned > 0
  for line in report.lines(figures):
    terminal.line(line)
  if args.json:
    runtime.write_json(Path(args.json), figures)


def check(c) -> None:
  """As a run does, but for what only a run needs."""
  checked = copy.deepcopy(c)
  checked.workdir = c.workdir or "none"
  checked.tokenizer.path = c.tokenizer.path or "none"
  if not (c.data.train and c.data.mixture):
    with checked.data.ignore_type():
      checked.data.train, checked.data.mixture = {"en": ["none"]}, {"counts": {"en": 1}}
  if not c.steps and not c.epochs:
    checked.steps = 1
  checks.check_config(checked)


def read_sizes(c, model: str) -> DecoderConfig:
  """The decoder's sizes, from `model`, else from the config; weights are not looked at and nothing is fetched."""
  path = model or c.model.path
  if path:
    return from_hf(source.read_config(_config_file(path)))
  if not c.tokenizer.path:
    raise UserError("model.sizes need tokenizer.path, which has the size of the vocabulary")
  return from_scratch(dict(c.model.sizes), open_tokenizer(c, None).vocab_size)


def planned_segment(workdir: Path) -> int:
  """Tokens of an example, on average, in the plan of a run that was begun there; 0 where there is none."""
  path = workdir / "data_plan.json"
  if not path.is_file():
    return 0
  try:
    languages = checksums.read_sealed(path)["languages"].values()
    tokens, examples = (sum(of[name] for of in languages) for name in ("tokens", "examples"))
  except (ValueError, KeyError, TypeError, AttributeError) as e:
    raise UserError(
      f"{path}: not the data plan of a run ({e!r}). Give --mean_segment, or another workdir."
    ) from e
  return round(tokens / examples) if examples else 0


def _config_file(path: str) -> Path:
  """The config.json of a folder, a file, or a hub id whose files were fetched before."""
  found = Path(path).expanduser()
  if found.is_dir():
    return found / "config.json"
  if found.is_file():
    return found
  import huggingface_hub  # late: a local folder needs no hub client

  repo, _, revision = path.partition("@")
  try:
    cached = huggingface_hub.try_to_load_from_cache(repo, "config.json", revision=revision or None)
  except ValueError:  # no hub id
    cached = None
  if not isinstance(cached, str):
    raise UserError(
      f"model {path!r}: no such folder or file, and not in the hub's cache; a plan fetches nothing. Give --model "
      "FOLDER or a config.json."
    )
  return Path(cached)


if __name__ == "__main__":
  sys.exit(main())
