"""Variants of BLOOM."""

VARIANTS = {
  "bloom": dict(  # 560M: a power of two of heads, tied
    model_type="bloom",
    num_attention_heads=4,
    layer_norm_epsilon=1e-5,
    tie_word_embeddings=True,
  ),
  "bloom_six_heads": dict(  # 176B has 112 heads: the slopes beyond a power of two; heads of odd width
    model_type="bloom",
    hidden_size=42,
    num_attention_heads=6,
    layer_norm_epsilon=1e-3,
    tie_word_embeddings=False,
  ),
  "bloom_residual_after_norm": dict(
    model_type="bloom",
    num_attention_heads=8,
    num_hidden_layers=2,
    apply_residual_connection_post_layernorm=True,
    layer_norm_epsilon=1e-6,
    tie_word_embeddings=True,
  ),
}
