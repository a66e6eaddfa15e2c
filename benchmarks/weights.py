"""Import and export of a generated checkpoint: time against a plain read or write, peak memory against what is kept.

  python benchmarks/weights.py [--size 0.5b|3b] [--folder DIR] [--warm]

A bfloat16 checkpoint in several shards is written once. Import, export, a plain read (through one buffer), a read
that keeps the values as float32, and a plain write each run in a process of its own, ours on 4 fake devices. Memory is what the process adds: its peak minus what it held when JAX was
started, sampled from /proc as anonymous and file-backed pages, since pages of a memory map can be dropped at any time.

A virtual machine may hand memory that nobody uses back to its host (a balloon with free page reporting) and wait for
it when it is next touched, longer than all the rest takes. With --warm each side touches three times the checkpoint's
size and frees it right before the clock starts.
"""

import argparse
import json
import mmap
import os
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=4"

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
SIZES = {
  "tiny": dict(d_model=64, num_layers=4, num_heads=4, num_kv_heads=2, head_dim=16, d_ff=128, vocab_size=512),
  "0.5b": dict(d_model=1024, num_layers=24, num_heads=16, num_kv_heads=8, head_dim=64, d_ff=4096, vocab_size=128_000),
  "3b": dict(d_model=3072, num_layers=28, num_heads=24, num_kv_heads=8, head_dim=128, d_ff=8192, vocab_size=128_256),
}  # fmt: skip
NUM_SHARDS = 4
MIB = 2**20
BEFORE = []  # bytes to touch before the clock starts


def main():
  parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
  parser.add_argument("--size", choices=SIZES, default="0.5b")
  parser.add_argument("--folder", default="", help="for the files; twice the checkpoint's size")
  parser.add_argument("--rounds", type=int, default=3)
  parser.add_argument(
    "--warm", action="store_true", help="memory is the machine's before each clock starts"
  )
  parser.add_argument("--side", choices=SIDES, default="")
  args = parser.parse_args()
  if args.side:
    if args.warm:
      BEFORE.append(3 * 2 * count(args.size))
    print(json.dumps(SIDES[args.side](args.size, Path(args.folder))))
    return
  with tempfile.TemporaryDirectory(dir=args.folder or None) as folder:
    made = child("make", args.size, folder)
    print(
      f"{args.size}: {made['params']:,} parameters, {made['bytes'] / MIB:,.0f} MiB in {made['files']} files"
    )
    rounds = []
    for number in range(args.rounds):
      found = {
        side: child(side, args.size, folder, *["--warm"] * args.warm)
        for side in ("read", "import", "kept", "write", "export")
      }
      rounds.append(found)
      print(
        f"round {number + 1}: " + ", ".join(f"{k} {v['seconds']:.2f} s" for k, v in found.items())
      )
  for ours, plain in (("import", "read"), ("import", "kept"), ("export", "write")):
    ratios = [r[ours]["seconds"] / r[plain]["seconds"] for r in rounds]
    what = "a read kept as float32" if plain == "kept" else f"a plain {plain}"
    print(
      f"{ours} / {what}: {np.median(ratios):.2f} x the time ({', '.join(f'{r:.2f}' for r in ratios)})"
    )
    if plain == "kept":
      continue
    peak = max(rounds, key=lambda r: r[ours]["peak"])[ours]
    print(
      f"{ours}: peak {peak['peak'] / MIB:,.0f} MiB (of them {peak['mapped'] / MIB:,.0f} of mapped files) over "
      f"{peak['kept'] / MIB:,.0f} MiB {peak['what']} = {peak['peak'] / peak['kept']:.2f} x"
    )


def child(side: str, size: str, folder: str, *more: str) -> dict:
  command = [
    sys.executable,
    __file__,
    "--side",
    side,
    "--size",
    size,
    "--folder",
    str(folder),
    *more,
  ]
  out = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
  return json.loads(out.strip().splitlines()[-1])


def config(size: str):
  from mlit_jax.model.config import DecoderConfig

  return DecoderConfig(family="llama", tied=True, **SIZES[size])


def count(size: str) -> int:
  from mlit_jax.model import decoder

  return decoder.count_params(config(size))


def make(size: str, folder: Path) -> dict:
  """Random bits as bfloat16 below 1, shard by shard."""
  from mlit_jax.weights import hf_files, table

  cfg, num_bytes = config(size), 2 * count(size)
  shapes = {name: theirs.shape for name, theirs in table.tensors_of(cfg).items()}
  layout = hf_files.plan_layout(
    [(name, "bfloat16", shape) for name, shape in shapes.items()], num_bytes // NUM_SHARDS
  )
  rng = np.random.default_rng(0)
  (folder / "in").mkdir()
  for file, header in layout.headers.items():
    with hf_files.open_shard(folder / "in" / file, header) as write:
      for tensor in hf_files.parse_header(header, file):
        bits = rng.integers(0, 0x3F80, tensor.shape, np.uint16)
        write(tensor, bits.view(hf_files.DTYPES["BF16"]))
  (folder / "in" / hf_files.INDEX_FILE).write_text(layout.index)
  return {"params": num_bytes // 2, "bytes": num_bytes, "files": len(layout.headers)}


def plain_read(size: str, folder: Path) -> dict:
  """The files' bytes through one buffer."""
  files = sorted((folder / "in").glob("*.safetensors"))
  forget(files)
  buffer = bytearray(16 * MIB)
  began = time.perf_counter()
  for path in files:
    with path.open("rb", buffering=0) as f:
      while f.readinto(buffer):
        pass
  return {"seconds": time.perf_counter() - began}


def kept_read(size: str, folder: Path) -> dict:
  """The files as float32 in memory, as numpy reads them: what is the least that an import must do."""
  files = sorted((folder / "in").glob("*.safetensors"))
  forget(files)
  began = time.perf_counter()
  kept = [(np.fromfile(path, np.uint16).astype(np.uint32) << 16).view(np.float32) for path in files]
  return {"seconds": time.perf_counter() - began, "files": len(kept)}


def plain_write(size: str, folder: Path) -> dict:
  """As many bytes from one buffer, and synced, as our export is."""
  num_bytes = sum(p.stat().st_size for p in (folder / "in").glob("*.safetensors"))
  buffer = np.random.default_rng(0).bytes(16 * MIB)
  path = folder / "plain"
  warm()
  began = time.perf_counter()
  with path.open("wb", buffering=0) as f:
    for _ in range(-(-num_bytes // len(buffer))):
      f.write(buffer)
    os.fsync(f.fileno())
  seconds = time.perf_counter() - began
  path.unlink()
  return {"seconds": seconds}


def run_import(size: str, folder: Path) -> dict:
  load_all, files = loader(size, folder)
  forget(files)
  with Peak() as peak:
    began = time.perf_counter()
    params = load_all()
    seconds = time.perf_counter() - began
  return peak.figures("kept (float32)", kept_bytes(params)) | {"seconds": seconds}


def run_export(size: str, folder: Path) -> dict:
  import shutil

  from mlit_jax.weights import hf_files, save

  load_all, _ = loader(size, folder)
  params = load_all()
  layout = hf_files.read_layout(folder / "in")
  dtypes = {name: tensor.dtype for name, tensor in layout.tensors().items()}
  shards = sorted((p.stat().st_size for p in (folder / "in").glob("*.safetensors")), reverse=True)
  warm()
  with Peak() as peak:
    began = time.perf_counter()
    save.save_folder(params, config(size), folder / "out", files={}, dtypes=dtypes, layout=layout)
    seconds = time.perf_counter() - began
  shutil.rmtree(folder / "out")
  # Beyond the parameters, which lie there before.
  return peak.figures("written plus two shards", sum(shards) + sum(shards[:2])) | {
    "seconds": seconds
  }


def loader(size: str, folder: Path):
  """(a function that imports, the files), JAX started and its first array made."""
  import jax

  from mlit_jax import mesh as meshes
  from mlit_jax.model import decoder
  from mlit_jax.weights import load

  cfg = config(size)
  mesh = meshes.make_mesh(1, 2, 2)
  shardings = meshes.param_shardings(decoder.param_specs(cfg), mesh)
  jax.block_until_ready(jax.device_put(np.zeros(8, np.float32), jax.devices()[3]))

  def load_all():
    return jax.block_until_ready(load.load_params(folder / "in", cfg, shardings))

  return load_all, sorted((folder / "in").glob("*.safetensors"))


def kept_bytes(params) -> int:
  """Of the shards on this process's devices, replicas included: each device keeps its own."""
  import jax

  return sum(
    shard.data.nbytes for leaf in jax.tree.leaves(params) for shard in leaf.addressable_shards
  )


def forget(files) -> None:
  """Drops the files from the page cache, so that each side reads them from the disk."""
  warm()
  for path in files:
    with path.open("rb") as f:
      os.fsync(f.fileno())
      os.posix_fadvise(f.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def warm() -> None:
  """Touches and frees as many bytes as BEFORE says."""
  for num_bytes in BEFORE:
    np.empty(num_bytes, np.uint8)[:: mmap.PAGESIZE] = 1


class Peak:
  """The most resident memory during the block beyond that at its start, sampled each 5 ms."""

  def __enter__(self):
    self.base, self.peak, self.mapped = resident(), 0, 0
    self.stop = threading.Event()
    self.thread = threading.Thread(target=self.watch)
    self.thread.start()
    return self

  def __exit__(self, *_):
    self.stop.set()
    self.thread.join()

  def watch(self):
    while not self.stop.wait(0.005):
      now = resident()
      added = sum(now) - sum(self.base)
      if added > self.peak:
        self.peak, self.mapped = added, now[1] - self.base[1]

  def figures(self, what: str, kept: int) -> dict:
    return {"peak": self.peak, "mapped": self.mapped, "kept": kept, "what": what}


def resident() -> tuple[int, int]:
  """(anonymous, file-backed) resident bytes of this process."""
  fields = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
  return tuple(1024 * int(fields[name].split()[0]) for name in ("RssAnon", "RssFile"))


SIDES = {
  "make": make, "read": plain_read, "kept": kept_read, "write": plain_write, "import": run_import, "export": run_export,
}  # fmt: skip


if __name__ == "__main__":
  main()
