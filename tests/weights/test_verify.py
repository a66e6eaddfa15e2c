"""Exported folders in transformers beside our own logits."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mlit_jax import mesh as meshes
from mlit_jax.model.config import from_hf
from mlit_jax.model.decoder import param_specs
from mlit_jax.weights import load, names, save, source, table, verify
from tests import families

ROWS = {"en": list(range(3, 40)), "sw": [7, 250, 9, 11], "zh": list(range(200, 120, -1))}


@pytest.fixture
def opened(tmp_path):
  """(source, config, parameters on four devices, mesh) of a random model in float32."""
  pytest.importorskip("torch")
  pytest.importorskip("transformers")
  families.make_model(tmp_path / "base", "gemma3_text")
  found = source.read_source(tmp_path / "base")
  cfg = from_hf(found.config)
  mesh = meshes.make_mesh(1, 2, 2, devices=jax.devices()[:4])
  shardings = meshes.param_shardings(param_specs(cfg), mesh)
  return found, cfg, load.load_params(found.folder, cfg, shardings), mesh


def test_an_export_computes_what_we_do_and_rounds_as_we_do(tmp_path, opened):
  found, cfg, params, mesh = opened
  for dtype in ("float32", "bfloat16"):
    out = save.save_folder(
      params, cfg, tmp_path / dtype, files=save.with_dtype(found.files, dtype), dtypes=dtype
    )
    differences = verify.compare_logits(out, params, cfg, dtype, ROWS, mesh)
    assert differences.keys() == ROWS.keys()
    assert max(differences.values()) < 1e-4
    verify.check(differences, out)
  # Without our rounding the same folder would not pass: the comparison sees one bfloat16.
  unrounded = verify.compare_logits(out, params, cfg, "float32", ROWS, mesh)
  assert min(unrounded.values()) > verify.LIMIT


def test_one_changed_tensor_is_seen(tmp_path, opened):
  found, cfg, params, mesh = opened
  out = save.save_folder(params, cfg, tmp_path / "out", files=found.files, dtypes="float32")
  changed = table.flatten(params)
  changed["blocks/mlp/down_FD"] = changed["blocks/mlp/down_FD"].at[2, :9].multiply(1.5)
  differences = verify.compare_logits(out, table.unflatten(changed), cfg, "float32", ROWS, mesh)
  with pytest.raises(verify.UnverifiedError, match="other logits.*(en|sw|zh) "):
    verify.check(differences, out)


def test_a_tensor_that_transformers_does_not_know_is_seen(tmp_path, opened):
  found, cfg, params, mesh = opened
  out = save.save_folder(params, cfg, tmp_path / "out", files=found.files, dtypes="float32")
  families.edit_config(out, num_hidden_layers=6, layer_types=None)
  with pytest.raises(verify.UnverifiedError, match="unexpected keys: model.layers.6"):
    verify.compare_logits(out, params, cfg, "float32", ROWS, mesh)


def test_each_layer_is_rounded_as_its_own_tensor(opened):
  _, cfg, params, _ = opened
  dtypes = dict.fromkeys(table.tensors_of(cfg), "float32")
  dtypes |= {"model.layers.1.mlp.down_proj.weight": "bfloat16", names.EMBEDDING: "float16"}
  before, after = table.flatten(params), table.flatten(verify.rounded(params, cfg, dtypes))
  changed = {name for name in before if (np.asarray(before[name]) != np.asarray(after[name])).any()}
  assert changed == {"blocks/mlp/down_FD", table.rows(cfg)[0].ours}
  down, rounded = before["blocks/mlp/down_FD"], after["blocks/mlp/down_FD"]
  np.testing.assert_array_equal(rounded[1], down[1].astype(jnp.bfloat16).astype(jnp.float32))
  np.testing.assert_array_equal(rounded[0], down[0])


def test_nan_is_a_difference_and_the_worst_one():
  differences = {"en": 0.1, "sw": float("nan"), "zh": 1e-7}
  assert [lang for lang, _ in verify.worst_first(differences)] == ["sw", "en", "zh"]
  pytest.importorskip("transformers")
  with pytest.raises(verify.UnverifiedError, match="sw nan"):
    verify.check(differences, "out")
