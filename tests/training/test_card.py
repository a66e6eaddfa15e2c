"""What a run prints about its rows: what they were flagged for, and of how many the language was judged."""

from mlit_jax.training.card import judged_line, plan_lines, plan_table


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


def planned(epochs, examples, per_epoch, dropped=None):
  numbers = {"rows_read": 900, "tokens": 9, "trained_tokens": 5, "share_of_trained_tokens": 1.0}
  of = numbers | {"dropped": dropped or {}, "per_epoch": per_epoch, "examples": examples}
  made = {"hash": "0123456789abcdef", "steps": 30, "epochs": epochs, "padding": 0.1, "stages": [{}]}
  return plan_table(made | {"languages": {"en": of | {"bytes_per_token": 4.0}}})


def test_an_epoch_that_the_steps_cut_is_said():
  assert "30 steps, 3.27 of 4 epochs, padding" in planned(4, 654, 200).title
  assert "30 steps, 4 epochs, padding" in planned(4, 800, 200).title


def test_each_reason_for_which_rows_are_dropped_has_its_number():
  table = planned(1, 2, 2, {"over_long": 1280, "duplicate": 7})
  assert list(table.columns[2].cells) == ["1,280 over_long, 7 duplicate"]
  assert list(planned(1, 2, 2).columns[2].cells) == ["0"]
