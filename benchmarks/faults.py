"""What a run survives: killed, damaged, on a full disk, with peers that hang, for very long.

  python benchmarks/faults.py --out results                       # every row; about an hour on two cores
  python benchmarks/faults.py --out results --only kills damage   # some; what the folder has of the others is kept
  python benchmarks/faults.py --out results --small               # a few of each: does it run?

  kills     kill -9 at random moments of seven kinds of work; the same command again, until the run is done
  elastic   the same across 4 -> 2 -> 1 -> 4 processes
  damage    one bit, a cut, an empty or missing file in checkpoint, token cache, export, plan and copies
  disk      full, read-only, gone, slow; a clock that jumps
  peers     one of 2 and 4 processes is killed or stopped
  soak      many steps with evaluation and saving

Prints a table, and writes results/faults.json. Fuzzing has a program of its own: benchmarks/fuzz.py.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import sys
import tempfile
import time
from pathlib import Path

import fault_material as material

ROWS = (
  "kills",
  "elastic",
  "peers",
  "disk",
  "soak",
  "damage",
)  # the last starts JAX in this process
# Kills; numbers of processes, one after the other; rounds; rounds; steps; damaged files.
FULL = {"kills": 200, "elastic": [(4, 2, 1, 4)] * 3, "peers": 2, "disk": 4, "soak": 20_000, "damage": 500}  # fmt: skip
SMALL = {"kills": 7, "elastic": [(2, 1, 2)], "peers": 1, "disk": 1, "soak": 400, "damage": 40}


def main() -> int:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("--out", required=True, help="folder of the results")
  parser.add_argument("--only", nargs="+", choices=ROWS, default=ROWS)
  parser.add_argument("--small", action="store_true")
  parser.add_argument("--seed", type=int, default=0)
  args = parser.parse_args()
  os.environ.setdefault(
    "MLIT_COMPILATION_CACHE", str(Path(tempfile.gettempdir()) / "mlit_jax_faults_xla")
  )
  material.preload()
  logging.disable(logging.ERROR)
  out = Path(args.out)
  out.mkdir(parents=True, exist_ok=True)
  path = out / "faults.json"
  results = json.loads(path.read_text()) if path.exists() else {}
  for row in ROWS:
    if row in args.only:
      print(f"{row}:", flush=True)
      began = time.monotonic()
      with tempfile.TemporaryDirectory(prefix="faults") as folder:
        found = measure(row, Path(folder), (SMALL if args.small else FULL)[row], args.seed)
      results[row] = {
        "date": time.strftime("%Y-%m-%d"), "seed": args.seed, "seconds": round(time.monotonic() - began),
        "found": found,
      }  # fmt: skip
      path.write_text(json.dumps(results, indent=1, default=str) + "\n")
  for row in ROWS:
    if row in results:
      print(f"\n{row} ({results[row]['date']}, {results[row]['seconds']} s)")
      print(json.dumps(results[row]["found"], indent=1, default=str))
  return int(any(is_wrong(r["found"]) for r in results.values()))


def measure(row: str, folder: Path, amount: int | list, seed: int) -> dict:
  """One row of the table."""
  import fault_damage
  import fault_disk
  import fault_kills
  import fault_peers
  import fault_soak

  folder = folder.resolve()
  if row == "soak":
    return fault_soak.run(folder, amount, tell)
  run = {
    "kills": fault_kills.run,
    "elastic": fault_peers.run_elastic,
    "peers": fault_peers.run_peers,
    "disk": fault_disk.run,
    "damage": fault_damage.run,
  }[row]
  return run(folder, amount, seed, tell)


def tell(text: str) -> None:
  print(text, flush=True)


def is_wrong(found) -> bool:
  """Whether anything in the results says that it is not as it should be."""
  if not isinstance(found, dict):
    return False
  wrong = [text for text in found.get("wrong") or () if not str(text).startswith("not measured")]
  here = bool(wrong) or bool(found.get("false")) or bool(found.get("SILENTLY WRONG"))
  return here or any(is_wrong(value) for value in found.values())


if __name__ == "__main__":
  sys.exit(main())
