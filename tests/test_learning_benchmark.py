"""What benchmarks/learning.py trains, without training it."""

import pytest

from benchmarks import learning


@pytest.mark.parametrize(
  "args, trained",
  [
    ([], [("adamw", 1e-3), ("muon", 1e-3)]),
    (["--rates", "1e-3", "2e-3"], [("adamw", r) for r in (1e-3, 2e-3)] + [("muon", r) for r in (1e-3, 2e-3)]),
    (["--choices", "muon", "--rates", "2e-3"], [("adamw", 1e-3), ("muon", 2e-3)]),
  ],
)  # fmt: skip
def test_the_first_is_trained_once_and_all_on_as_many_devices(monkeypatch, capsys, args, trained):
  runs, choices = [], {"adamw": {"optimizer.name": "adamw"}, "muon": {"optimizer.name": "muon"}}

  def losses(keys, rate, devices):
    runs.append((keys["optimizer.name"], rate))
    assert devices == 2
    return (2.0 if keys["optimizer.name"] == "adamw" else 3.0), 5.0

  monkeypatch.setattr(learning, "CHOICES", choices)
  monkeypatch.setattr(learning, "losses", losses)
  monkeypatch.setattr("sys.argv", ["learning.py", "--devices", "2", *args])
  learning.main()
  assert runs == trained
  said = capsys.readouterr().out.splitlines()[1:]
  assert {(row.split()[0], row.split()[3]) for row in said} <= {
    ("adamw", "1.000"),
    ("muon", "1.500"),
  }
