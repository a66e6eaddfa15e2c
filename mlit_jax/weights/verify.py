"""An exported folder beside the parameters it came from: the same tokens, the same logits in transformers."""

import importlib.util
import math
from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from mlit_jax.model import decoder
from mlit_jax.model.config import DecoderConfig
from mlit_jax.weights import names, table
from mlit_jax.weights.writer import on_first

# float32 on both sides: sums in another order give 1e-6 to 1e-4, a wrong tensor or setting 1e-1 and more.
LIMIT = 1e-3
MAX_ROWS = 12
MAX_TOKENS = 128


class UnverifiedError(Exception):
  """The folder does not do in transformers what the model does here."""


def can_compare() -> bool:
  """Whether transformers and torch are installed."""
  return all(importlib.util.find_spec(name) for name in ("transformers", "torch"))


def compare_logits(
  folder,
  params: dict,
  cfg: DecoderConfig,
  dtypes: Mapping[str, str] | str,
  rows: Mapping[str, Sequence[int]],
  mesh: Mesh,
) -> dict[str, float]:
  """{language: largest |ours - theirs| / largest |theirs|} on one row of tokens per language.

  Ours come from `params` as the exported `dtypes` round them, theirs from `folder`; both compute in
  float32. Under several processes all must call this; the first one reads the folder and gets the
  figures, the others get none.
  """
  otherwise = UnverifiedError(f"{folder}: the first process's message says why.")
  theirs = on_first(lambda: _open(folder), otherwise)
  params = rounded(params, cfg, dtypes)
  length = max(map(len, rows.values()))  # one shape: compiled once
  apply = jax.jit(
    lambda params, *arrays: decoder.apply(params, cfg, *arrays),
    out_shardings=NamedSharding(mesh, PartitionSpec()),
  )
  ours = {}
  # An accelerator's float32 products are rounded to bfloat16 or tf32 unless told otherwise.
  with jax.set_mesh(mesh), jax.default_matmul_precision("highest"):
    for lang, tokens in rows.items():
      tokens_BT = np.zeros((1, length), np.int32)
      tokens_BT[0, : len(tokens)] = tokens
      segments_BT = (np.arange(length) < len(tokens)).astype(np.int32)[None]
      positions_BT = np.arange(length, dtype=np.int32)[None]
      ours[lang] = np.asarray(apply(params, tokens_BT, positions_BT, segments_BT))[0, : len(tokens)]
  return (
    on_first(
      lambda: {lang: _difference(ours[lang], theirs, tokens) for lang, tokens in rows.items()},
      otherwise,
    )
    or {}
  )


def rounded(params: dict, cfg: DecoderConfig, dtypes: Mapping[str, str] | str) -> dict:
  """The parameters in float32, each value as the dtype of its exported tensor holds it."""
  leaves, out = table.flatten(params), {}
  prefix = names.prefix_of(cfg, () if isinstance(dtypes, str) else dtypes)
  for row in table.rows(cfg, prefix):
    leaf = leaves[row.ours]
    kinds = [dtypes if isinstance(dtypes, str) else dtypes[name] for name in row.names()]
    for dtype in sorted(set(kinds) - {"float32"}):
      # Two operations, not one jit: XLA may leave out a cast there and back.
      cast = leaf.astype(dtype).astype(jnp.float32)
      here = np.array([kind == dtype for kind in kinds]).reshape(row.stack)
      leaf = jnp.where(np.expand_dims(here, tuple(range(here.ndim, leaf.ndim))), cast, leaf)
    out[row.ours] = leaf
  return table.unflatten(out)


def check(differences: Mapping[str, float], folder) -> None:
  """Raises where a language differs by more than float32 sums can."""
  # Not `>`: a NaN passes no comparison.
  wrong = {lang: d for lang, d in differences.items() if not d <= LIMIT}
  if wrong:
    raise UnverifiedError(
      f"{folder}: transformers {_version()} computes other logits than we do: largest relative difference "
      + ", ".join(f"{lang} {d:.1e}" for lang, d in worst_first(wrong))
      + f"; up to {LIMIT:g} is rounding. The folder is kept under this name and should not be used. The "
      "checkpoint is untouched; please report this with the folder's config.json. --no-verify exports "
      "without this comparison."
    )


def describe(differences: Mapping[str, float]) -> str:
  """One line for the terminal, the worst language first."""
  (lang, worst), *_ = ordered = worst_first(differences)
  return (
    f"logits as in transformers {_version()}: largest relative difference {worst:.1e} ({lang}); "
    + " ".join(f"{lang} {d:.1e}" for lang, d in ordered)
  )


def worst_first(differences: Mapping[str, float]) -> list[tuple[str, float]]:
  """Languages by their difference; NaN is worst."""
  return sorted(
    differences.items(), key=lambda item: (0, 0) if math.isnan(item[1]) else (1, -item[1])
  )


def _open(folder):
  # Late: only this comparison needs them, and they take seconds to import.
  import torch
  import transformers

  transformers.utils.logging.disable_progress_bar()
  model, report = transformers.AutoModelForCausalLM.from_pretrained(
    # eager is the attention that knows soft caps
    folder,
    dtype=torch.float32,
    attn_implementation="eager",
    output_loading_info=True,
  )
  faults = {
    key: sorted(map(str, report[key]))
    for key in ("missing_keys", "unexpected_keys", "mismatched_keys")
  }
  if any(faults.values()):
    raise UnverifiedError(
      f"{folder}: transformers {_version()} reads it with "
      + "; ".join(
        f"{key.replace('_', ' ')}: {', '.join(names)}" for key, names in faults.items() if names
      )
      + ". The folder is kept under this name and should not be used."
    )
  return model.eval()


def _difference(ours_TV: np.ndarray, model, tokens: Sequence[int]) -> float:
  import torch

  with torch.no_grad():
    theirs_TV = model(input_ids=torch.tensor([list(tokens)])).logits[0].float().numpy()
  return float(np.abs(ours_TV - theirs_TV).max() / np.abs(theirs_TV).max())


def _version() -> str:
  import transformers

  return transformers.__version__
