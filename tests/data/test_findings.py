"""What is said of rows before a run: each warning on rows made for it, and silence on good ones."""

import hashlib

import pytest
from twelve import ANSWERED, ASKED, SPECIALS, write_folder

from mlit_jax.data.encode import encode_conversations
from mlit_jax.data.figures import measure
from mlit_jax.data.findings import findings
from mlit_jax.data.ledger import make_ledger
from mlit_jax.data.plan import make_plan
from mlit_jax.data.rows import Conversation, Message
from mlit_jax.data.tokenizer import Tokenizer

CHATML = (
  "{{ bos_token }}{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
  "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
DEFAULT_SYSTEM = "{% if messages[0]['role'] != 'system' %}<|im_start|>system\nYou are a helpful assistant made by us.<|im_end|>\n{% endif %}"

WITH_DEFAULT = CHATML.replace("{{ bos_token }}", "{{ bos_token }}" + DEFAULT_SYSTEM)


def talk(lang, i, question, answer, system=None, group=None):
  messages = [Message("system", system)] if system else []
  messages += [Message("user", question), Message("assistant", answer)]
  text = f"{lang}{i}{system}{question}{answer}"
  example_id = hashlib.md5(text.encode()).hexdigest()
  return Conversation(tuple(messages), lang, example_id, group, "rows", f"rows:{i + 1}")


def rows_of(*languages, number=20, **options):
  return [
    talk(lang, i, f"{ASKED[lang]} {i}", f"{i} {ANSWERED[lang]}", group=f"g{i}", **options)
    for lang in languages
    for i in range(number)
  ]


def told(folder, rows, *, template=CHATML, max_length=512, over_long="drop", tokenizer=None):
  """The findings on these rows, and the figures."""
  tokenizer = Tokenizer.load(
    str(write_folder(folder / "t", template=template, tokenizer=tokenizer))
  )
  encoded = encode_conversations(rows, tokenizer, max_length=max_length, over_long=over_long)
  languages = {encoded.languages[i]: 0 for i in encoded.language}
  for i in encoded.language:
    languages[encoded.languages[i]] += 1
  plan = make_plan(
    encoded, {"counts": languages}, seed=0, rows_per_step=4, max_length=max_length, epochs=1
  )
  ledger = make_ledger(encoded, plan, mixture={}, seed=0, made_from={})
  figures = measure(encoded, plan, tokenizer)
  return findings(encoded, figures, ledger, tokenizer), figures


def test_good_rows_say_nothing(tmp_path):
  lines, figures = told(tmp_path, rows_of("en", "sw", "ru"))
  assert lines == []
  assert figures.reference == "en" and figures.languages["en"].premium is None


def test_a_default_system_text_of_the_template_is_found_and_counted(tmp_path):
  own = rows_of("sw", system="Jibu kwa Kiswahili.")
  lines, _ = told(tmp_path, rows_of("en", "ru") + own, template=WITH_DEFAULT)
  (line,) = lines
  assert "67% of the rows (en, ru)" in line and "You are a helpful assistant made by us." in line
  assert "tokenizer.chat_template" in line


def test_rows_that_bring_their_own_system_text_do_not_have_the_template_s(tmp_path):
  rows = rows_of("en", system="Answer in English.") + rows_of("sw", system="Jibu kwa Kiswahili.")
  assert told(tmp_path, rows, template=WITH_DEFAULT)[0] == []


def test_the_same_system_text_in_every_row_is_found_whoever_wrote_it(tmp_path):
  rows = rows_of("en", "ru", system="You are a chatbot. Be brief.")
  (line,) = told(tmp_path, rows)[0]
  assert "every row begins with the same text" in line and "You are a chatbot. Be brief." in line


def test_a_template_with_the_date_is_found(tmp_path):
  dated = CHATML.replace(
    "<|im_start|>{{ m['role'] }}", "<|im_start|>{{ m['role'] }} {{ strftime_now('%d') }}"
  )
  (line,) = told(tmp_path, rows_of("en", "ru"), template=dated)[0]
  assert "prints the date" in line and "2024-07-26" in line


def test_a_vocabulary_that_spells_a_language_byte_by_byte_is_found(tmp_path):
  rows = rows_of("en", "hi") + [
    talk("am", i, f"ሰላም እንዴት ነህ {i}", f"{i} ደህና ነኝ አመሰግናለሁ") for i in range(20)
  ]
  lines, figures = told(tmp_path, rows)
  (line,) = lines
  assert "am " in line and "byte by byte" in line and "hi" not in line.split(" byte by byte")[0]
  # ሰ is 3 bytes, none of which any merge has joined; spaces and digits are whole.
  assert figures.languages["am"].partial > 0.7
  assert figures.languages["en"].partial < 0.1  # its emoji


def test_a_vocabulary_without_a_script_is_found(tmp_path):
  import tokenizers
  from tokenizers import models, pre_tokenizers, trainers

  small = tokenizers.Tokenizer(models.BPE(unk_token="<unk>"))
  small.pre_tokenizer = pre_tokenizers.Metaspace()
  texts = [ASKED["en"], ANSWERED["en"], "user assistant system 0123456789 ?\n"] * 3
  small.train_from_iterator(
    texts,
    trainers.BpeTrainer(vocab_size=300, special_tokens=[*SPECIALS, "<unk>"], show_progress=False),
  )
  rows = rows_of("en", "ru")
  tokenizer = Tokenizer.load(
    str(write_folder(tmp_path / "u", template=CHATML, tokenizer=small, unk_token="<unk>"))
  )
  encoded = encode_conversations(rows, tokenizer, max_length=512)
  plan = make_plan(
    encoded, {"counts": {"en": 20, "ru": 20}}, seed=0, rows_per_step=4, max_length=512, epochs=1
  )
  figures = measure(encoded, plan, tokenizer)
  ledger = make_ledger(encoded, plan, mixture={}, seed=0, made_from={})
  lines = findings(encoded, figures, ledger, tokenizer)
  assert any("cannot write ru" in line for line in lines), lines
  assert figures.languages["ru"].unknown > 0.3


@pytest.mark.parametrize(
  "beginning, says", [("{{ bos_token }}{{ bos_token }}", "twice"), ("", "do not begin with <s>")]
)
def test_two_beginnings_and_none_are_found(tmp_path, beginning, says):
  template = CHATML.replace("{{ bos_token }}", beginning)
  (line,) = told(tmp_path, rows_of("en", "ru"), template=template)[0]
  assert says in line and "en 100%" in line


def test_answers_without_their_end_are_found(tmp_path):
  long = [
    talk("ru", 100 + i, f"{ASKED['ru']} {i}", f"{i} " + ANSWERED["ru"] * 20) for i in range(5)
  ]
  rows = rows_of("en", "ru") + long
  lines, _ = told(tmp_path, rows, max_length=120, over_long="truncate_answer")
  assert len(lines) == 2
  assert "end of the answer is not trained in ru 20%" in lines[0]
  assert "batch.max_length (120)" in lines[1] and "ru 20%" in lines[1]
  lines, _ = told(tmp_path, rows, max_length=120)
  assert len(lines) == 1 and "ru 20%" in lines[0]  # dropped: 5 of 25


def test_figures_by_hand(tmp_path):
  rows = rows_of("en", "sw", number=20)
  _, figures = told(tmp_path, rows)
  tokenizer = Tokenizer.load(str(tmp_path / "t"))
  lengths = {
    lang: [
      len(tokenizer.encode_text(tokenizer.template.render(c.messages).text))
      for c in rows
      if c.lang == lang
    ]
    for lang in ("en", "sw")
  }
  for lang, of in figures.languages.items():
    mine = sorted(lengths[lang])
    assert of.lengths.longest == mine[-1] and of.lengths.median in mine[9:11]
    by_bin = [sum(a < n <= b for n in mine) for a, b in zip(figures.edges, figures.edges[1:])]
    assert list(of.lengths.histogram) == by_bin
  assert figures.languages["sw"].premium == pytest.approx(sum(lengths["sw"]) / sum(lengths["en"]))
  assert figures.edges == (0, 16, 32, 64, 128, 256, 512)
