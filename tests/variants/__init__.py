"""What varies between the tiny models of tests/families.py: three or more per family."""

from tests.variants import apertus, gemma, llama, mistral, olmo, qwen

VARIANTS = {
  **llama.VARIANTS,
  **mistral.VARIANTS,
  **qwen.VARIANTS,
  **gemma.VARIANTS,
  **olmo.VARIANTS,
  **apertus.VARIANTS,
}
