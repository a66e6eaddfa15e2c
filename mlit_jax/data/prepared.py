"""Data sets that another library prepared: TFDS folders, Hugging Face data sets on disk and on the hub.

Nothing is downloaded but for an entry `hf:`, and TensorFlow is never imported.
"""

import glob
import json
import os
import re
from collections.abc import Iterator, Mapping

from mlit_jax.data.files import BadRow, shorten, table_rows
from mlit_jax.errors import UserError

TFDS = re.compile(
  r"tfds:(?P<name>\w+)(/(?P<config>[^:]+))?(:(?P<version>\d+\.\d+\.\d+))?:(?P<split>[A-Za-z_].*)"
)
HUB = re.compile(r"hf:(?P<name>[^:/]+(/[^:/]+)?)(/(?P<config>[^:/]+))?:(?P<split>[A-Za-z_].*)")


# --- Hugging Face data sets on disk


def is_saved(folder: str) -> bool:
  """Whether a folder is a data set that `datasets` or `tfds` wrote."""
  names = ("dataset_dict.json", "state.json", "dataset_info.json")
  return any(os.path.isfile(os.path.join(folder, name)) for name in names)


def is_tfds_folder(folder: str) -> bool:
  return os.path.isfile(os.path.join(folder, "features.json"))


def saved_files(folder: str, split: str | None, place: str) -> list[str]:
  """The Arrow files of a saved data set, in order; `split` is needed where it has several."""
  if os.path.isfile(os.path.join(folder, "dataset_dict.json")):
    splits = _json(os.path.join(folder, "dataset_dict.json")).get("splits", [])
    if not isinstance(splits, list) or not all(map(_is_plain, splits)):
      raise UserError(
        f"{place}: {folder}: dataset_dict.json names splits that are no folders in it."
      )
    return saved_files(os.path.join(folder, _choose(split, splits, place)), None, place)
  state = os.path.join(folder, "state.json")
  if os.path.isfile(state):
    found = _json(state)
    if split not in (None, found.get("_split")):
      raise UserError(
        f"{place}: the folder is one split, {found.get('_split')!r}. Name it without ':{split}'."
      )
    names = [_filename(entry, state) for entry in found.get("_data_files") or []]
    files = [os.path.join(folder, name) for name in names]
  else:  # the cache of `datasets`: <name>-<split>.arrow, <name>-<split>-00000-of-00002.arrow
    splits = list(_json(os.path.join(folder, "dataset_info.json")).get("splits") or {})
    split = _choose(split, splits, place) if splits else split
    pattern = re.compile(rf".*-{re.escape(split)}(-\d+-of-\d+)?\.arrow" if split else r".*\.arrow")
    files = sorted(
      file
      for file in glob.glob(os.path.join(glob.escape(folder), "*.arrow"))
      if pattern.fullmatch(os.path.basename(file))
      and not os.path.basename(file).startswith("cache-")
    )
  missing = [file for file in files if not os.path.isfile(file)]
  if not files or missing:
    raise UserError(
      f"{place}: {missing[0] if missing else 'the folder has no .arrow file'}"
      f"{' is missing' if missing else ''}. Save the data set again with save_to_disk."
    )
  return files


def _is_plain(name) -> bool:
  """Whether a name of a file from elsewhere stays in its folder."""
  return isinstance(name, str) and name not in ("", ".", "..") and not set(name) & {"/", "\\", "\0"}


def _filename(entry, state: str) -> str:
  name = entry.get("filename") if isinstance(entry, dict) else None
  if not _is_plain(name):
    raise UserError(
      f"{state}: the data file {shorten(name)} is not the plain name of a file here. Save the data set again."
    )
  return name


def _choose(split: str | None, splits: list[str], place: str) -> str:
  if split is None and len(splits) == 1:
    return splits[0]
  if split not in splits:
    what = f"has no split {split!r}" if split else "has several splits"
    raise UserError(
      f"{place}: the data set {what}. Name one of {', '.join(splits)}: 'folder:{(splits or ['train'])[0]}'."
    )
  return split


def _json(path: str) -> dict:
  try:
    with open(path, encoding="utf-8") as file:
      found = json.load(file)
    if isinstance(found, dict):
      return found
    raise ValueError("not an object")
  except (OSError, ValueError, RecursionError) as error:
    raise UserError(f"{path}: cannot be read ({error}). Write the data set again.") from None


# --- TFDS


def find_tfds(text: str, data_dir: str | None, place: str) -> tuple[str, str]:
  """(folder of one version, split) that "tfds:name/config:split[slice]" means; prepared data only."""
  match = TFDS.fullmatch(text)
  if not match:
    raise UserError(
      f"{place}: {text!r} is not tfds:name/config:split, for example 'tfds:instructions12/sw:train[:10%]'."
    )
  name, config, version = match["name"], match["config"], match["version"]
  root = os.path.expanduser(
    data_dir or os.environ.get("TFDS_DATA_DIR") or os.path.join("~", "tensorflow_datasets")
  )
  folder = os.path.join(root, name)
  if not os.path.isdir(folder):
    raise UserError(
      f"{place}: {text!r} is not prepared: there is no {folder}. Nothing is downloaded here. Prepare it "
      f'with tfds.builder("{name}", file_format="array_record").download_and_prepare(), or say where it '
      "lies with TFDS_DATA_DIR or data_dir."
    )
  if not config and not _versions(folder):
    default = os.path.join(folder, ".config", "metadata.json")
    config = _json(default).get("default_config_name") if os.path.isfile(default) else None
    if config is not None and not _is_plain(config):
      raise UserError(f"{default}: default_config_name {shorten(config)} is no folder here.")
  parent = os.path.join(folder, *(config or "").split("/")) if config else folder
  versions = _versions(parent)
  if not versions or (version and version not in versions):
    there = versions or sorted(
      entry.name
      for entry in os.scandir(folder)
      if entry.is_dir() and not entry.name.startswith(".")
    )
    what = f"version {version!r}" if versions else f"config {config!r}"
    raise UserError(
      f"{place}: {text!r}: {folder} has no prepared {what}. There: {', '.join(there) or 'nothing'}."
    )
  found = os.path.join(parent, version or versions[-1])
  check_tfds_folder(found, match["split"], place)
  return found, match["split"]


def check_tfds_folder(folder: str, split: str | None, place: str) -> str:
  """The split of a prepared folder, once its format and the split are known to be readable."""
  info = _json(os.path.join(folder, "dataset_info.json"))
  form = info.get("fileFormat", "tfrecord")
  if form not in ("array_record", "parquet"):
    raise UserError(
      f"{place}: {folder} is prepared as {form}, which only TensorFlow can read. Prepare it again "
      f'with tfds.builder("{info.get("name", "name")}", data_dir=..., file_format="array_record").'
      "download_and_prepare()."
    )
  splits = [entry.get("name", "") for entry in info.get("splits", [])]
  if split is None:
    return _choose(None, splits, place)
  try:
    len(_data_source(folder, split))
  except Exception as error:  # whatever the library finds wrong with a split or a file
    raise UserError(
      f"{place}: the split {split!r} of {folder} cannot be read ({error}). Splits: {', '.join(splits)}; "
      "a slice is train[:10%] or train[100:200]."
    ) from None
  return split


def tfds_rows(folder: str, split: str) -> Iterator[tuple[int, dict | BadRow]]:
  """(row number from 1, row) of a split."""
  try:
    source = _data_source(folder, split)
    features = source.dataset_info.features
    for start in range(0, len(source), 256):
      rows = source.__getitems__(list(range(start, min(start + 256, len(source)))))
      for number, row in enumerate(rows, start=start + 1):
        try:
          yield number, _plain(row, features)
        except UnicodeDecodeError as error:
          yield number, BadRow("bad UTF-8", f"a text is not UTF-8 ({error}).", "Prepare it again.")
  except UserError:
    raise
  except Exception as error:  # the libraries below raise what they like
    raise UserError(f"{folder}: {split} cannot be read ({error}). Prepare it again.") from None


def _versions(folder: str) -> list[str]:
  """Prepared versions, the newest last."""
  if not os.path.isdir(folder):
    return []
  names = [
    e.name
    for e in os.scandir(folder)
    if re.fullmatch(r"\d+\.\d+\.\d+", e.name) and is_tfds_folder(e.path)
  ]
  return sorted(names, key=lambda name: tuple(map(int, name.split("."))))


def _data_source(folder: str, split: str):
  try:
    import tensorflow_datasets as tfds
  except ImportError:
    raise UserError(
      f"{folder}: reading it needs tensorflow-datasets and array_record. Run: pip install "
      "tensorflow-datasets array_record"
    ) from None
  return tfds.builder_from_directory(folder).as_data_source(split=split)


def _plain(value, feature=None):
  """Text for bytes, lists for arrays, a list of rows for a dict of columns, names for labels."""
  inner = getattr(feature, "feature", None)  # of a Sequence
  if isinstance(value, Mapping):
    columns = inner is not None
    of = inner if columns else feature
    of = dict(of.items()) if hasattr(of, "items") else {}
    plain = {key: _plain(item, of.get(key)) for key, item in value.items()}
    if not columns:
      return plain
    return [dict(zip(plain, row, strict=True)) for row in zip(*plain.values(), strict=True)]
  if isinstance(value, bytes):
    return value.decode("utf-8")
  if hasattr(value, "tolist"):  # arrays and scalars of numpy
    value = value.tolist()
    return _plain(value, feature)
  if isinstance(value, list | tuple):
    return [_plain(item, feature if inner is None else inner) for item in value]
  if isinstance(value, int) and hasattr(feature, "int2str"):
    return feature.int2str(value) if value >= 0 else None
  return value


# --- the hub


def check_hub(text: str, place: str) -> None:
  """UserError where "hf:name/config:split" is not that, or `datasets` is not installed."""
  import importlib.util

  if not HUB.fullmatch(text):
    raise UserError(
      f"{place}: {text!r} is not hf:name/config:split, for example 'hf:org/name/config:train'."
    )
  if importlib.util.find_spec("datasets") is None:
    raise UserError(
      f"{place}: {text!r} is on the hub, which needs the package `datasets`. Run: pip install "
      "datasets. Or save it elsewhere with save_to_disk and name the folder."
    )


def hub_rows(text: str, config: str | None) -> Iterator[tuple[int, dict]]:
  """(row number from 1, row) of a data set of the hub, fetched by `datasets` into its cache."""
  number = 0
  for table in load_hub(text, config).with_format("arrow").iter(1024):
    for row in table_rows(table):
      number += 1
      yield number, row


def load_hub(text: str, config: str | None):
  match = HUB.fullmatch(text)
  try:
    import datasets

    return datasets.load_dataset(match["name"], config or match["config"], split=match["split"])
  except Exception as error:  # of the network, of the hub, of the data set's own files
    raise UserError(
      f"{text}: cannot be fetched from the hub ({type(error).__name__}: {error}). Check the name and the "
      "network (HF_HUB_OFFLINE, HF_TOKEN), or save it elsewhere with save_to_disk and name the folder."
    ) from None


def folder_files(folder: str) -> list[str]:
  """Every file of a prepared folder, sorted."""
  return sorted(
    path for path in glob.glob(os.path.join(glob.escape(folder), "*")) if os.path.isfile(path)
  )
