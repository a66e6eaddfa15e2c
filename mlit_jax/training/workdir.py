"""The files of a run besides its checkpoints; only the first process writes them."""

from __future__ import annotations

import importlib.metadata
import json
import shutil
from collections.abc import Mapping
from pathlib import Path

import jax

from mlit_jax import checksums, runtime
from mlit_jax.config import flatten, nested
from mlit_jax.errors import UserError
from mlit_jax.model.decoder import is_spec
from mlit_jax.redaction import redact_all
from mlit_jax.training.watch import NONFINITE, SPIKES, STOPPED

OURS_BEFORE_START = (".lock", "cache", "preview.html")
OURS_BEGUN = (
  ".config.json.",
  "stacks-",
)  # what a kill leaves of the first file; what a stall leaves
FREE = (
  "workdir",
  "log.",
  "watchdog.",
  "mesh.",
  "data.cache_dir",
  "optimizer.offload",
  "optimizer.nonfinite",
  "optimizer.max_skipped",
  "debug.",
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
  then = defaults | _flat(redact_all(_read_config(path)), defaults)
  now = _flat(json.loads(json.dumps(redact_all(nested(config)))), defaults)
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
  try:
    then = checksums.read_sealed(path)
  except (ValueError, RecursionError):
    return  # damaged: it is written anew, and the checkpoint says which plan it is of
  if "hash" not in then or not isinstance(then.get("made_from", {}), dict):
    raise _damaged(path, "it has no hash of a plan")
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
    kept = redact_all(nested(config))  # it is read by others, and trackers and pages show it
    content = {"config": kept, "versions": versions()}
    runtime.write_json(root / "config.json", checksums.sealed(content))


def versions() -> dict[str, str]:
  """What shaped the run besides its config."""
  out = {}
  for name in PACKAGES:
    try:
      out[name] = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
      out[name] = "not installed"
  return out | {"device": jax.devices()[0].device_kind, "devices": jax.device_count()}


def forget_after(root: Path, step: int) -> None:
  """Drop events after `step`: the run goes on from there and will log them again."""
  for name in ("metrics.jsonl", NONFINITE, SPIKES) if runtime.is_main() else ():
    if (root / name).exists():
      forget_lines(root / name, step)


def forget_lines(path: Path, step: int) -> None:
  """Keep of a file of events only those up to `step`, and those of steps that have ended the run."""
  kept = []
  for line in path.read_text(encoding="utf-8").split("\n"):
    try:
      event = json.loads(line)
      if event["step"] <= step or event.get("action") == STOPPED:
        kept.append(line + "\n")
    except (ValueError, KeyError, TypeError, RecursionError):
      continue  # the line that a kill cut short
  runtime.write_atomic(path, "".join(kept))


def was_evaluated(root: Path, step: int) -> bool:
  """Whether metrics.jsonl has the evaluation of this step."""
  return any(e.get("step") == step and any(k.startswith("eval/") for k in e) for e in _events(root))


def measured(root: Path, name: str, step: int) -> dict[int, float | None]:
  """{step: value} of one figure in metrics.jsonl, up to `step`."""
  return {
    e["step"]: e[name] for e in _events(root) if name in e and e.get("step", step + 1) <= step
  }


def _events(root: Path) -> list[dict]:
  path = root / "metrics.jsonl"
  try:
    lines = path.read_text(encoding="utf-8").split("\n")[:-1] if path.exists() else []
  except (OSError, UnicodeDecodeError) as e:
    raise _damaged(path, str(e)) from e
  return [_object(line, path) for line in lines]


def forget_unbegun(root: Path) -> None:
  """Drop what a run left that never began: its tokenizer or base beside others' would be read."""
  if runtime.is_main() and not _has_begun(root):
    for name in ("base", "tokenizer", "evals"):
      shutil.rmtree(root / name, ignore_errors=True)


def keep_ledger(root: Path, ledger: dict) -> None:
  if runtime.is_main():
    runtime.write_json(root / "data_plan.json", checksums.sealed(ledger))


def keep_tokenizer(root: Path, tokenizer) -> None:
  """The folder `tokenizer`: what an export carries, and what the run is read back with."""
  for name, content in tokenizer.files.items():
    _keep(root / "tokenizer" / name, content)
  _seal(root / "tokenizer")


def keep_base(root: Path, hf_config: dict, tokenizer) -> None:
  """The folder `base` of a model from scratch: its config.json and generation_config.json."""
  generation = {
    "bos_token_id": tokenizer.bos_id,
    "eos_token_id": list(tokenizer.stop_ids),
    "pad_token_id": tokenizer.pad_id,
  }
  _keep(root / "base" / "config.json", _bytes(hf_config))
  _keep(root / "base" / "generation_config.json", _bytes(generation))
  _seal(root / "base")


def _read_config(path: Path) -> dict:
  try:
    return checksums.read_sealed(path)["config"]
  except (ValueError, RecursionError) as e:
    raise _damaged(path, str(e)) from e


def _is_ours(path: Path) -> bool:
  """Whether a config.json is of a run; a Hugging Face folder has one too."""
  try:
    content = json.loads(path.read_text(encoding="utf-8"))
  except (ValueError, RecursionError):
    return False
  return (
    isinstance(content, dict)
    and isinstance(content.get("config"), dict)
    and {"config", "versions"} <= content.keys()
  )


def _has_begun(root: Path) -> bool:
  return (root / "metrics.jsonl").exists() or any((root / "checkpoints").glob("[0-9]*"))


def _keep(path: Path, content: bytes) -> None:
  if runtime.is_main():
    runtime.write_atomic(path, content)


def _seal(folder: Path) -> None:
  if runtime.is_main():
    checksums.write(folder)


def read_evaluation(root: Path, step: int) -> dict:
  """{set: {lang: ...}} of a step; empty if there was none."""
  folder = root / "evals" / str(step)
  return {p.stem: _read(p) for p in sorted(folder.glob("*.json"))}


def _read(path: Path) -> dict:
  """A JSON file of a run, as a kill, a full disk or somebody's editor left it."""
  try:
    return _object(path.read_text(encoding="utf-8"), path)
  except (OSError, UnicodeDecodeError) as e:
    raise _damaged(path, str(e)) from e


def _object(text: str, path: Path) -> dict:
  try:
    found = json.loads(text)
  except (ValueError, RecursionError) as e:
    raise _damaged(path, str(e)) from e
  if not isinstance(found, dict):
    raise _damaged(path, "it holds no object")
  return found


def _damaged(path: Path, why: str) -> UserError:
  return UserError(f"{path} is damaged: {why}. Restore it from a backup, or use another --workdir.")


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
