from pathlib import Path

import jax
import jax.numpy as jnp

import mlit_jax
from mlit_jax.data.evalset import make_eval_set
from mlit_jax.data.rows import read_sources
from mlit_jax.data.tokenizer import Tokenizer
from mlit_jax.evals.evaluator import Evaluator, _in_turn
from mlit_jax.mesh import make_mesh
from mlit_jax.model import decoder
from mlit_jax.model.config import DecoderConfig

ASSETS = Path(mlit_jax.__file__).parent / "assets"
LANGUAGES = ("ar", "en", "fi", "hi", "sw", "zh")


def test_a_sampled_answer_does_not_depend_on_which_other_rows_are_evaluated():
  tokenizer = Tokenizer.load(str(ASSETS / "tokenizer12"))
  rows = read_sources(
    [str(ASSETS / "instructions12" / "eval" / f"{lang}.jsonl") for lang in ("sw", "zh")]
  ).conversations
  cfg = DecoderConfig(
    family="llama", vocab_size=tokenizer.vocab_size, d_model=16, num_layers=2, num_heads=2,
    num_kv_heads=1, head_dim=8, d_ff=32, tied=False,
  )  # fmt: skip
  params = decoder.init_params(cfg, jax.random.key(0))
  mesh = make_mesh(1, 1, 1, devices=jax.devices()[:1])

  def responses(rows, generate_rows, name):
    made = make_eval_set(name, rows, tokenizer, max_length=96, generate_rows=generate_rows)
    evaluator = Evaluator(
      cfg, mesh, tokenizer, [made], rows=2, max_new_tokens=5, temperature=1.0, seed=3,
      dtype=jnp.float32,
    )  # fmt: skip
    _, records = evaluator.run(params)
    return {(r.lang, r.example_id): r.response for r in records if r.response is not None}

  all_rows = responses(rows, 3, "all")
  assert len(all_rows) == 6 and len(set(all_rows.values())) == 6
  few = responses([c for c in rows if c.lang == "zh"][::-1], 2, "few")
  assert len(few) == 2 and few.items() <= all_rows.items()


def test_when_time_is_up_the_same_prompts_of_every_language_are_left_out():
  tokenizer = Tokenizer.load(str(ASSETS / "tokenizer12"))
  folder = ASSETS / "instructions12" / "eval"
  rows = read_sources([str(folder / f"{lang}.jsonl") for lang in LANGUAGES]).conversations
  cfg = DecoderConfig(
    family="llama", vocab_size=tokenizer.vocab_size, d_model=16, num_layers=1, num_heads=2,
    num_kv_heads=1, head_dim=8, d_ff=32, tied=False,
  )  # fmt: skip
  params = decoder.init_params(cfg, jax.random.key(0))
  made = make_eval_set("held", rows, tokenizer, max_length=192, generate_rows=16)
  answers = {}
  for seconds in (0.0, 1e-9):
    evaluator = Evaluator(
      cfg, make_mesh(1, 1, 1, devices=jax.devices()[:1]), tokenizer, [made], rows=2, max_new_tokens=3,
      dtype=jnp.float32, max_seconds=seconds,
    )  # fmt: skip
    figures, records = evaluator.run(params)
    answers[seconds] = {
      (r.lang, r.example_id): r.response for r in records if r.response is not None
    }
    assert figures["held"]["sw"]["loss"]["n"] == 20  # likelihoods are not cut
  whole, cut = answers.values()
  assert len(whole) == 16 * len(LANGUAGES) == 96 and len(cut) == 64  # what one table holds
  assert cut.items() <= whole.items()
  per_language = [sum(lang == of for of, _ in cut) for lang in LANGUAGES]
  assert max(per_language) - min(per_language) <= 1
  assert evaluator.cut == ["held: 64 of 96 prompts were answered in 0 s (eval.max_seconds)"]


def test_prompts_are_asked_in_turn():
  assert _in_turn(["sw", "sw", "en", "sw", "en"]) == [2, 0, 4, 1, 3]
