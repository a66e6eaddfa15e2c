import json

import pytest

from mlit_jax.errors import UserError
from mlit_jax.evals.judging.pairs import fingerprint_prompts, read_pairs


def row(id, lang="sw", prompt="Habari?", response="Nzuri.", **more):
  return {"id": id, "lang": lang, "prompt": prompt, "response": response} | more


@pytest.fixture
def files(tmp_path):
  def files(rows_a, rows_b):
    paths = tmp_path / "a.jsonl", tmp_path / "b.jsonl"
    for path, rows in zip(paths, (rows_a, rows_b), strict=True):
      lines = [r if isinstance(r, str) else json.dumps(r, ensure_ascii=False) for r in rows]
      path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return paths

  return files


def test_answers_are_matched_by_language_and_id(files):
  """The order of lines, the spelling of a tag and numbers for ids do not matter; U+2028 ends no line."""
  a = [
    row(2, "swh", response="a2\u2028x", model="m"),
    row("1", "he", "שלום", "a1"),
    row("1", response="a3"),
  ]
  b = [row("1", response="b3", model="n"), row("1", "he", "שלום", "b1"), row("2", response="b2")]
  pairs, model_a, model_b = read_pairs(*files(a, b))
  assert [(p.lang, p.id, p.a, p.b) for p in pairs] == [
    ("he", "1", "a1", "b1"),
    ("sw", "1", "a3", "b3"),
    ("sw", "2", "a2\u2028x", "b2"),
  ]
  assert (model_a, model_b) == ("m", "n")
  assert pairs[0].shown("ab") == ("a1", "b1") and pairs[0].shown("ba") == ("b1", "a1")
  # Parallel prompts share an id.
  assert [p.group for p in pairs] == ["1", "1", "2"]
  only, _, _ = read_pairs(*files(a, b), languages=["swahili"])
  assert [p.id for p in only] == ["1", "2"]


def test_a_group_may_be_named(files):
  pairs, _, _ = read_pairs(*files([row("sw-7", group_id="7")], [row("sw-7")]))
  assert pairs[0].group == "7"


@pytest.mark.parametrize(
  "rows_a, rows_b, parts",
  [
    (
      [row("1"), row("2"), row("3", "he")],
      [row("1"), row("9"), row("8"), row("7"), row("6")],
      ["1 in both", "2 only in", "he 3, sw 2", "4 only in", "sw 6, sw 7, sw 8)", "--languages"],
    ),
    (
      [row("1", prompt="x")],
      [row("1", prompt="y")],
      ["1 of 1 prompts differ", "sw 1", "'x'", "'y'"],
    ),
    ([row("1"), row("1")], [row("1")], ["a.jsonl:2", "'1' of sw", "line 1 already"]),
    ([row("1"), "{"], [row("1")], ["a.jsonl:2", "broken JSON"]),
    (["[1]"], [row("1")], ["a.jsonl:1", "1 is no object"]),
    ([row("1", response=None)], [row("1")], ["a.jsonl:1", "`response` is None"]),
    ([row(None)], [row("1")], ["a.jsonl:1", "`id` is None"]),
    ([row("1", lang="")], [row("1")], ["a.jsonl:1", "`lang`", "not a language tag"]),
    ([], [row("1")], ["a.jsonl holds no answer"]),
  ],
)
def test_what_does_not_match_is_refused(files, rows_a, rows_b, parts):
  with pytest.raises(UserError) as e:
    read_pairs(*files(rows_a, rows_b))
  for part in parts:
    assert part in str(e.value)


def test_a_language_without_answers_and_a_missing_file_are_refused(files, tmp_path):
  paths = files([row("1")], [row("1")])
  with pytest.raises(UserError, match="--languages fi"):
    read_pairs(*paths, languages=["fi"])
  with pytest.raises(UserError, match=r"none.jsonl: cannot be read: No such file"):
    read_pairs(tmp_path / "none.jsonl", paths[1])


def test_fingerprints_tell_prompts_and_answers_apart(files):
  def pairs(**changes):
    return read_pairs(*files([row("1", response="A")], [row("1", response="B")]), **changes)[0]

  (pair,) = pairs()
  (swapped,), _, _ = read_pairs(*files([row("1", response="B")], [row("1", response="A")]))
  (moved,), _, _ = read_pairs(
    *files([row("1", prompt="Habari?A", response="")], [row("1", prompt="Habari?A", response="B")])
  )
  assert len({p.fingerprint for p in (pair, swapped, moved)}) == 3
  assert (
    fingerprint_prompts([pair]) == fingerprint_prompts([swapped]) != fingerprint_prompts([moved])
  )


def test_half_an_emoji_is_an_answer_too(files):
  pairs, _, _ = read_pairs(*files(['{"id": "1", "lang": "sw", "prompt": "?", "response": "\\ud83d"}'], [row("1", prompt="?")]))  # fmt: skip
  assert len(pairs[0].fingerprint) == 32
