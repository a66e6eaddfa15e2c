"""What varies between the tiny models of tests/families.py: three or more per family."""

from tests.variants import gemma, llama, mistral, mixtral, qwen

VARIANTS = {
  **llama.VARIANTS,
  **mistral.VARIANTS,
  **mixtral.VARIANTS,
  **qwen.VARIANTS,
  **gemma.VARIANTS,
}
