"""What varies between the tiny models of tests/families.py: three or more per family."""

from tests.variants import apertus, bloom, cohere, gemma, llama, mistral, mixtral, olmo, phi, qwen

VARIANTS = {
  **bloom.VARIANTS,
  **llama.VARIANTS,
  **mistral.VARIANTS,
  **mixtral.VARIANTS,
  **qwen.VARIANTS,
  **gemma.VARIANTS,
  **cohere.VARIANTS,
  **phi.VARIANTS,
  **olmo.VARIANTS,
  **apertus.VARIANTS,
}
