import pickle
from pathlib import Path

import numpy as np
import pytest
from twelve import ANSWERED, LANGUAGES, SPECIALS, conversation, write_folder

from mlit_jax.data.chat import Rendered, Template
from mlit_jax.data.engines import overlapping
from mlit_jax.data.templates import bake, builtin_template
from mlit_jax.data.tokenizer import Tokenizer
from mlit_jax.errors import UserError

TEMPLATES = {
  p.stem: p.read_text(encoding="utf-8") for p in Path(__file__).parent.glob("templates/*.jinja")
}
NAMES = sorted(TEMPLATES)
ENDS = dict(
  gemma3="<end_of_turn>", generation="<|im_end|>", llama3="<|eot_id|>", mistral_v3="</s>", qwen2_5="<|im_end|>",
  qwen3="<|im_end|>", zephyr="</s>",
)  # fmt: skip
BUILTIN = {
  "chatml": ("<|im_start|>", "<|im_end|>"),
  "llama3": ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
  "gemma": ("<start_of_turn>", "<end_of_turn>"),
  "mistral": ("[INST]", "[/INST]"),
  "plain": (),
}


def template(source, **kwargs):
  return Template(source, {"bos_token": "<s>", "eos_token": "</s>"}, kwargs, added_tokens=SPECIALS)


def trained(rendered):
  return [rendered.text[start:end] for start, end in rendered.spans]


def chat(*contents, system=None):
  messages = [{"role": "system", "content": system}] if system is not None else []
  return messages + [
    {"role": ("user", "assistant")[i % 2], "content": c} for i, c in enumerate(contents)
  ]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
  root = tmp_path_factory.mktemp("chat")
  return {name: write_folder(root / name, template=TEMPLATES[name], eos="</s>") for name in NAMES}


@pytest.mark.parametrize("name", NAMES)
def test_ids_are_those_of_transformers_in_every_language(name, folders):
  transformers = pytest.importorskip("transformers")
  theirs = transformers.AutoTokenizer.from_pretrained(folders[name])
  ours = Tokenizer.load(folders[name], date="2026-02-03")
  day = {"date_string": "03 Feb 2026"} if name == "llama3" else {}
  for lang in LANGUAGES:
    for system in (False, True):
      for turns in (1, 2, 3):
        messages = conversation(lang, system=system, turns=turns)
        rendered = ours.template.render(messages)
        assert rendered.text == theirs.apply_chat_template(messages, tokenize=False, **day)
        ids = theirs.apply_chat_template(messages, return_dict=False, **day)
        assert ours.encode_text(rendered.text) == list(ids)
        assert ours.encode_with_offsets([rendered.text])[0][0].tolist() == list(ids)
        prompt = theirs.apply_chat_template(
          messages[:-1], tokenize=False, add_generation_prompt=True, **day
        )
        assert ours.template.prompt(messages[:-1]) == prompt


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("system", [False, True])
def test_the_mask_covers_the_answers_and_their_end_tokens(name, system, folders):
  tokenizer = Tokenizer.load(folders[name])
  end = ENDS[name]
  for lang in LANGUAGES:
    messages = conversation(lang, system=system, turns=3)
    rendered = tokenizer.template.render(messages)
    answers = [m["content"] for m in messages if m["role"] == "assistant"]
    if name in ("llama3", "gemma3", "mistral_v3"):
      answers = [answer.strip() for answer in answers]
    if name == "mistral_v3":  # no generation prompt: the model writes the space after [/INST]
      answers = [" " + answer for answer in answers]
    if name == "qwen3":  # after the generation prompt the model writes the empty thoughts itself
      answers[-1] = "<think>\n\n</think>\n\n" + answers[-1]
    assert trained(rendered) == [answer + end for answer in answers]

    ids, starts, ends = tokenizer.encode_with_offsets([rendered.text])[0]
    mask = overlapping(rendered.spans, starts, ends)
    runs = np.flatnonzero(np.diff(np.concatenate([[0], mask.astype(int), [0]])))
    decoded = [tokenizer.decode(ids[a:b], skip_special=False) for a, b in runs.reshape(-1, 2)]
    assert decoded == [answer + end for answer in answers]
    assert tokenizer.stop_ids[0] == ids[runs[1::2] - 1][-1]


@pytest.mark.parametrize("name", [n for n in NAMES if n != "mistral_v3"])
def test_what_is_trained_follows_the_prompt(name):
  t = template(TEMPLATES[name])
  for messages in (
    chat("q", "a"),
    chat("q", "a", "b", "c", system="s"),
    chat("q", "<think>\nx\n</think>\n\ny"),
  ):
    rendered = t.render(messages)
    start, end = rendered.spans[-1]
    assert t.prompt(messages[:-1]) == rendered.text[:start]
    assert rendered.text[end:].strip() == ""


def test_the_system_text_of_mistral_stands_in_the_last_question():
  rendered = template(TEMPLATES["mistral_v3"]).render(chat("q", "a", "b", "c", system="s"))
  assert rendered.text == "<s>[INST] q[/INST] a</s>[INST] s\n\nb[/INST] c</s>"
  assert trained(rendered) == [" a</s>", " c</s>"]


def test_thoughts_are_trained_where_they_are_rendered():
  t = template(TEMPLATES["qwen3"])
  thought = "<think>\nhm\n</think>\n\nyes"
  assert trained(t.render(chat("q", thought))) == [thought + "<|im_end|>"]
  # Earlier thoughts are dropped by the template, so the text is no substitution of contents.
  assert trained(t.render(chat("q", thought, "r", thought))) == [
    "yes<|im_end|>",
    thought + "<|im_end|>",
  ]
  quiet = template(TEMPLATES["qwen3"], enable_thinking=False)
  assert trained(quiet.render(chat("q", "yes"))) == ["yes<|im_end|>"]
  with pytest.raises(UserError, match=r"a\.jsonl:7: .*does not show which part.*enable_thinking"):
    quiet.render(chat("q", thought), place="a.jsonl:7")


def test_an_answer_that_is_also_in_the_question_is_found_where_it_is_the_answer():
  for name in NAMES:
    rendered = template(TEMPLATES[name]).render(chat("ja", "ja", "ja ja", "ja"))
    assert len(rendered.spans) == 2
    start, end = rendered.spans[1]
    assert rendered.text[end - len(ENDS[name]) - 2 : end] == "ja" + ENDS[name]
    assert rendered.text.count("ja", 0, start) >= 4


def test_contents_that_look_like_the_marks_of_the_search_do_no_harm():
  content = "(\ue0000\ue001) \ue000\ue002 (\ue0001\ue001)"
  for name in NAMES:
    rendered = template(TEMPLATES[name]).render(chat(content, content, content, content))
    assert next(t.strip() for t in trained(rendered)).endswith(content + ENDS[name])


def test_white_space_around_an_answer():
  for name in NAMES:
    rendered = template(TEMPLATES[name]).render(chat(" q\n", "\n a \n", "r", "b\n"))
    stripped = name in ("llama3", "gemma3", "mistral_v3")
    text, end = trained(rendered)[0], ENDS[name]
    assert text.lstrip() == ("a" if stripped else "a \n") + end


def test_every_answer_must_end_in_a_token_of_the_vocabulary():
  with pytest.raises(UserError, match="no special token of this vocabulary.*eos_token"):
    template("{% for m in messages %}{{ m.role + ': ' + m.content + '\n' }}{% endfor %}").render(
      chat("q", "a")
    )
  # Only the last answer ends; the header of the next turn must not pass for an end token.
  last = "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content }}{% endfor %}{{ eos_token }}"
  assert trained(template(last).render(chat("q", "a"))) == ["a</s>"]
  with pytest.raises(UserError, match="ends an answer with '<|im_start|>user"):
    template(last).render(chat("q", "a", "b", "c"))


def test_end_tokens_may_differ_between_earlier_answers_and_the_last():
  harmony = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '<s>' + m.content + "
    "('</s>' if loop.last and m.role == 'assistant' else '<|im_end|>') }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant<s>' }}{% endif %}"
  )
  t = template(harmony)
  assert trained(t.render(chat("q", "a", "b", "c"))) == ["a<|im_end|>", "c</s>"]
  assert t.end_of_turn == "</s>"


def test_generation_blocks_are_the_authors_word():
  source = "{% for m in messages %}{{ m.role }}{% generation %}{{ m.content }}{% endgeneration %}{{ '</s>\n' }}{% endfor %}"
  assert trained(template(source).render(chat("q", "a"))) == ["q</s>", "a</s>"]
  with pytest.raises(UserError, match="mark no answer that ends with an end token"):
    template("{% generation %}{% endgeneration %}{{ messages[1].content }}").render(chat("q", "a"))
  with pytest.raises(UserError, match="mark no answer"):
    template(
      "{% for m in messages %}{% generation %}{{ m.content }}{% endgeneration %}{% endfor %}"
    ).render(chat("q", "a"))


def test_a_template_that_drops_or_repeats_an_answer_is_refused():
  for source in (
    "{{ messages[0].content + '</s>' }}",
    "{{ messages[0].content + messages[1].content + messages[1].content + '</s>' }}",
    "{% for m in messages %}{{ m.content + m.content }}{% endfor %}{{ eos_token }}",
    "{% for m in messages if loop.first or m.role == 'user' %}{{ m.content }}{% endfor %}{{ eos_token }}",
  ):
    with pytest.raises(UserError, match="x:1: "):
      template(source).render(chat("q", "a", "r", "b"), place="x:1")


def test_a_template_that_rewrites_an_answer_trains_what_it_writes():
  shout = "{% for m in messages %}{{ '<s>' + (m.content | upper) + eos_token }}{% endfor %}"
  assert trained(template(shout).render(chat("q", "a", "r", "b"))) == ["A</s>", "B</s>"]


def test_errors_of_the_template_name_the_row():
  with pytest.raises(UserError, match="x:3: the chat template refuses .*must alternate"):
    template(TEMPLATES["gemma3"]).render(
      [
        {"role": "user", "content": "a"},
        {"role": "user", "content": "b"},
        {"role": "assistant", "content": "c"},
      ],
      place="x:3",
    )
  with pytest.raises(UserError, match="broken at line 1"):
    template("{% for %}").render(chat("q", "a"))
  with pytest.raises(UserError, match="TypeError"):
    template("{{ messages[0].content + 1 }}").render(chat("q", "a"))
  with pytest.raises(UserError, match="does not end with an answer"):
    template(TEMPLATES["qwen3"]).render(chat("q", "a", "b"))
  with pytest.raises(UserError, match="2026-13-01"):
    Template("x", date="2026-13-01")


def test_templates_are_run_in_a_sandbox():
  with pytest.raises(UserError, match="unsafe|refuses"):
    template("{{ messages.__class__.__mro__[1].__subclasses__() }}").render(chat("q", "a"))
  with pytest.raises(UserError, match="refuses"):
    template("{{ messages.append(1) }}").render(chat("q", "a"))


def test_the_date_is_the_config_s():
  assert "Today Date: 03 Feb 2026" in Template(
    TEMPLATES["llama3"], {"bos_token": "<s>"}, {}, "2026-02-03"
  ).prompt(chat("q"))
  assert "Today Date: 26 Jul 2024" in Template(TEMPLATES["llama3"], {"bos_token": "<s>"}).prompt(
    chat("q")
  )


def trained_of(rendered, starts, ends):
  return overlapping(rendered.spans, np.array(starts), np.array(ends))


def test_the_worked_example_of_trained_tokens():
  rendered = Rendered("<u>Hola<a>Bonjour<e>", ((10, 20),))
  starts, ends = [0, 3, 5, 7, 10, 13, 17], [3, 5, 7, 10, 13, 17, 20]
  assert trained_of(rendered, starts, ends).astype(int).tolist() == [0, 0, 0, 0, 1, 1, 1]
  # A token that reaches into a span is trained, an empty one where the span begins or within.
  assert trained_of(Rendered("abcdef", ((2, 4),)), [0, 1, 2, 3, 4], [1, 3, 2, 5, 6]).tolist() == [
    False, True, True, True, False,
  ]  # fmt: skip
  assert trained_of(Rendered("abcd", ((1, 2), (3, 4))), [0, 1, 2, 3], [1, 2, 3, 4]).tolist() == [
    False, True, False, True,
  ]  # fmt: skip


@pytest.mark.parametrize("name", BUILTIN)
@pytest.mark.parametrize("add_bos", [False, True])
def test_built_in_templates_add_nothing_but_markers(name, add_bos):
  t = template(builtin_template(set(BUILTIN[name]), eos="</s>", add_bos=add_bos))
  for lang in LANGUAGES:
    messages = conversation(lang, system=True, turns=2)
    rendered = t.render(messages)
    assert rendered.text.count("<s>") == add_bos
    rest = rendered.text
    for message in messages:
      assert message["content"] in rest
    for message in sorted(messages, key=lambda m: -len(m["content"])):
      rest = rest.replace(message["content"], "")
    for marker in (
      *SPECIALS,
      "<|user|>",
      "<|assistant|>",
      "<|system|>",
      "user",
      "assistant",
      "system",
      "model",
    ):
      rest = rest.replace(marker, "")
    assert rest.strip() == ""
    assert trained(rendered) == [
      m["content"] + t.end_of_turn for m in messages if m["role"] == "assistant"
    ]
    assert t.prompt(messages[:-1]) == rendered.text[: rendered.spans[-1][0]]


def test_a_vocabulary_without_any_end_token_is_refused():
  with pytest.raises(UserError, match="Name eos_token"):
    builtin_template(set(), eos=None, add_bos=False)


def test_baked_arguments_are_defaults_that_may_be_overruled():
  source = bake(
    TEMPLATES["qwen3"], {"enable_thinking": False, "names": ["a'b\n", None, 1.5, {"k": True}]}
  )
  question = chat("q")
  assert template(source).prompt(question) == template(
    TEMPLATES["qwen3"], enable_thinking=False
  ).prompt(question)
  assert template(source, enable_thinking=True).prompt(question) == template(
    TEMPLATES["qwen3"]
  ).prompt(question)
  shown = bake(
    "{{ names[0] }}|{{ names[1] is none }}|{{ names[2] }}|{{ names[3].k }}",
    {"names": ["a'b\n", None, 1.5, {"k": True}]},
  )
  assert template(shown).prompt(question) == "a'b\n|True|1.5|True"


def test_a_template_travels_to_another_process():
  t = template(TEMPLATES["qwen3"])
  before = t.render(chat("q", "a"))
  assert pickle.loads(pickle.dumps(t)).render(chat("q", "a")) == before
  assert ANSWERED["en"] in t.render(conversation("en")).text
