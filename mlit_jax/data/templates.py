"""Chat templates for vocabularies without one, and templates with arguments filled in."""

import re

from mlit_jax.errors import UserError


def builtin_template(
  tokens: set[str], *, eos: str | None, add_bos: bool, plain: str = "<|{role}|>\n"
) -> str:
  """The template of the family whose markers the vocabulary has, with no text of its own.

  `plain` is the marker for the rest, ordinary text that the vocabulary can spell.
  """
  bos = "{{- bos_token }}\n" if add_bos else ""
  if {"<|im_start|>", "<|im_end|>"} <= tokens:
    return bos + _turn_template("'<|im_start|>' + role + '\\n'", "'<|im_end|>\\n'")
  if {"<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"} <= tokens:
    return bos + _turn_template(
      "'<|start_header_id|>' + role + '<|end_header_id|>\\n\\n'", "'<|eot_id|>'"
    )
  if {"<start_of_turn>", "<end_of_turn>"} <= tokens:
    return bos + _GEMMA
  if eos is None:
    raise UserError(
      "the tokenizer has no chat template, no markers of a known family and no eos token, so no "
      "answer could end. "
      "Name eos_token in tokenizer_config.json, or give a template in tokenizer.chat_template."
    )
  if {"[INST]", "[/INST]"} <= tokens:
    return bos + _MISTRAL
  before, after = plain.split("{role}")
  return bos + _turn_template(
    f"{_jinja(before)} + role + {_jinja(after)}",
    "(eos_token if role == 'assistant' else '') + '\\n'",
  )


def bake(source: str, kwargs: dict) -> str:
  """The template with `kwargs` as its defaults, so that who serves the model need not know them.

  Those that the template never mentions change nothing, and are left out.
  """
  lines = (
    f"{{%- if {k} is not defined %}}{{%- set {k} = {_jinja(v)} %}}{{%- endif %}}\n"
    for k, v in sorted(kwargs.items())
    if re.search(rf"\b{re.escape(k)}\b", source)
  )
  return "".join(lines) + source


# --- built-in templates


def _turn_template(header: str, end: str) -> str:
  return (
    "{%- for message in messages %}\n"
    "{%- set role = message['role'] %}\n"
    f"{{{{- {header} + message['content'] + {end} }}}}\n"
    "{%- endfor %}\n"
    "{%- if add_generation_prompt %}\n"
    "{%- set role = 'assistant' %}\n"
    f"{{{{- {header} }}}}\n"
    "{%- endif %}\n"
  )


# These two have no turn for the system: its text goes before the first question.
_FIRST = (
  "{%- set has_system = messages[0]['role'] == 'system' %}\n"
  "{%- set first = messages[0]['content'] + '\\n\\n' if has_system else '' %}\n"
  "{%- set turns = messages[1:] if has_system else messages %}\n"
  "{%- for message in turns %}\n"
)
_GEMMA = (
  _FIRST
  + "{%- set role = 'model' if message['role'] == 'assistant' else message['role'] %}\n"
  + "{{- '<start_of_turn>' + role + '\\n' + (first if loop.first else '') }}\n"
  + "{{- message['content'] + '<end_of_turn>\\n' }}\n"
  + "{%- endfor %}\n"
  + "{%- if add_generation_prompt %}\n{{- '<start_of_turn>model\\n' }}\n{%- endif %}\n"
)
_MISTRAL = (
  _FIRST
  + "{%- if message['role'] == 'user' %}\n"
  + "{{- '[INST]' + (first if loop.first else '') + message['content'] + '[/INST]' }}\n"
  + "{%- else %}\n{{- message['content'] + eos_token }}\n{%- endif %}\n{%- endfor %}\n"
)


def _jinja(value) -> str:
  """A value as a Jinja literal."""
  if value is None:
    return "none"
  if isinstance(value, bool):
    return "true" if value else "false"
  if isinstance(value, (list, tuple)):
    return "[" + ", ".join(_jinja(item) for item in value) + "]"
  if isinstance(value, dict):
    return "{" + ", ".join(f"{_jinja(k)}: {_jinja(v)}" for k, v in value.items()) + "}"
  if isinstance(value, (int, float)):
    return repr(value)
  return "'" + str(value).replace("\\", "\\\\").replace("'", "\\'").replace("\n", "\\n") + "'"
