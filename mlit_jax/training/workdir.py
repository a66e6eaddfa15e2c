"""The files of a run besides its checkpoints; only the first process writes them."""

from __future__ import annotations

import importlib.metadata
import json
import shutil
import time
from collections.abc import Mapping
from pathlib import Path

import jax

from mlit_jax import runtime
from mlit_jax.config import flatten, nested
from mlit_jax.errors import UserError
from mlit_jax.model.decoder import is_spec

OURS_BEFORE_START = (".lock", "cache", "preview.html")
OURS_BEGUN = ".config.json."  # what a kill leaves of the first file
FREE = (
  "workdir",
  "log.",
  "mesh.",
  "data.cache_dir",
  "optimizer.offload",
)  # keys that may differ when a run goes on
PACKAGES = (
  "mlit_jax",
  "jax",
  "jaxlib",
  "flax",
  "optax",
  "orbax-checkpoint",
  "grain",
  "tokenizers",
  "sentencepiece",
)


def check_free(root: Path, config) -> None:
  """Refuse a workdir that holds a begun run of another config, or something that is not ours."""
  path = root / "config.json"
  if path.exists() and not _is_ours(path):
    raise UserError(
      f"workdir {root} is not empty and holds no run of ours (its config.json is of something else). "
      "Choose another --workdir."
    )
  if not path.exists():
    foreign = sorted(
      p.name
      for p in root.iterdir()
      if p.name not in OURS_BEFORE_START and not p.name.startswith(OURS_BEGUN)
    )
    if foreign:
      raise UserError(
        f"workdir {root} is not empty and holds no run of ours ({', '.join(foreign[:5])}). "
        "Choose another --workdir."
      )
    return
  if not _has_begun(root):
    return  # nothing was trained or measured yet: the config may still be mended
  # A key that is younger than the run had its default there.
  defaults = _defaults()
  then = defaults | _flat(json.loads(path.read_text(encoding="utf-8"))["config"], defaults)
  now = _flat(json.loads(json.dumps(nested(config))), defaults)
  differing = [
    f"{key}: {then.get(key)!r} then, {now.get(key)!r} now"
    for key in sorted(then.keys() | now.keys())
    if then.get(key) != now.get(key) and not key.startswith(FREE)
  ]
  if differing:
    more = f"; and {len(differing) - 5} more" if len(differing) > 5 else ""
    raise UserError(
      f"workdir {root} belongs to a run of a different config ({'; '.join(differing[:5])}{more}). "
      "Use another --workdir, or undo the change to go on with that run."
    )


def check_plan(root: Path, ledger: dict) -> None:
  """Refuse to go on with a begun run on other data, before its data_plan.json is written over."""
  path = root / "data_plan.json"
  if not path.exists() or not _has_begun(root):
    return
  then = json.loads(path.read_text(encoding="utf-8"))
  if then["hash"] == ledger["hash"]:
    return
  changed = differing(then.get("made_from", {}), ledger["made_from"])
  what = "; ".join(changed[:5]) or "the code that plans has changed"
  more = f"; and {len(changed) - 5} more" if len(changed) > 5 else ""
  raise UserError(
    f"workdir {root} belongs to a run on plan {then['hash']}, the data now give plan {ledger['hash']}: {what}{more}. "
    "Restore it, or use another --workdir."
  )


def differing(then: Mapping[str, str], now: Mapping[str, str]) -> list[str]:
  """What was made from something else, in words."""
  out = []
  for what in sorted(then.keys() | now.keys()):
    if then.get(what) != now.get(what):
      how = "is new" if what not in then else "is gone" if what not in now else "has changed"
      out.append(f"{what} {how}")
  return out


def check_same_plan(root: Path, then: str, plan: str) -> None:
  """Refuse a checkpoint of another plan than the one that data_plan.json states."""
  if then != plan:
    raise UserError(
      f"the checkpoint in {root} is of plan {then}, its data_plan.json of plan {plan}. Restore the folder that "
      "belongs together, or use another --workdir."
    )


def write_config(root: Path, config) -> None:
  if runtime.is_main():
    runtime.write_json(root / "config.json", {"config": nested(config), "versions": versions()})


def versions() -> dict[str, str]:
  """What shaped the run besides its config."""
  out = {}
  for name in PACKAGES:
    try:
      out[name] = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
      out[name] = "not installed"
  return out | {"device": jax.devices()[0].device_kind, "devices": jax.device_count()}


def log(root: Path, step: int, event: dict) -> None:
  """Append one event to metrics.jsonl."""
  if runtime.is_main():
    line = json.dumps({"step": step, "time": round(time.time(), 3), **event}, ensure_ascii=False)
    with open(root / "metrics.jsonl", "a", encoding="utf-8") as file:
      file.write(line + "\n")


def forget_after(root: Path, step: int) -> None:
  """Drop events after `step`: the run goes on from there and will log them again."""
  if runtime.is_main() and (root / "metrics.jsonl").exists():
    forget_lines(root / "metrics.jsonl", step)


def forget_lines(path: Path, step: int) -> None:
  """Keep of a file of events only those up to `step`."""
  kept = []
  for line in path.read_text(encoding="utf-8").split("\n"):
    try:
      if json.loads(line)["step"] <= step:
        kept.append(line + "\n")
    except (ValueError, KeyError):
      continue  # the line that a kill cut short
  runtime.write_atomic(path, "".join(kept))


def was_evaluated(root: Path, step: int) -> bool:
  """Whether metrics.jsonl has the evaluation of this step."""
  return any(e["step"] == step and any(k.startswith("eval/") for k in e) for e in _events(root))


def measured(root: Path, name: str, step: int) -> dict[int, float | None]:
  """{step: value} of one figure in metrics.jsonl, up to `step`."""
  return {e["step"]: e[name] for e in _events(root) if name in e and e["step"] <= step}


def _events(root: Path) -> list[dict]:
  path = root / "metrics.jsonl"
  lines = path.read_text(encoding="utf-8").split("\n")[:-1] if path.exists() else []
  return [json.loads(line) for line in lines]


def forget_unbegun(root: Path) -> None:
  """Drop what a run left that never began: its tokenizer or base beside others' would be read."""
  if runtime.is_main() and not _has_begun(root):
    for name in ("base", "tokenizer", "evals"):
      shutil.rmtree(root / name, ignore_errors=True)


def keep_ledger(root: Path, ledger: dict) -> None:
  if runtime.is_main():
    runtime.write_json(root / "data_plan.json", ledger)


def keep_tokenizer(root: Path, tokenizer) -> None:
  """The folder `tokenizer`: what an export carries, and what the run is read back with."""
  for name, content in tokenizer.files.items():
    _keep(root / "tokenizer" / name, content)


def keep_base(root: Path, hf_config: dict, tokenizer) -> None:
  """The folder `base` of a model from scratch: its config.json and generation_config.json."""
  generation = {
    "bos_token_id": tokenizer.bos_id,
    "eos_token_id": list(tokenizer.stop_ids),
    "pad_token_id": tokenizer.pad_id,
  }
  _keep(root / "base" / "config.json", _bytes(hf_config))
  _keep(root / "base" / "generation_config.json", _bytes(generation))


def _is_ours(path: Path) -> bool:
  """Whether a config.json is of a run; a Hugging Face folder has one too."""
  try:
    content = json.loads(path.read_text(encoding="utf-8"))
  except ValueError:
    return False
  return isinstance(content, dict) and {"config", "versions"} <= content.keys()


def _has_begun(root: Path) -> bool:
  return (root / "metrics.jsonl").exists() or any((root / "checkpoints").glob("[0-9]*"))


def _keep(path: Path, content: bytes) -> None:
  if runtime.is_main():
    runtime.write_atomic(path, content)


def read_evaluation(root: Path, step: int) -> dict:
  """{set: {lang: ...}} of a step; empty if there was none."""
  folder = root / "evals" / str(step)
  return {p.stem: json.loads(p.read_text(encoding="utf-8")) for p in sorted(folder.glob("*.json"))}


def parameter_lines(specs, shardings) -> list[str]:
  """ "blocks/attn/q_DNH  4x192x6x32  (layers, embed, heads, head_dim)  P(None, 'fsdp', ...)" for each."""
  flat_specs = jax.tree_util.tree_leaves_with_path(specs, is_leaf=is_spec)
  return [
    f"{'/'.join(k.key for k in path)}  {'x'.join(map(str, s.shape))}  ({', '.join(s.axes)})  {sharding.spec}"
    for (path, s), sharding in zip(flat_specs, jax.tree.leaves(shardings), strict=True)
  ]


def _defaults() -> dict:
  from configs import base

  return json.loads(json.dumps(flatten(base.get_config())))


def _flat(config: dict, known: dict, prefix: str = "") -> dict:
  out = {}
  for key, value in config.items():
    if prefix + key not in known and isinstance(value, dict):
      out |= _flat(value, known, f"{prefix}{key}.")
    else:
      out[prefix + key] = value
  return out


def _bytes(value) -> bytes:
  return (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode()
