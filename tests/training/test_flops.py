"""The arithmetic that counts as useful, against counts by hand."""

import pytest

from mlit_jax.model.config import DecoderConfig
from mlit_jax.training.flops import step_flops

# Per layer q 8*8, k and v 8*4 each, o 8*8; up and down 8*12 each; a gate of 8*12.
SIZES = dict(
  vocab_size=10, d_model=8, num_layers=3, num_heads=2, num_kv_heads=1, head_dim=4, d_ff=12
)
EVERY_VECTOR = dict(
  norm="layer", norm_bias=True, embed_norm=True, attn_bias=True, out_bias=True, mlp_bias=True
)


@pytest.mark.parametrize(
  "tied", [True, False]
)  # the table, or the head: multiplied once either way
@pytest.mark.parametrize("vectors", [{}, EVERY_VECTOR], ids=["few", "many"])
@pytest.mark.parametrize("gated", [True, False])
def test_weights_in_matmuls_times_tokens_and_pairs_that_attention_sees(tied, vectors, gated):
  cfg = DecoderConfig(family="llama", tied=tied, gated=gated, **vectors, **SIZES)
  weights = 3 * (64 + 32 + 32 + 64 + 96 * (3 if gated else 2)) + 10 * 8
  pairs = 3 * (5**2 + 7**2)
  assert step_flops(cfg, [5, 7]) == 6 * weights * 12 + 6 * 2 * 4 * pairs
  assert step_flops(cfg, [5, 7], 3) == 6 * (weights * 12 - 80 * 9) + 6 * 2 * 4 * pairs


def test_layers_of_several_shapes():
  """One local layer, one global, and one of each that borrows keys and values; their table is looked up."""
  cfg = DecoderConfig(
    family="gemma4_text",
    **SIZES | {"num_layers": 4},
    windows=(2, 0, 2, 0),
    layer_scalar=True,
    layer_input_dim=3,
    global_head_dim=6,
    global_kv_heads=2,
    global_keys_as_values=True,
    num_borrowing=2,
    borrowing_d_ff=20,
  )
  local, of_global = (64 + 32 + 32 + 64), (96 + 96 + 96)  # global: no v
  mlps, borrowed = 2 * 3 * 8 * 12 + 2 * 3 * 8 * 20, (64 + 64) + (96 + 96)
  inputs = 8 * 4 * 3 + 4 * 2 * 8 * 3
  weights = local + of_global + borrowed + mlps + inputs + 10 * 8
  attention = 2 * 2 * (4 * (25 - 9 + 49 - 25) + 6 * (25 + 49))
  assert step_flops(cfg, [5, 7]) == 6 * weights * 12 + 6 * attention
