"""What only BLOOM has: two spellings of every name, fused projections, slopes of any number of heads."""

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")

import safetensors.torch
import torch

from mlit_jax.attention import dense
from mlit_jax.model.config import from_hf
from mlit_jax.weights import hf_files, load, save, source, table
from tests import families
from tests.families import assert_same_logits, our_logits

TOKENS_BT = np.random.default_rng(0).integers(0, 261, (2, 60), np.int32)


@pytest.mark.parametrize("num_heads", [1, 2, 3, 12, 16, 25, 32, 40, 112])
def test_slopes_are_those_of_transformers(num_heads):
  from transformers.models.bloom.modeling_bloom import build_alibi_tensor

  theirs = build_alibi_tensor(torch.ones(1, 2, dtype=torch.int64), num_heads, torch.float32)
  np.testing.assert_allclose(dense.alibi_slopes(num_heads), theirs[:, 0, 1], rtol=1e-6)


def without_beginning(folder) -> None:
  """Spells the folder's names as the hub's folders do: h.0..., not transformer.h.0..."""
  path = folder / hf_files.SINGLE_FILE
  tensors = safetensors.torch.load_file(path)
  spelled = {name.removeprefix("transformer."): t for name, t in tensors.items()}
  assert set(spelled) != set(tensors)
  safetensors.torch.save_file(spelled, path, metadata={"format": "pt"})


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("variant", ["bloom", "bloom_six_heads"])  # tied, and with a head
def test_names_without_a_beginning_come_out_as_they_went_in(tmp_path, variant, dtype):
  model = families.make_model(tmp_path / "in", variant, dtype=dtype)
  without_beginning(tmp_path / "in")
  s = source.read_source(tmp_path / "in")
  assert {"word_embeddings.weight", "h.0.mlp.dense_h_to_4h.bias"} <= set(s.dtypes)
  cfg = from_hf(s.config)
  params = load.load_params(tmp_path / "in", cfg)
  for name in ("same", "again"):
    layout = s.layout if name == "same" else None  # without it the dtypes alone tell the spelling
    out = save.save_folder(
      params, cfg, tmp_path / name, files=s.files, dtypes=s.dtypes, layout=layout
    )
    assert set(hf_files.read_layout(out).tensors()) == set(s.dtypes)
  assert families.bytes_of(tmp_path / "same") == families.bytes_of(tmp_path / "in")
  theirs_BTV = families.hf_logits(families.load_model(tmp_path / "in"), TOKENS_BT)
  np.testing.assert_array_equal(theirs_BTV, families.hf_logits(model.float(), TOKENS_BT))
  assert_same_logits(our_logits(params, cfg, TOKENS_BT), theirs_BTV)


def test_a_tuned_export_in_the_other_spelling_is_read_by_transformers(tmp_path):
  families.make_model(tmp_path / "in", "bloom")
  without_beginning(tmp_path / "in")
  s = source.read_source(tmp_path / "in")
  cfg = from_hf(s.config)
  tuned = families.tuned(load.load_params(tmp_path / "in", cfg))
  save.save_folder(tuned, cfg, tmp_path / "out", files=s.files, dtypes=s.dtypes, layout=s.layout)
  theirs_BTV = families.hf_logits(families.load_model(tmp_path / "out"), TOKENS_BT)
  assert_same_logits(our_logits(tuned, cfg, TOKENS_BT), theirs_BTV)


def test_a_head_is_cut_out_of_the_fused_projection():
  """Worked: with heads of 7, row 25 is head 1 (25 = 21 + 4), its query's element 4."""
  cfg = families.config_of("bloom_six_heads")
  fused = np.arange(126 * 42).reshape(126, 42)
  found = {}
  for row in table.rows(cfg):
    if "query_key_value.weight" in row.theirs:
      found[row.ours] = table.read_slice(fused, row, [slice(None)] * 3)
  assert found["blocks/attn/q_DNH"][3, 1, 4] == fused[25, 3]
  assert found["blocks/attn/k_DKH"][3, 1, 4] == fused[25 + 7, 3]
  assert found["blocks/attn/v_DKH"][3, 1, 4] == fused[25 + 14, 3]
