"""Damage to files is found: SHA256SUMS of a folder, as `sha256sum -c` reads it, and a seal in JSON."""

from __future__ import annotations

import fnmatch
import hashlib
import json
import os
import pathlib
import re
from concurrent import futures

from mlit_jax.errors import UserError

NAME = "SHA256SUMS"
SEAL, SEALED = (
  "seal",
  "sealed",
)  # keys of an object: the digest of the others, and that there is one
BEING_WRITTEN = f".{NAME}.new"
MAY_CHANGE = ("README.md",)  # people write the card on
_LINE = re.compile(r"(?P<digest>[0-9a-f]{64})  (?P<name>[^\0\n]+)")


def write(folder: pathlib.Path) -> None:
  """Write the file, of all that is in the folder by now, and wait for the disk; a kill leaves all of it or none."""
  names = sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())
  names = [n for n in names if n not in (NAME, BEING_WRITTEN)]
  with open(folder / BEING_WRITTEN, "w", encoding="utf-8") as file:
    file.writelines(f"{digest}  {name}\n" for name, digest in _digests(folder, names).items())
    file.write(_end(len(names)))  # so that a list which was cut short is none
    file.flush()
    os.fsync(file.fileno())
  os.replace(folder / BEING_WRITTEN, folder / NAME)


def check(
  folder: pathlib.Path, *, only: str = "*", but: str = "", may_change: tuple[str, ...] = MAY_CHANGE
) -> bool:
  """Whether the folder has digests; UserError where a file that they name is missing or is another.

  only, but: patterns of the names to look at, and of those to leave out.
  """
  path = pathlib.Path(folder) / NAME
  try:
    text = path.read_text(encoding="utf-8")
  except FileNotFoundError:
    return False
  except (OSError, UnicodeDecodeError) as e:
    raise UserError(f"{path}: cannot be read ({e}). {_remedy(path)}") from e
  wanted = {}
  listed, _, end = text.rpartition("#")
  if f"#{end}" != _end(listed.count("\n")):
    raise UserError(f"{path}: was cut short or written over. {_remedy(path)}")
  for number, line in enumerate(listed.split("\n")[:-1], start=1):
    match = _LINE.fullmatch(line)
    if not match or not _inside(match["name"]):
      raise UserError(f"{path}:{number}: is no line of digests ({line[:80]!r}). {_remedy(path)}")
    wanted[match["name"]] = match["digest"]
  names = [n for n in wanted if fnmatch.fnmatch(n, only) and not fnmatch.fnmatch(n, but)]
  names = [n for n in names if n not in may_change]
  if missing := [n for n in names if not (folder / n).is_file()]:
    raise UserError(f"{folder / missing[0]}: is missing. {_remedy(path)}")
  found = _digests(folder, names)
  if wrong := [n for n in names if found[n] != wanted[n]]:
    more = f" (and {len(wrong) - 1} more)" if len(wrong) > 1 else ""
    raise UserError(f"{folder / wrong[0]}{more}: is not the file that was written. {_remedy(path)}")
  return True


def sealed(content: dict) -> dict:
  """An object with a digest of itself, so that a flipped bit in its JSON is found."""
  content = {key: value for key, value in content.items() if key not in (SEAL, SEALED)}
  content = json.loads(
    json.dumps(content)
  )  # as it is read back: keys are text, and so is their order
  text = json.dumps(content | {SEALED: True}, sort_keys=True, ensure_ascii=False)
  return content | {
    SEALED: True,
    SEAL: hashlib.blake2b(text.encode(), digest_size=16).hexdigest(),
  }


def read_sealed(path: pathlib.Path) -> dict:
  """An object as it was sealed, without the seal; ValueError where it is not, OSError where it cannot be read.

  One that was never sealed passes: workdirs are older than seals.
  """
  found = json.loads(path.read_text(encoding="utf-8"))
  if not isinstance(found, dict):
    raise ValueError(f"{path} holds no JSON object")
  if (SEAL in found or SEALED in found) and found != sealed(found):
    raise ValueError(f"{path} is not as it was written")
  return {key: value for key, value in found.items() if key not in (SEAL, SEALED)}


def _end(count: int) -> str:
  return f"# {count} files\n"


def _remedy(path: pathlib.Path) -> str:
  return f"Restore it from a copy; or, if you changed it yourself, delete {path}."


def _inside(name: str) -> bool:
  pure = pathlib.PurePosixPath(name)
  return not pure.is_absolute() and ".." not in pure.parts


def _digests(folder: pathlib.Path, names: list[str]) -> dict[str, str]:
  with futures.ThreadPoolExecutor(4) as pool:  # hashing leaves the interpreter to the others
    return dict(zip(names, pool.map(lambda name: _digest(folder / name), names), strict=True))


def _digest(path: pathlib.Path) -> str:
  with open(path, "rb") as file:
    return hashlib.file_digest(file, "sha256").hexdigest()
