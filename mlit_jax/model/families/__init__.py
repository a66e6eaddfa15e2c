"""What a Hugging Face config.json of each family means: keyword arguments of DecoderConfig.

A key that would change what the model computes is honoured here or refused; none is passed over.
"""

from mlit_jax.model.families import (
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

# model_type -> reader of the parsed config.json
FAMILIES = {
  "apertus": apertus.apertus,
  "bloom": bloom.bloom,
  "cohere": cohere.cohere,
  "cohere2": cohere.cohere2,
  "gemma2": gemma.gemma2,
  "gemma3": gemma.gemma3,
  "gemma3_text": gemma.gemma3_text,
  "gemma4": gemma4.gemma4,
  "gemma4_text": gemma4.gemma4_text,
  "granite": llama.granite,
  "llama": llama.llama,
  "ministral3": mistral.ministral3,
  "mistral": mistral.mistral,
  "mixtral": mixtral.mixtral,
  "olmo2": olmo.olmo2,
  "olmo3": olmo.olmo3,
  "phi3": phi.phi3,
  "qwen2": qwen.qwen2,
  "qwen3": qwen.qwen3,
  "qwen3_moe": qwen.qwen3_moe,
  "smollm3": llama.smollm3,
}
