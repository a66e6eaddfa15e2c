"""What one GPU does: attention, train steps beside torch, loader, start, numerics. Needs no network.

  python benchmarks/gpu.py --out results                     all cases, under 10 minutes
  python benchmarks/gpu.py --out results --only step torch   some; figures of other cases in the folder are kept
  python benchmarks/gpu.py --out results --only step --budget 300
  python benchmarks/gpu.py --out results --tiny              all cases in toy sizes on CPU: does it run?

Every measurement runs in a process of its own. One that fails or has no time left is told as "not measured: reason",
and the rest goes on. Prints a table as it goes and at the end; writes gpu.json into --out after every case.
How each is measured: gpu_attention.py, gpu_step.py, gpu_torch.py, gpu_runs.py beside this file.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import importlib.metadata
import json
import os
import platform
import signal
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
# Seconds of each case, in the order they run: what matters most comes first.
BUDGETS = {
  "step": 180, "torch": 105, "attention": 80, "numerics": 80, "start": 70, "unpacked": 35, "loader": 20,
}  # fmt: skip
PACKAGES = (
  "jax",
  "jaxlib",
  "jax-cuda13-plugin",
  "flax",
  "optax",
  "torch",
  "transformers",
  "trl",
  "tokamax",
)


def main() -> None:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("--out", type=Path, required=True, help="folder for gpu.json")
  parser.add_argument("--only", nargs="+", choices=BUDGETS, default=list(BUDGETS))
  parser.add_argument("--budget", type=float, default=0, help="seconds of each case")
  parser.add_argument("--minutes", type=float, default=9.7, help="of all cases together")
  parser.add_argument("--tiny", action="store_true")
  parser.add_argument("--child", help=argparse.SUPPRESS)
  args = parser.parse_args()
  if args.child:
    child(json.loads(args.child), args.out)
    return
  ends = time.monotonic() + args.minutes * 60
  results = Results(args.out, args.tiny)
  print(results.heading(), flush=True)
  for case in (c for c in BUDGETS if c in args.only):
    budget = min(args.budget or BUDGETS[case], ends - time.monotonic())
    session = Session(case, args.tiny, budget, results)
    began = time.monotonic()
    try:
      found = CASES[case](session) if budget > 5 else {"reason": "the time was spent"}
    except Exception as e:  # one case must not take the others with it
      found = {"reason": f"{type(e).__name__}: {e}"}
    results.put(case, found | {"seconds": time.monotonic() - began})
  print("\n" + results.table())


# ------------------------------------------------------------------------------------- one measurement


def child(spec: dict, out: Path) -> None:
  """Measure one thing in this process; the result goes into the file `out`."""
  sys.path.insert(0, str(ROOT))
  from gpu_material import NotMeasured

  try:
    found = measurement(spec["kind"])(spec)
  except NotMeasured as e:
    found = {"reason": str(e)}
  except Exception as e:
    text = str(e)
    full = any(words in text for words in ("RESOURCE_EXHAUSTED", "ut of memory"))
    first = (text.strip().splitlines() or [""])[0][:300]
    found = {"reason": "out of memory" if full else f"{type(e).__name__}: {first}"}
  out.write_text(json.dumps(found))


def measurement(kind: str):
  """The function that measures it; only what it needs is imported."""
  if kind in ("torch", "trl"):
    import gpu_torch

    return {"torch": gpu_torch.measure, "trl": gpu_torch.measure_trl}[kind]
  if kind in ("start", "resume"):
    import gpu_runs

    return {"start": gpu_runs.measure_start, "resume": gpu_runs.measure_resume}[kind]
  if kind == "attention":
    import gpu_attention

    return gpu_attention.measure
  if kind == "device":
    return what_device
  import gpu_step

  kinds = {"step": "measure", "loader": "measure_loader", "gradient": "measure_gradient"}
  return getattr(gpu_step, kinds[kind])


def what_device(_spec: dict) -> dict:
  import jax

  device = jax.devices()[0]
  return {"platform": device.platform, "kind": device.device_kind}


class Session:
  """One case under way: its time, and processes that measure."""

  def __init__(self, case: str, tiny: bool, seconds: float, results: Results):
    self.case, self.tiny, self.results = case, tiny, results
    self.ends = time.monotonic() + seconds

  def left(self) -> float:
    return self.ends - time.monotonic()

  def measure(self, kind: str, seconds: float = 0, /, **spec) -> dict:
    """The figures, or {"reason": why there are none}; `seconds`: less than what the case has left."""
    limit = min(self.left(), seconds or self.left())
    if limit < 3:
      return {"reason": "the time of the case was spent"}
    began = time.monotonic()
    found = run_child({"kind": kind, "tiny": self.tiny, **spec}, limit, self.results.folder)
    found["took"] = time.monotonic() - began
    asked = " ".join(f"{k}={v}" for k, v in spec.items())
    print(f"  {self.case}: {kind} {asked}: {brief(found)}", flush=True)
    return found


def run_child(spec: dict, limit: float, folder: Path) -> dict:
  out = folder / ".child.json"
  out.unlink(missing_ok=True)
  env = os.environ | {"XLA_PYTHON_CLIENT_MEM_FRACTION": "0.94", "HF_HUB_OFFLINE": "1"}
  env["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT), env.get("PYTHONPATH", "")]))
  if spec["tiny"]:
    env["JAX_PLATFORMS"] = "cpu"
  command = [sys.executable, __file__, "--child", json.dumps(spec), "--out", str(out)]
  with open(folder / "gpu.log", "a") as log:
    process = subprocess.Popen(
      command, env=env, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
    )
    try:
      code = process.wait(timeout=limit)
    except subprocess.TimeoutExpired:
      with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)  # a run that it started, too
      process.wait()
      return {"reason": f"no result within {limit:.0f} s"}
  if not out.exists():
    return {"reason": f"the process ended with {code}; see gpu.log"}
  found = json.loads(out.read_text())
  out.unlink()
  return found


def brief(found: dict) -> str:
  if "reason" in found:
    return f"not measured: {found['reason']}"
  numbers = {k: v for k, v in found.items() if isinstance(v, (int, float)) and k != "took"}
  return ", ".join(f"{k} {v:,.4g}" for k, v in numbers.items()) or "done"


# ---------------------------------------------------------------------------------------------- cases

# Rows of 4,096 tokens to begin with, of one device of 80 GB.
FIRST_ROWS = {"1.2B": 8, "0.5B": 16, "3B": 2, "8B": 2}
EIGHT = {"model.param_dtype": "bfloat16", "optimizer.moments": "int8"}
BACKENDS = ("cudnn", "mosaic_gpu", "xla_chunked", "xla")


def run_step(s: Session) -> dict:
  names = ("0.5B", "8B") if s.tiny else tuple(FIRST_ROWS)
  return {
    name: search(s, name, s.left() / (len(names) - i), EIGHT if name == "8B" else {})
    for i, name in enumerate(names)
  }


def search(s: Session, name: str, seconds: float, settings: dict) -> dict:
  """Rows up until memory or speed ends, then other remat choices; the fastest, and all that was tried."""
  ends, tried = time.monotonic() + seconds, []
  length = 256 if s.tiny else 4096

  def attempt(rows: int, remat: str) -> dict:
    left = ends - time.monotonic()
    if tried and left < tried[-1]["took"]:
      return {"reason": "the time was spent"}
    how = settings | {"model.remat": remat}
    found = s.measure("step", left, model=name, rows=rows, length=length, settings=how)
    tried.append({"rows": rows, "remat": remat, **found})
    return tried[-1]

  best, rows = attempt(2 if s.tiny else FIRST_ROWS[name], "attention_saved"), 0
  while "reason" in best and "out of memory" in best["reason"] and best["rows"] > 1:
    best = attempt(best["rows"] // 2, "attention_saved")
  if "reason" in best or s.tiny:
    return best | {"tried": tried}
  rows = best["rows"]
  while rate(found := attempt(rows := rows * 2, "attention_saved")) > 1.01 * rate(best):
    best = found
  for remat, rows in (("none", max(1, best["rows"] // 2)), ("full", best["rows"] * 2)):
    best = max(best, attempt(rows, remat), key=rate)
  return best | {"tried": tried}


def rate(found: dict) -> float:
  return found.get("trained_tokens_per_second", 0.0)


def run_torch(s: Session) -> dict:
  names = ("0.5B",) if s.tiny else ("1.2B", "0.5B", "3B")
  out = {}
  for i, name in enumerate(names):
    out[name] = torch_side(s, name, s.left() / (len(names) - i))
    if (ours := s.results.figures("step", name)) and rate(out[name]):
      out[name]["ours_over_torch"] = rate(ours) / rate(out[name])
      out[name]["our_memory_over_torch"] = ours["peak_gib"] / out[name]["peak_gib"]
  return out


def torch_side(s: Session, name: str, seconds: float) -> dict:
  """Attention by lengths if there is any, else by a mask; checkpointing on and off; Liger's loss; TRL."""
  ends, tried = time.monotonic() + seconds, []
  rows = [2] if s.tiny else [FIRST_ROWS[name] // 2, FIRST_ROWS[name], FIRST_ROWS[name] * 2]
  common = {"model": name, "length": 256 if s.tiny else 4096}

  def attempt(attention: str, checkpointing: bool, loss: str) -> dict:
    how = {"attention": attention, "checkpointing": checkpointing, "loss": loss}
    left = max(1.0, ends - time.monotonic())
    found = s.measure("torch", left, **common, **how, rows=rows, seconds=left / 3)
    tried.append(how | found)
    return tried[-1]

  best = {"reason": "nothing was tried"}
  for attention in ("sdpa",) if s.tiny else ("varlen", "flash_attention_2", "sdpa"):
    best = attempt(attention, False, "chunked")
    if "out of memory" in best.get("reason", ""):
      best = attempt(attention, True, "chunked")
    if "reason" not in best:
      break
  if "reason" not in best:
    others = [] if s.tiny else [(True, "chunked"), (best["checkpointing"], "liger")]
    for checkpointing, loss in others:
      if ends - time.monotonic() > best["took"] / 2:
        best = max(best, attempt(best["attention"], checkpointing, loss), key=rate)
  most = best.get("rows", rows[0])
  trl = s.measure(
    "trl", max(1.0, ends - time.monotonic()), **common, rows=most, checkpointing=best.get("checkpointing", True)
  )  # fmt: skip
  tried.append({"attention": "trl"} | trl)
  return max(best, tried[-1], key=rate) | {"tried": tried}


def run_attention(s: Session) -> dict:
  out = {}
  for i, backend in enumerate(BACKENDS):
    out[backend] = s.measure("attention", s.left() / (len(BACKENDS) - i) * 1.5, backend=backend)
  return out | {"fastest": fastest_backends(out)}


def fastest_backends(found: dict) -> dict:
  """{"T 4096, head 64, mean 256": [the fastest, times faster than each other]}."""
  times: dict[str, dict] = {}
  for backend in BACKENDS:
    for shape in found[backend].get("shapes", []):
      if "ms" in shape:
        key = f"T {shape['length']}, head {shape['head_dim']}, mean {shape['mean'] or 'whole'}"
        times.setdefault(key, {})[backend] = shape["ms"]
  return {
    key: {"backend": min(of, key=of.get)} | {f"{k}_ms": v for k, v in of.items()}
    for key, of in times.items()
  }


def run_numerics(s: Session) -> dict:
  return {"gradient": s.measure("gradient", s.left() / 3), "resume": s.measure("resume")}


def run_start(s: Session) -> dict:
  return s.measure("start")


def run_unpacked(s: Session) -> dict:
  """The same lengths of examples, none over 1,024 tokens, packed and each in a row of its own."""
  length, rows = (512, 2) if s.tiny else (1024, 64)
  out = {}
  for name, packing in (("packed", True), ("unpacked", False)):
    out[name] = s.measure(
      "step", s.left() / (1 + packing), model="0.5B", rows=rows, length=length, longest=length, packing=packing
    )  # fmt: skip
  if rate(out["packed"]) and rate(out["unpacked"]):
    out["packed_over_unpacked"] = rate(out["packed"]) / rate(out["unpacked"])
  return out


def run_loader(s: Session) -> dict:
  """Beside the step of the smallest model, where it is hardest."""
  step = s.results.figures("step", "0.5B")
  rows, length = (2, 256) if s.tiny else (FIRST_ROWS["0.5B"], 4096)
  if not step:
    step = s.measure("step", model="0.5B", rows=rows, length=length)
    if "reason" in step:
      return {"reason": f"no step to compare with: {step['reason']}"}
  return s.measure(
    "loader", rows=step.get("rows", rows), length=length, step_seconds=step["step_seconds"]
  )


CASES = {
  "step": run_step, "torch": run_torch, "attention": run_attention, "numerics": run_numerics,
  "start": run_start, "unpacked": run_unpacked, "loader": run_loader,
}  # fmt: skip


# -------------------------------------------------------------------------------------------- results


class Results:
  """What was found, in memory and in gpu.json."""

  def __init__(self, folder: Path, tiny: bool):
    self.folder, self.path = folder, folder / "gpu.json"
    folder.mkdir(parents=True, exist_ok=True)
    device = run_child({"kind": "device", "tiny": tiny}, 90, folder)
    if device.get("platform") == "cpu" and not tiny:
      sys.exit("error: JAX sees no GPU here; --tiny tries the script on CPU")
    self.about = {
      "tiny": tiny,
      "device": device,
      "driver": driver(),
      "python": platform.python_version(),
    }
    self.about["packages"] = {name: version(name) for name in PACKAGES}
    before = json.loads(self.path.read_text()) if self.path.exists() else {}
    same = all(before.get(key) == value for key, value in self.about.items())
    self.cases = before["cases"] if same else {}

  def put(self, case: str, found: dict) -> None:
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    self.cases[case] = found | {"date": now}
    temporary = self.path.with_suffix(".part")
    temporary.write_text(json.dumps(self.about | {"cases": self.cases}, indent=1) + "\n")
    temporary.replace(self.path)

  def figures(self, case: str, name: str) -> dict | None:
    """Of an earlier case, None if it was not measured."""
    found = self.cases.get(case, {}).get(name, {})
    return found if found and "reason" not in found else None

  def heading(self) -> str:
    packages = ", ".join(f"{k} {v}" for k, v in self.about["packages"].items() if v)
    return (
      f"{self.about['device'].get('kind', 'no device')}, driver {self.about['driver']}, Python "
      f"{self.about['python']}, {packages}, {datetime.date.today()}"
      + (", TINY" * self.about["tiny"])
    )

  def table(self) -> str:
    from gpu_table import table_rows

    lines = [self.heading(), "", "| case | | figure | goal |", "|---|---|---|---|"]
    for case in (c for c in BUDGETS if c in self.cases):
      lines += [f"| {case} | {' | '.join(row)} |" for row in table_rows(case, self.cases[case])]
    return "\n".join(lines)


def driver() -> str:
  query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
  try:
    return subprocess.run(query, capture_output=True, text=True, timeout=20).stdout.strip()
  except (OSError, subprocess.TimeoutExpired):
    return "unknown"


def version(name: str) -> str:
  try:
    return importlib.metadata.version(name)
  except importlib.metadata.PackageNotFoundError:
    return ""


if __name__ == "__main__":
  main()
