"""What a run prints about its rows: what they were flagged for, and of how many the language was judged."""

from mlit_jax.training.card import judged_line, plan_lines


def ledger(every, **languages):
  return {
    "stages": [{}],
    "language_judged_every": every,
    "languages": {
      lang: {"flagged": flagged, "language_judged": judged, "available": rows, "sources": {}}
      for lang, (flagged, judged, rows) in languages.items()
    },
  }


def test_flagged_rows_by_reason():
  made = ledger(
    1, en=({"wrong script": 2, "wrong language": 1000}, 2000, 2100), fi=({"wrong script": 1}, 0, 4)
  )
  assert plan_lines(made) == [
    "kept, but wrong language: en 1,000",
    "kept, but wrong script: en 2, fi 1",
  ]
  assert plan_lines(ledger(0, en=({}, 0, 3))) == judged_line(ledger(1, en=({}, 3, 3))) == []


def test_a_sample_is_called_one():
  made = ledger(
    4, en=({"wrong language": 3, "empty answer": 1}, 251, 1000), fi=({}, 0, 4), sw=({}, 0, 0)
  )
  assert plan_lines(made) == [
    "kept, but empty answer: en 1",
    "kept, but wrong language: en 3 of 251 judged",
    "language of answers judged on a sample, one row in 4: en 251 of 1,000, fi 0 of 4",
  ]
  assert judged_line({"languages": {}}) == []  # of a run before this was kept
