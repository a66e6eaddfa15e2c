"""What a Hugging Face config.json of each family means: keyword arguments of DecoderConfig.

A key that would change what the model computes is honoured here or refused; none is passed over.
"""

from mlit_jax.model.families import gemma, llama, mistral, mixtral, qwen

# model_type -> reader of the parsed config.json
FAMILIES = {
  "gemma2": gemma.gemma2,
  "gemma3_text": gemma.gemma3_text,
  "granite": llama.granite,
  "llama": llama.llama,
  "ministral3": mistral.ministral3,
  "mistral": mistral.mistral,
  "mixtral": mixtral.mixtral,
  "qwen2": qwen.qwen2,
  "qwen3": qwen.qwen3,
  "qwen3_moe": qwen.qwen3_moe,
  "smollm3": llama.smollm3,
}
