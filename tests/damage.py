"""What disks and interrupted copies do to files."""

from collections.abc import Iterator

KINDS = ("bit", "cut", "empty", "missing")


def damage(path, kind: str, rng, keep: int | None = None) -> bool:
  """Whether the file is another now. keep: bytes that a cut leaves; None: any number."""
  data = path.read_bytes()
  if kind == "missing":
    path.unlink()
    return True
  if kind == "bit" and data:
    path.write_bytes(flipped(data, rng.randrange(8 * len(data))))
    return True
  keep = rng.randrange(len(data)) if keep is None and data else keep
  path.write_bytes(data[:keep] if kind == "cut" else b"")
  return bool(data)


def flipped(data: bytes, at: int) -> bytes:
  """With another value of one bit."""
  changed = bytearray(data)
  changed[at // 8] ^= 1 << at % 8
  return bytes(changed)


def each_bit(path) -> Iterator[None]:
  """The file with each of its bits flipped, one after another."""
  whole = path.read_bytes()
  for at in range(8 * len(whole)):
    path.write_bytes(flipped(whole, at))
    yield
