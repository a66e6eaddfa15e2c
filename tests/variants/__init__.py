"""What varies between the tiny models of tests/families.py: three or more per family."""

from tests.variants import bloom, cohere, gemma, llama, mistral, phi, qwen

VARIANTS = {
  **bloom.VARIANTS,
  **llama.VARIANTS,
  **mistral.VARIANTS,
  **qwen.VARIANTS,
  **gemma.VARIANTS,
  **cohere.VARIANTS,
  **phi.VARIANTS,
}
