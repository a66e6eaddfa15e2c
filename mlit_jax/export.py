"""Write a tuned model as a Hugging Face folder.

python -m mlit_jax.export --workdir runs/quickstart --out runs/quickstart/export
python -m mlit_jax.export --workdir runs/quickstart --step best --out best --dtype bfloat16

What was written is read back, and where transformers and torch are installed its logits there are
compared with ours. Until then the folder is called OUT.unverified, and it keeps that name if they differ (exit code 1).
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from mlit_jax import runtime
from mlit_jax.errors import UserError
from mlit_jax.opening import Opened, open_workdir, rows_to_compare, whole_mesh
from mlit_jax.training.console import Terminal
from mlit_jax.weights import save, verify
from mlit_jax.weights.load import READABLE
from mlit_jax.weights.writer import on_first


def main() -> int:
  parser = argparse.ArgumentParser(
    "mlit_jax.export", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("--workdir", required=True, help="of the run")
  parser.add_argument("--step", default="latest", help="a number, latest (default) or best")
  parser.add_argument("--out", required=True, help="a new folder")
  parser.add_argument(
    "--dtype", default="", help=f"{', '.join(READABLE)}; default: as in the base model"
  )
  parser.add_argument(
    "--no-verify", action="store_true", help="leave out the comparison with transformers"
  )
  parser.add_argument("--debug", action="store_true", help="tracebacks for user errors too")
  args = parser.parse_args()
  return runtime.run_main(
    lambda: run(Path(args.workdir), args.step, Path(args.out), args.dtype, not args.no_verify),
    debug=args.debug,
  )


def run(root: Path, step: str, out: Path, dtype: str, compare: bool) -> None:
  """Read one step, write the folder, say what was written."""
  if dtype and dtype not in READABLE:
    raise UserError(f"--dtype {dtype!r} must be one of {', '.join(READABLE)}")
  runtime.start()
  terminal = Terminal(shown=runtime.is_main())
  model = open_workdir(root, step, whole_mesh())
  files = save.with_stop_ids(model.files, model.tokenizer.stop_ids)
  if (root / "README.md").exists():  # written when a run ends
    files["README.md"] = (root / "README.md").read_bytes()
  if dtype:
    files = save.with_dtype(files, dtype)
  if compare and not runtime.main_says(verify.can_compare()):
    terminal.line("transformers and torch are not installed: logits were not compared with theirs")
    compare = False
  save.check_free(out)
  # A name that says so, until it is compared: also a process killed meanwhile leaves no other.
  written = out.with_name(f"{out.name}.unverified") if compare else out
  if compare and save.remove_folder(written):
    terminal.line(f"{written}, of an export that did not come to its end, is written anew")
  with terminal.transfer("export") as progress:
    save.save_folder(
      model.params,
      model.cfg,
      written,
      files=files,
      dtypes=dtype or model.dtypes,
      layout=model.layout,  # with another dtype it still says how the names are spelled
      carried=model.carried,
      progress=progress,
    )
  if compare:
    compare_logits(model, root, written, dtype or model.dtypes, terminal)
    save.rename_folder(written, out)
  size = sum(p.stat().st_size for p in out.rglob("*") if p.is_file())
  terminal.line(f"{model.name} -> {out}  {size / 1e6:,.1f} MB, load it with transformers:")
  terminal.line(f'  AutoModelForCausalLM.from_pretrained("{out}")')


def compare_logits(model: Opened, root: Path, folder: Path, dtypes, terminal: Terminal) -> None:
  """Logits of the folder in transformers beside ours; raises where they differ."""
  rows, whence = rows_to_compare(root, model, verify.MAX_ROWS, verify.MAX_TOKENS)
  runtime.check_same("the rows to compare", json.dumps(rows))
  found = verify.compare_logits(folder, model.params, model.cfg, dtypes, rows, whole_mesh())

  def check():
    terminal.line(f"{verify.describe(found)} ({whence})")
    verify.check(found, folder)

  on_first(check, verify.UnverifiedError(f"{folder}: the first process's message says why."))


if __name__ == "__main__":
  sys.exit(main())
