"""What varies between the tiny models of tests/families.py: three or more per family."""

from tests.variants import (
  apertus,
  bloom,
  cohere,
  gemma,
  gemma4,
  llama,
  mistral,
  mixtral,
  olmo,
  phi,
  qwen,
)

VARIANTS = {
  **bloom.VARIANTS,
  **llama.VARIANTS,
  **mistral.VARIANTS,
  **mixtral.VARIANTS,
  **qwen.VARIANTS,
  **gemma.VARIANTS,
  **gemma4.VARIANTS,
  **cohere.VARIANTS,
  **phi.VARIANTS,
  **olmo.VARIANTS,
  **apertus.VARIANTS,
}
