import os
import subprocess
import sys

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")

import safetensors.torch
import torch

from mlit_jax.errors import UserError
from mlit_jax.model.config import from_hf
from mlit_jax.weights import hf_files, load, names, source, table
from tests import commands, families


def make(folder, variant, **kwargs):
  families.make_model(folder, variant, **kwargs)
  return from_hf(source.read_source(folder).config)


def edit_weights(folder, change):
  path = folder / hf_files.SINGLE_FILE
  tensors = safetensors.torch.load_file(path)
  change(tensors)
  safetensors.torch.save_file(tensors, path, metadata={"format": "pt"})


def refused(folder, cfg):
  with pytest.raises(UserError) as e:
    load.load_params(folder, cfg)
  assert str(folder) in str(e.value)
  return str(e.value)


def test_missing_unknown_and_misshapen_tensors_stand_in_one_message(tmp_path):
  cfg = make(tmp_path, "llama")

  def change(tensors):
    for layer in range(3):
      del tensors[f"model.layers.{layer}.mlp.up_proj.weight"]
      tensors[f"model.layers.{layer}.mlp.extra.weight"] = torch.zeros(2)
      tensors[f"model.layers.{layer}.input_layernorm.weight"] = torch.zeros(31)
    tensors["model.norm.weight"] = tensors["model.norm.weight"].to(torch.float64)

  edit_weights(tmp_path, change)
  message = refused(tmp_path, cfg)
  assert "3 missing: model.layers.0.mlp.up_proj.weight" in message
  assert "3 unknown: model.layers.0.mlp.extra.weight" in message
  assert (
    "3 of the wrong shape: model.layers." in message and "[31], config.json says [32]" in message
  )
  assert "1 of a dtype that cannot be tuned: model.norm.weight is float64" in message


def test_long_lists_are_cut_but_counted(tmp_path):
  cfg = make(tmp_path, "llama")
  edit_weights(tmp_path, lambda tensors: [tensors.pop(n) for n in list(tensors) if ".layers." in n])
  message = refused(tmp_path, cfg)
  assert "27 missing" in message and "and 23 more" in message


def test_old_rotary_buffers_are_skipped(tmp_path):
  cfg = make(tmp_path, "llama")
  before = table.flatten(load.load_params(tmp_path, cfg))
  edit_weights(
    tmp_path,
    lambda t: t.update(
      {f"model.layers.{i}.self_attn.rotary_emb.inv_freq": torch.ones(4) for i in range(3)}
    ),
  )
  after = table.flatten(load.load_params(tmp_path, cfg))
  assert all((before[name] == after[name]).all() for name in before)


def test_a_tied_head_must_be_the_embedding(tmp_path):
  cfg = make(tmp_path, "qwen3")
  before = table.flatten(load.load_params(tmp_path, cfg))
  edit_weights(tmp_path, lambda t: t.update({names.HEAD: t[names.EMBEDDING].clone()}))
  after = table.flatten(load.load_params(tmp_path, cfg))
  assert before.keys() == after.keys() and "head/kernel_DV" not in after
  edit_weights(tmp_path, lambda t: t[names.HEAD][300, 3].add_(1e-3))
  assert "differs from model.embed_tokens.weight (first in row 300)" in refused(tmp_path, cfg)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_values_become_float32_unchanged(tmp_path, dtype):
  model = families.make_model(tmp_path, "llama", dtype=dtype)
  params = load.load_params(tmp_path, from_hf(source.read_source(tmp_path).config))
  assert {a.dtype.name for a in table.flatten(params).values()} == {"float32"}
  theirs = model.state_dict()["model.layers.2.mlp.down_proj.weight"].float().numpy()
  np.testing.assert_array_equal(params["blocks"]["mlp"]["down_FD"][2], theirs.T)


# A process of its own, for the number of devices is fixed when JAX starts. 4 x 2 devices: heads and
# MLP are cut in two, the width in four; gemma's single kv head stays whole.
SHARDED = """
import pathlib, sys
import jax, numpy as np
from mlit_jax import mesh
from mlit_jax.model.config import from_hf
from mlit_jax.model.decoder import param_specs
from mlit_jax.weights import load, save, source, table
assert jax.device_count() == 8
for folder in sys.argv[1:]:
  s = source.read_source(folder)
  cfg = from_hf(s.config)
  shardings = mesh.param_shardings(param_specs(cfg), mesh.make_mesh(fsdp=4, tensor=2))
  sharded = table.flatten(load.load_params(folder, cfg, shardings))
  plain = table.flatten(load.load_params(folder, cfg))
  assert sharded.keys() == plain.keys() == table.flatten(shardings).keys()
  for name in plain:
    assert sharded[name].sharding == table.flatten(shardings)[name]
    np.testing.assert_array_equal(sharded[name], plain[name])
  q_DNH = sharded["blocks/attn/q_DNH"]
  assert q_DNH.addressable_shards[0].data.size * 8 == q_DNH.size
  out = pathlib.Path(folder + "-out")
  params = table.unflatten(sharded)
  save.save_folder(params, cfg, out, files=s.files, dtypes=s.dtypes, layout=s.layout)
  for file in s.layout.headers:
    assert (out / file).read_bytes() == (pathlib.Path(folder) / file).read_bytes(), file
print("equal")
"""


def test_import_into_shards_equals_the_plain_import(tmp_path):
  folders = []
  for variant in ("llama", "qwen3", "gemma3_text_untied", "olmo2_grouped", "apertus"):
    folders.append(str(tmp_path / variant))
    families.make_model(folders[-1], variant, dtype="bfloat16", max_shard_size="40KB")
  env = os.environ | {
    "XLA_FLAGS": commands.xla_flags(8),
    "JAX_PLATFORMS": "cpu",
    "PYTHONPATH": os.pathsep.join(p for p in sys.path if p),
  }
  done = subprocess.run(
    [sys.executable, "-c", SHARDED, *folders], env=env, capture_output=True, text=True, timeout=300
  )
  assert done.returncode == 0 and done.stdout.endswith("equal\n"), done.stderr[-4000:]
