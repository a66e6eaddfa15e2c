import csv
import io

import pytest

from mlit_jax.errors import UserError
from mlit_jax.evals.judging.pairs import Pair
from mlit_jax.evals.judging.people import people_judge, write_sheet

PAIRS = [
  Pair("1", "ar", "1", "ما هذا؟", "- HTML هو لغة", "=1+1"),
  Pair("1", "he", "1", "מה זה?", 'א, "ב"; ג', "two\nlines"),
  Pair("1", "zh", "1", "这是什么？", "好", "@不好"),
  Pair("1", "en", "1", "What?", "same", "same"),
  *(Pair(str(i), "en", str(i), f"Q{i}", f"alpha {i}", f"beta {i}") for i in range(2, 42)),
]


def sheet(path):
  text = path.read_bytes().decode("utf-8-sig")
  return list(csv.DictReader(io.StringIO(text, newline="")))


def write(path, rows, delimiter=",", encoding="utf-8-sig", newline="\r\n"):
  out = io.StringIO(newline="")
  writer = csv.DictWriter(out, rows[0].keys(), delimiter=delimiter, lineterminator=newline)
  writer.writeheader()
  writer.writerows(rows)
  path.write_bytes(out.getvalue().encode(encoding))


def fill(rows, verdict):
  """Fill in by what a reader sees: verdict(answer_1, answer_2)."""
  return [row | {"verdict": verdict(row["answer_1"][1:], row["answer_2"][1:])} for row in rows]


def prefer_a(first, second):
  of_a = {pair.a for pair in PAIRS}
  return "1" if first in of_a else "2"


@pytest.fixture
def path(tmp_path):
  return tmp_path / "sheet.csv"


def test_the_sheet_is_blind_shuffled_and_safe(path):
  assert write_sheet(path, PAIRS, orders="both", seed=0) == (2 * 43, 0)
  assert path.read_bytes().startswith(b"\xef\xbb\xbf")
  rows = sheet(path)
  assert list(rows[0]) == ["number", "language", "question", "answer_1", "answer_2", "verdict", "note", "key"]  # fmt: skip
  by_pair = {}
  for row in rows:
    mark = "\u200f" if row["language"] in ("Arabic", "Hebrew") else "\u200e"
    for name in ("question", "answer_1", "answer_2"):
      assert row[name][0] == mark  # so that no cell begins with = + - @
    by_pair.setdefault(row["question"], []).append((row["answer_1"], row["answer_2"]))
  assert all(len(shown) == 2 and shown[0] == shown[1][::-1] for shown in by_pair.values())
  assert len({row["key"] for row in rows}) == len(rows)
  assert [row["question"] for row in rows] != sorted(row["question"] for row in rows)
  assert by_pair["\u200fמה זה?"][0][0][1:] in ('א, "ב"; ג', "two\nlines")
  write_sheet(path, PAIRS, orders="both", seed=1)
  assert [row["key"] for row in sheet(path)] != [row["key"] for row in rows]


def test_one_order_is_drawn_evenly(path):
  assert write_sheet(path, PAIRS, orders="one", seed=0) == (43, 0)
  firsts = sum(row["answer_1"][1:6] == "alpha" for row in sheet(path) if row["question"][1] == "Q")
  assert 10 <= firsts <= 30


@pytest.mark.parametrize("orders", ["both", "one"])
@pytest.mark.parametrize(
  "saved", [{}, {"delimiter": ";"}, {"delimiter": "\t", "encoding": "utf-16"}, {"newline": "\n"}]
)
def test_a_filled_sheet_is_read_back(path, orders, saved):
  """As the programs of several countries save it, with columns and rows moved."""
  write_sheet(path, PAIRS, orders=orders, seed=0)
  rows = fill(sheet(path), prefer_a)[::-1]
  write(path, [dict(reversed(row.items())) for row in rows], **saved)
  judge, seen, left_out = people_judge(path, PAIRS)
  assert left_out == 0 and len(seen) == 43
  assert {len(o) for o in seen.values()} == {2 if orders == "both" else 1}
  for (_, _, order), choice in judge.choices.items():
    assert choice == ("first" if order == "ab" else "second")


def test_ties_and_spelling(path):
  write_sheet(path, PAIRS, orders="both", seed=0)
  spelt = iter(["0", " tie ", "=", "TIE"] * 100)
  write(path, [row | {"verdict": next(spelt)} for row in sheet(path)])
  assert set(people_judge(path, PAIRS)[0].choices.values()) == {"tie"}


def change(number, **changes):
  return lambda rows: [row | changes if i == number else row for i, row in enumerate(rows)]


@pytest.mark.parametrize(
  "spoil, part",
  [
    (change(2, verdict=""), "1 rows have no verdict yet, such as row 4"),
    (change(2, verdict="3"), "row 4 has the verdict '3'"),
    (change(2, key="other"), "row 4 is on no pair of these files (key 'other')"),
    (lambda rows: rows + rows[:1], "row 88 repeats"),
    (lambda rows: rows[1:], "lacks rows of 1 of 43 pairs"),
    (lambda rows: [{k: v for k, v in row.items() if k != "key"} for row in rows], "no column key"),
  ],
)
def test_a_spoilt_sheet_is_refused(path, spoil, part):
  write_sheet(path, PAIRS, orders="both", seed=0)
  # One line each, so that rows are counted as a spreadsheet counts them.
  write(path, spoil(fill(sheet(path), prefer_a)))
  with pytest.raises(UserError) as e:
    people_judge(path, PAIRS)
  assert part in str(e.value)


@pytest.mark.parametrize("spoil", [change(2, verdict=""), lambda rows: rows[1:]])
def test_a_part_can_be_taken(path, spoil):
  """A pair of which one row of two is missing is left out as a whole."""
  write_sheet(path, PAIRS, orders="both", seed=0)
  write(path, spoil(fill(sheet(path), prefer_a)))
  _, seen, left_out = people_judge(path, PAIRS, partial=True)
  assert left_out == 1 and len(seen) == 42 and {len(o) for o in seen.values()} == {2}


def test_what_no_cell_can_hold_is_cut_and_counted(path):
  pair = Pair("1", "en", "1", "Q", "x" * 40_000, "y")
  assert write_sheet(path, [pair], orders="one", seed=0) == (1, 1)
  assert max(len(cell) for cell in sheet(path)[0].values()) <= 32_767
  write(path, fill(sheet(path), lambda first, second: "1"))
  assert len(people_judge(path, [pair])[1]) == 1
