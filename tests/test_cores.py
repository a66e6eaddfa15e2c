"""How many cores a process may use."""

import pytest

from mlit_jax import cores


@pytest.mark.parametrize(
  "text, found",
  [
    (None, 8),
    ("max 100000\n", 8),
    ("400000 100000\n", 4),
    ("150000 100000\n", 1),  # two would share one and a half
    ("50000 100000\n", 1),
    ("6400000 100000\n", 8),
    ("", 8),
  ],
)
def test_a_quota_counts_as_the_cores_it_is_worth(monkeypatch, tmp_path, text, found):
  monkeypatch.setattr(cores.os, "sched_getaffinity", lambda pid: set(range(8)))
  monkeypatch.setattr(cores, "CPU_MAX", tmp_path / "cpu.max")
  if text is not None:
    (tmp_path / "cpu.max").write_text(text)
  assert cores.usable_cores() == found
