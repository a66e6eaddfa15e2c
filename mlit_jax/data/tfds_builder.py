"""The bundled rows as a TFDS data set: instructions12, one config for each language.

  python -m mlit_jax.data.tfds_builder --data_dir DIR

Then data.train = ["tfds:instructions12/sw:train"], with TFDS_DATA_DIR=DIR or {"path": ..., "data_dir": DIR}.
No TensorFlow is needed: the files are ArrayRecord.
"""

import argparse
import contextlib
import io
import json
import logging
import sys
from pathlib import Path

import tensorflow_datasets as tfds

import mlit_jax
from mlit_jax.errors import UserError

ROWS = Path(mlit_jax.__file__).parent / "assets" / "instructions12"
LANGUAGES = tuple(sorted(path.stem for path in (ROWS / "train").glob("*.jsonl")))
COLUMNS = ("group_id", "category", "lang", "prompt", "completion")


class Instructions12(tfds.core.GeneratorBasedBuilder):
  """140 parallel instruction rows in each of twelve languages, machine-written; 20 of them held out."""

  VERSION = tfds.core.Version("1.0.0")
  url_infos = (
    None  # nothing is fetched, and looking for a list of it fails without importlib_resources
  )
  BUILDER_CONFIGS = [tfds.core.BuilderConfig(name=lang) for lang in LANGUAGES]

  def _info(self):
    return tfds.core.DatasetInfo(
      builder=self,
      description=self.__doc__,
      license="Apache-2.0",
      features=tfds.features.FeaturesDict({name: tfds.features.Text() for name in COLUMNS}),
      disable_shuffling=True,  # the order of the JSONL files
    )

  def _split_generators(self, dl_manager):
    name = f"{self.builder_config.name}.jsonl"
    return {split: self._generate_examples(ROWS / split / name) for split in ("train", "eval")}

  def _generate_examples(self, path):
    lines = path.read_text(encoding="utf-8").split("\n")
    for number, line in enumerate(filter(None, lines)):
      yield number, json.loads(line)


def prepare(data_dir: str, languages=LANGUAGES) -> list[str]:
  """Writes instructions12 below `data_dir`; the folders of its languages. What is there already stays."""
  folders = []
  for lang in languages:
    try:
      builder = Instructions12(config=lang, data_dir=data_dir, file_format="array_record")
      with contextlib.redirect_stdout(io.StringIO()):  # it would tell of a download: there is none
        builder.download_and_prepare()
    except OSError as error:
      raise UserError(f"--data_dir {data_dir}: cannot be written ({error}).") from None
    folders.append(str(builder.data_dir))
  return folders


def main(args: list[str] | None = None) -> int:
  parser = argparse.ArgumentParser(
    prog="python -m mlit_jax.data.tfds_builder",
    description="Prepares the bundled rows as the TFDS data set instructions12.",
    epilog="Example: python -m mlit_jax.data.tfds_builder --data_dir ~/tensorflow_datasets",
  )
  parser.add_argument("--data_dir", required=True, help="folder of TFDS data sets")
  options = parser.parse_args(args)
  logging.getLogger("absl").setLevel(logging.ERROR)
  tfds.disable_progress_bar()
  try:
    folders = prepare(str(Path(options.data_dir).expanduser()))
  except UserError as error:
    print(error, file=sys.stderr)
    return 2
  print("\n".join(folders))
  return 0


if __name__ == "__main__":
  sys.exit(main())
