"""The model a run starts from: a Hugging Face folder or hub id, and its copy in a workdir."""

import dataclasses
import json
import os
import pathlib
import re
import shutil

import numpy as np

from mlit_jax import checksums, partial
from mlit_jax.errors import UserError
from mlit_jax.model.config import from_hf
from mlit_jax.weights import hf_files, names

# What an export must carry besides the weights. Licences ask to travel with them.
KEPT_FILES = (
  "config.json",
  "generation_config.json",
  "tokenizer.json",
  "tokenizer_config.json",
  "special_tokens_map.json",
  "added_tokens.json",
  "vocab.json",
  "vocab.txt",
  "merges.txt",
  "*.model",  # sentencepiece
  "chat_template.json",
  "*.jinja",
  "additional_chat_templates/*.jinja",
  "preprocessor_config.json",
  "processor_config.json",
  "LICENSE*",
  "NOTICE*",
  "USE_POLICY.md",
  "*.py",  # carried, never run: what an auto_map of config.json names
)
WEIGHT_FILES = ("*.safetensors", hf_files.INDEX_FILE)
# A second copy of the weights that some repositories carry in their trainer's own format.
SKIPPED_DOWNLOADS = ("original/*", "consolidated*", "onnx/*")
BASE = "base"
TENSORS_FILE = "tensors.json"
CARRIED_FILE = "carried.safetensors"


@dataclasses.dataclass(frozen=True)
class ModelSource:
  """All of a Hugging Face folder but the values of its weights."""

  folder: pathlib.Path
  config: dict
  files: dict[str, bytes]  # what an export carries, byte for byte
  layout: hf_files.Layout
  # Tensors beside the decoder's (a vision tower), mapped from their files: exported as they are.
  carried: dict[str, np.ndarray] = dataclasses.field(default_factory=dict, compare=False)

  @property
  def dtypes(self) -> dict[str, str]:
    """The dtype of each tensor."""
    return {name: tensor.dtype for name, tensor in self.layout.tensors().items()}


def read_source(path) -> ModelSource:
  """The source at a local folder, or at a hub id ("owner/name" or "owner/name@revision")."""
  folder = model_folder(path)
  checksums.check(folder, but="*.safetensors")  # those when they are read: load_params
  config = read_config(folder / "config.json")
  layout = hf_files.read_layout(folder)
  carried = _carried_names(config, layout)
  arrays = hf_files.map_tensors(folder, layout) if carried else {}
  return ModelSource(
    folder, config, _read_kept_files(folder), layout, {name: arrays[name] for name in carried}
  )


def model_folder(path, *, weights: bool = True) -> pathlib.Path:
  """The local folder of a model, or the cached one of a hub id, fetched if need be (without its weights, if so asked)."""
  folder = pathlib.Path(path).expanduser()
  if folder.is_dir():
    return folder
  if folder.exists():
    raise UserError(f"model {str(path)!r} is a file; name the folder that holds it.")
  return _download(str(path), [*KEPT_FILES, *(WEIGHT_FILES if weights else ())])


def read_config(path: pathlib.Path) -> dict:
  """A config.json of a decoder that can be tuned."""
  try:
    config = json.loads(path.read_bytes())
  except FileNotFoundError as e:
    raise UserError(
      f"{path}: not found; a model folder holds config.json beside its weights."
    ) from e
  except (OSError, ValueError, RecursionError) as e:
    raise UserError(f"{path}: not readable as JSON: {e}.") from e
  if not isinstance(config, dict):
    raise UserError(f"{path}: an object is expected, not {type(config).__name__}.")
  if config.get("quantization_config"):
    method = config["quantization_config"]
    method = method.get("quant_method", method) if isinstance(method, dict) else method
    raise UserError(
      f"{path}: quantization_config ({method}): quantised weights cannot be tuned in full. Start from "
      "the unquantised model."
    )
  try:
    from_hf(config)
  except UserError as e:
    raise UserError(f"{path}: {e}") from e
  return config


def save_source_copy(source: ModelSource, workdir) -> pathlib.Path:
  """Keeps all but the decoder's weights under workdir/base, so that an export never needs the source.

  That of a model that also sees holds its vision tower (Gemma 3: 0.8 GB in bfloat16). A copy that is
  there already must be of the same source. One process should call this.
  """
  target = pathlib.Path(workdir) / BASE
  if target.exists():
    kept = load_source_copy(workdir)
    if (kept.files, kept.layout) != (source.files, source.layout):
      changed = sorted(
        n for n in {*kept.files, *source.files} if kept.files.get(n) != source.files.get(n)
      )
      raise UserError(
        f"{target}: is the copy of another base model (differs in {', '.join(changed) or 'its weights'}). "
        f"Name another workdir, or the model this one began with ({source.folder} was given)."
      )
    return target
  partial.remove_dead(target.parent, target.name, all_hosts=True)  # the workdir is ours
  temporary = partial.beside(target)
  try:
    temporary.mkdir(parents=True)
    layout = {"headers": dict(source.layout.headers), "index": source.layout.index}
    for name, content in {**source.files, TENSORS_FILE: _dump(layout)}.items():
      (temporary / name).parent.mkdir(parents=True, exist_ok=True)
      (temporary / name).write_bytes(content)
    if source.carried:
      _write_carried(temporary / CARRIED_FILE, source.carried)
    checksums.write(temporary)
    os.rename(temporary, target)
  except OSError as e:
    shutil.rmtree(temporary, ignore_errors=True)
    raise UserError(f"{target}: cannot keep a copy of the base model's files: {e}.") from e
  return target


def load_source_copy(workdir) -> ModelSource:
  """The source as save_source_copy kept it; its folder holds no weights but the carried ones."""
  folder = pathlib.Path(workdir) / BASE
  checksums.check(folder, may_change=())
  try:
    kept = json.loads((folder / TENSORS_FILE).read_bytes())
    layout = hf_files.Layout(kept["headers"], kept["index"])
  except FileNotFoundError as e:
    raise UserError(
      f"{folder / TENSORS_FILE}: not found, so {workdir} is not the workdir of a run that began with a "
      "Hugging Face model."
    ) from e
  except (ValueError, KeyError, TypeError, RecursionError) as e:
    raise UserError(
      f"{folder / TENSORS_FILE}: damaged ({e}). Restore {folder} from a backup."
    ) from e
  config = read_config(folder / "config.json")
  carried = _read_carried(folder, layout, _carried_names(config, layout))
  return ModelSource(folder, config, _read_kept_files(folder), layout, carried)


def _carried_names(config: dict, layout: hf_files.Layout) -> list[str]:
  cfg = from_hf(config)
  return [name for name in layout.tensors() if names.is_carried(cfg, name)]


def _write_carried(path: pathlib.Path, arrays: dict[str, np.ndarray]) -> None:
  """One tensor after the other, so that memory holds one."""
  layout = hf_files.plan_layout(
    [(name, a.dtype.name, a.shape) for name, a in arrays.items()],
    sum(a.nbytes for a in arrays.values()),
  )
  header = layout.headers[hf_files.SINGLE_FILE]
  with hf_files.open_shard(path, header) as write:
    for tensor in hf_files.parse_header(header, path):
      write(tensor, arrays[tensor.name])
      hf_files.release(arrays[tensor.name])


def _read_carried(folder: pathlib.Path, layout, wanted: list[str]) -> dict[str, np.ndarray]:
  if not wanted:
    return {}
  path = folder / CARRIED_FILE
  if not path.exists():
    raise UserError(f"{path}: not found. Restore {folder} from a backup.")
  arrays = hf_files.map_tensors(
    folder, hf_files.Layout({CARRIED_FILE: hf_files.read_header(path)}, None)
  )
  meant, found = layout.tensors(), {n: (a.shape, a.dtype.name) for n, a in arrays.items()}
  if found != {name: (meant[name].shape, meant[name].dtype) for name in wanted}:
    raise UserError(f"{path}: holds other tensors than {TENSORS_FILE} says. Restore {folder}.")
  return arrays


def _read_kept_files(folder: pathlib.Path) -> dict[str, bytes]:
  paths = {p for pattern in KEPT_FILES for p in folder.glob(pattern) if p.is_file()}
  for path in sorted(paths):
    _check_stays_inside(folder, path)
  return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(paths)}


def _check_stays_inside(folder: pathlib.Path, path: pathlib.Path) -> None:
  """Exports carry these files: a link of a folder from elsewhere could put one's own files into them."""
  root, target = folder.resolve(), path.resolve()
  # The hub's cache has its files under blobs/, and links to them.
  blobs = root.parent.parent / "blobs" if root.parent.name == "snapshots" else root
  if not (target.is_relative_to(root) or target.is_relative_to(blobs)):
    raise UserError(
      f"{path}: is a link to {target}, outside of the model's folder, and would be copied into every export. "
      "Put the file itself in its place."
    )


def _download(path: str, wanted: list[str]) -> pathlib.Path:
  """The cached folder of a hub id, fetched if need be; config.json first, it may rule it out."""
  repo, _, revision = path.partition("@")
  if not re.fullmatch(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", repo):
    raise UserError(f"model {path!r}: no such folder, and not a hub id (owner/name).")
  # Late: a run from a local folder needs no hub client.
  import huggingface_hub
  from huggingface_hub import constants, errors

  try:
    config = huggingface_hub.hf_hub_download(repo, "config.json", revision=revision or None)
    read_config(pathlib.Path(config))
    return pathlib.Path(
      huggingface_hub.snapshot_download(
        repo,
        revision=revision or None,
        allow_patterns=wanted,
        ignore_patterns=list(SKIPPED_DOWNLOADS),
      )
    )
  except errors.GatedRepoError as e:
    raise UserError(
      f"model {path!r}: access must be granted first: accept its terms at the hub, then log in with "
      "`hf auth login`."
    ) from e
  except (errors.RepositoryNotFoundError, errors.RevisionNotFoundError) as e:
    raise UserError(
      f"model {path!r}: no such folder here, and no such model or revision on the hub (a private one "
      "needs `hf auth login`)."
    ) from e
  except errors.RemoteEntryNotFoundError as e:
    raise UserError(f"model {path!r}: its repository has no config.json.") from e
  except (errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled, OSError) as e:
    raise UserError(
      f"model {path!r}: no such folder here, and the hub cannot be reached. Looked for "
      f"{', '.join(wanted)} in the cache {constants.HF_HUB_CACHE}. Fetch it where there is a network "
      f"with `hf download {repo}` and copy that cache, or give the path of a local folder."
    ) from e


def _dump(value) -> bytes:
  return (json.dumps(value, indent=1, ensure_ascii=False) + "\n").encode()
