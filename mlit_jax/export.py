"""Write a tuned model as a Hugging Face folder.

python -m mlit_jax.export --workdir runs/quickstart --out runs/quickstart/export
python -m mlit_jax.export --workdir runs/quickstart --step best --out best --dtype bfloat16
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from mlit_jax import runtime
from mlit_jax.errors import UserError
from mlit_jax.opening import open_workdir, whole_mesh
from mlit_jax.training.console import Terminal
from mlit_jax.weights import save
from mlit_jax.weights.load import READABLE


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
  parser.add_argument("--debug", action="store_true", help="tracebacks for user errors too")
  args = parser.parse_args()
  return runtime.run_main(
    lambda: run(Path(args.workdir), args.step, Path(args.out), args.dtype), debug=args.debug
  )


def run(root: Path, step: str, out: Path, dtype: str) -> None:
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
  with terminal.bar(1, what="export") as bar:
    save.save_folder(
      model.params,
      model.cfg,
      out,
      files=files,
      dtypes=dtype or model.dtypes,
      layout=None if dtype else model.layout,
      progress=lambda done, total: bar.update(done / total),
    )
  size = sum(p.stat().st_size for p in out.rglob("*") if p.is_file())
  terminal.line(f"{model.name} -> {out}  {size / 1e6:,.1f} MB, load it with transformers:")
  terminal.line(f'  AutoModelForCausalLM.from_pretrained("{out}")')


if __name__ == "__main__":
  sys.exit(main())
