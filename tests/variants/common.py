"""What the variants of several families share."""

VOCAB_SIZE = (
  320  # the tokenizer of families.py has fewer: the rest is padding, as published models have
)

# Sizes differ from each other wherever they can, so that a mixed-up axis changes a shape.
SIZES = {
  "vocab_size": VOCAB_SIZE,
  "hidden_size": 32,
  "intermediate_size": 48,
  "num_hidden_layers": 3,
  "max_position_embeddings": 512,
}

PLAIN_ROPE = {"rope_type": "default", "rope_theta": 10_000.0}
