"""A step of a run read on any devices, without the run's config, to see whether it is whole."""

from __future__ import annotations

from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from mlit_jax.training import safety
from mlit_jax.training.checkpoint import OPTIMIZER, PARAMS, read_step_meta
from mlit_jax.training.digest import differing, digests


def verify_step(folder: Path, step: int) -> str:
  """What was found, in words; Damaged if the step is not as it was saved.

  Parameters and optimizer state are read one after the other, spread over the devices.
  """
  path = Path(folder).resolve() / str(step)
  meta = read_step_meta(folder, step)
  found = {}
  for item in (PARAMS, OPTIMIZER):
    try:
      tree = _read(path / item)
    except (jax.errors.JaxRuntimeError, MemoryError):
      raise  # of this machine, not of the files
    except Exception as e:
      raise safety.Damaged(f"{path / item} cannot be read: {safety.in_one_line(e)}") from e
    found |= digests({PARAMS: tree} if item == PARAMS else tree)
  if meta.get("step") != step:
    raise safety.Damaged(f"{path} is of step {meta.get('step')}")
  if safety.DIGEST not in meta:
    return (
      f"{len(found)} arrays can be read; saved without a digest, so that they cannot be verified"
    )
  if wrong := differing(meta[safety.DIGEST], found):
    more = f" and {len(wrong) - 3} more" if len(wrong) > 3 else ""
    raise safety.Damaged(f"{', '.join(wrong[:3])}{more}")
  return f"{len(found)} arrays are as they were saved"


def _read(item: Path):
  """An item with the shapes and dtypes that it says it has."""
  handler = ocp.StandardCheckpointHandler()
  known = handler.metadata(item)
  shapes = getattr(known, "tree", known)
  mesh = Mesh(np.asarray(jax.devices()), ("all",))
  abstract = jax.tree.map(lambda a: _anywhere(a, mesh), shapes)
  return handler.restore(item, args=ocp.args.StandardRestore(abstract))


def _anywhere(array, mesh: Mesh) -> jax.ShapeDtypeStruct:
  """Split along the first axis that the devices divide; whole on each if there is none."""
  fits = [i for i, size in enumerate(array.shape) if size and size % mesh.size == 0]
  spec = P(*[None] * fits[0], "all") if fits else P()
  return jax.ShapeDtypeStruct(array.shape, array.dtype, sharding=NamedSharding(mesh, spec))
