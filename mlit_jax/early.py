"""What a run can be refused for before any row is read: reading and tokenising may take longer than all else."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

from mlit_jax import checks
from mlit_jax import mesh as meshes
from mlit_jax.data import mixture as mixtures
from mlit_jax.data.encoded import UNITS
from mlit_jax.data.mixture_names import with_tags
from mlit_jax.data.tokenizer import Tokenizer
from mlit_jax.detectors import check_detector
from mlit_jax.errors import UserError
from mlit_jax.model.config import DecoderConfig, from_hf, from_scratch
from mlit_jax.opening import named_languages
from mlit_jax.weights import load, source

ENOUGH = 10**15  # rows of each language, where it is not known yet how many there are


def check_config(c) -> None:
  """What needs neither rows, nor the model, nor devices."""
  checks.check_config(c)
  check_mixture(c)
  check_detector(c.eval.lid, where="eval.lid")
  if not c.eval.suites and all(isinstance(files, Mapping) for files in c.eval.sets.values()):
    answers = c.eval.generate_rows > 0
    sets = {name: (named_languages(files), answers) for name, files in c.eval.sets.items()}
    checks.check_best(c.checkpoint.best, sets)


def check_mixture(c) -> None:
  """Keys, signs and sums of data.mixture, as if there were rows enough of each language that data.train names."""
  languages = named_languages(c.data.train)
  specs = [spec for spec, _, _ in mixtures.stages(c.data.mixture, epochs=c.epochs, steps=c.steps)]
  if not languages:  # the rows name theirs
    return
  for spec in specs:
    if isinstance(spec, Mapping) and "temperature" in spec and "total" not in spec:
      continue  # its message says how many rows there are
    keys = [(lang, "") for lang in languages] + [
      key for key in _sources(with_tags(spec)) if key[0] in languages
    ]
    stock = mixtures.Stock({unit: dict.fromkeys(keys, ENOUGH) for unit in UNITS})
    mixtures.resolve(spec, stock, max_repeats=c.data.max_repeats)


def check_model(c, folder: Path | None, tokenizer: Tokenizer) -> DecoderConfig:
  """The decoder of the config; where its weights are here, their names and shapes are looked at too."""
  if folder is None:
    cfg = from_scratch(dict(c.model.sizes), tokenizer.vocab_size)
  else:
    cfg = from_hf(source.read_config(folder / "config.json"))
    if any(folder.glob("*.safetensors")):
      load.check_names(folder, cfg)
  checks.check_vocabulary(cfg, tokenizer)
  return cfg


def check_devices(c, cfg: DecoderConfig):
  """The mesh of the config over the devices that are here, if this model and its rows fit it."""
  mesh = meshes.make_mesh(**c.mesh)
  checks.check_mesh(c, cfg, mesh)
  checks.check_attention(c, cfg, mesh)
  checks.check_recheck(c, mesh)
  return mesh


def misfit(c, cfg: DecoderConfig) -> str:
  """Why a run could not begin on the devices that are here; "" if it could. It may be meant for others."""
  meshes.check_sizes(**c.mesh)
  try:
    check_devices(c, cfg)
  except UserError as e:
    return f"a run could not begin on this machine: {e}"
  return ""


def _sources(spec) -> Iterator[mixtures.Key]:
  """(language, source) that a mixture names: which there are, the files say."""
  for body in spec.values() if isinstance(spec, Mapping) else ():
    for lang, parts in body.items() if isinstance(body, Mapping) else ():
      if isinstance(parts, Mapping):
        yield from ((lang, part) for part in parts)
