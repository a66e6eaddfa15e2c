"""What varies between the tiny models of tests/families.py: three or more per family."""

from tests.variants import bloom, gemma, llama, mistral, qwen

VARIANTS = {
  **bloom.VARIANTS,
  **llama.VARIANTS,
  **mistral.VARIANTS,
  **qwen.VARIANTS,
  **gemma.VARIANTS,
}
