"""What transfers show: bytes and bytes per second, on a terminal and without one."""

import io

import pytest
from rich.console import Console

from mlit_jax.training import console


@pytest.fixture
def clock(monkeypatch):
  now = [100.0]
  monkeypatch.setattr(console.time, "perf_counter", lambda: now[0])
  return now


def test_without_a_terminal_a_transfer_is_lines(capsys, clock):
  with console.Terminal().transfer("import") as progress:
    for seconds in range(1, 26):
      clock[0] += 1
      progress(seconds * 200_000_000, 5_000_000_000)
  assert capsys.readouterr().out.splitlines() == [
    "import  2.0 GB of 5.0 GB, 200.0 MB/s",
    "import  4.0 GB of 5.0 GB, 200.0 MB/s",
    "import  5.0 GB in 25.0 s, 200.0 MB/s",
  ]


def test_where_nothing_is_transferred_or_it_fails_nothing_is_claimed(capsys):
  with console.Terminal().transfer("import"):
    pass
  with pytest.raises(OSError), console.Terminal().transfer("export") as progress:
    progress(1, 2)
    raise OSError
  with console.Terminal(shown=False).transfer("import") as progress:
    progress(2, 2)
  assert capsys.readouterr().out == ""


def test_answers_keep_stdout_for_themselves(capsys):
  with console.Terminal(stderr=True).transfer("import") as progress:
    progress(999, 999)
  out, err = capsys.readouterr()
  assert out == "" and err.startswith("import  999 bytes in ")


def test_on_a_terminal_a_bar_shows_bytes_and_speed():
  terminal = console.Terminal()
  terminal.console = Console(file=io.StringIO(), force_terminal=True, width=120)
  with terminal.transfer("export") as progress:
    progress(1_500_000, 3_000_000)
    progress.progress.refresh()
  shown = terminal.console.file.getvalue()
  assert "1.5/3.0 MB" in shown and "/s" in shown


@pytest.mark.parametrize(
  "num_bytes, text", [(0, "0 bytes"), (999, "999 bytes"), (1000, "1.0 kB"), (6.5e9, "6.5 GB"), (2e12, "2.0 TB")]
)  # fmt: skip
def test_sizes(num_bytes, text):
  assert console._size(num_bytes) == text
