import dataclasses
import fcntl
import gzip
import json
import os
import random
import signal
import subprocess
import sys
import time
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from twelve import ANSWERED, ASKED, LANGUAGES
from written import write

import mlit_jax
from mlit_jax.data import cache
from mlit_jax.data.cache import open_cache
from mlit_jax.data.encode import encode_conversations
from mlit_jax.data.encoded import COLUMNS
from mlit_jax.data.hygiene import make_hygiene
from mlit_jax.data.parts import Recipe
from mlit_jax.data.rows import read_sources
from mlit_jax.data.sources import open_sources
from mlit_jax.data.tokenizer import Tokenizer
from mlit_jax.data.worker import map_in_order
from mlit_jax.errors import UserError
from tests.damage import KINDS, damage

FOLDER = Path(mlit_jax.__file__).parent / "assets" / "tokenizer12"
OFF = dict.fromkeys(
  ("overlap", "wrong_script", "wrong_language", "control_characters", "empty_answers"), "off"
)


@pytest.fixture(scope="module")
def tokenizer():
  return Tokenizer.load(str(FOLDER))


def recipe_of(tokenizer, hygiene=None, held_out=(), **kwargs):
  settings = dict(max_length=512, over_long="drop", drop_bad=False) | kwargs
  return Recipe(tokenizer=tokenizer, hygiene=make_hygiene(hygiene or OFF, held_out), **settings)


def row(lang, number=0, **kwargs):
  asked, answered = f"{ASKED[lang]} {number}", ANSWERED[lang]
  return {"prompt": asked, "completion": answered, "lang": lang} | kwargs


@pytest.fixture
def files(tmp_path):
  """Two sources of twelve languages, with a duplicate in each of two of them."""
  one = [row(lang, i) for i in range(7) for lang in LANGUAGES] + [row("fi", 3)]
  two = [row(lang, i, group_id=f"g{i}") for i in range(5, 9) for lang in LANGUAGES]
  packed = tmp_path / "two.jsonl.gz"
  packed.write_bytes(gzip.compress(Path(write(tmp_path / "two.jsonl", two)).read_bytes()))
  return [write(tmp_path / "one.jsonl", one), str(packed)]


def built(files, recipe, folder, **kwargs):
  return open_cache(open_sources(files), recipe, folder, **kwargs)[0]


def assert_same(one, two):
  assert len(one) == len(two)
  for i in range(len(one)):
    np.testing.assert_array_equal(one.tokens_of(i), two.tokens_of(i))
    np.testing.assert_array_equal(one.trained_of(i), two.trained_of(i))
  for name in ("ids", *(c for c in COLUMNS if c not in ("starts", "source", "file"))):
    np.testing.assert_array_equal(getattr(one, name), getattr(two, name), err_msg=name)
  for name in ("languages", "dropped", "flagged"):
    assert getattr(one, name) == getattr(two, name), name
  assert [one.place(i) for i in range(len(one))] == [two.place(i) for i in range(len(two))]


@pytest.mark.parametrize("limit", [512, 40, 2])  # all rows, some, none
def test_the_cache_is_what_the_rows_give_in_memory(files, tokenizer, tmp_path, limit):
  found = built(files, recipe_of(tokenizer, max_length=limit), tmp_path / "c")
  rows = read_sources(files)
  wanted = encode_conversations(rows.conversations, tokenizer, max_length=limit)
  assert {512: len(found) == 108, 40: 0 < len(found) < 108, 2: len(found) == 0}[limit]
  again = {lang: n.pop("duplicate", 0) for lang, n in found.dropped.items()}
  if limit == 512:
    assert again == {lang: 2 + (lang == "fi") for lang in LANGUAGES}
  assert {lang for lang, others in found.dropped.items() if others} == wanted.dropped.keys()
  assert_same(dataclasses.replace(found, dropped={}), dataclasses.replace(wanted, dropped={}))
  read = {lang: sum(of.values()) for lang, of in found.rows_read.items()}
  assert read == {lang: 11 + (lang == "fi") for lang in LANGUAGES}
  assert found.rows_read["fi"] == {files[0]: 8, files[1]: 4}
  assert isinstance(found.tokens, np.memmap) or limit == 2


def test_built_once_and_read_after(files, tokenizer, tmp_path, monkeypatch):
  recipe = recipe_of(tokenizer)
  seen = []
  first = built(files, recipe, tmp_path / "c", progress=seen.append)
  assert sum(sum(of.values()) for p in seen for of in p.rows_read.values()) == 133
  assert len(list((tmp_path / "c").iterdir())) == 1  # no lock and no half-built folder is left
  monkeypatch.setattr(cache, "_build", None)  # whoever builds now fails
  assert_same(built(files, recipe, tmp_path / "c"), first)
  with pytest.raises(TypeError):
    built(files, recipe_of(tokenizer, max_length=511), tmp_path / "c")


def test_the_lock_of_who_was_killed_after_building_goes(files, tokenizer, tmp_path):
  recipe = recipe_of(tokenizer)
  built(files, recipe, tmp_path / "c")
  (place,) = (tmp_path / "c").iterdir()
  lock = place.with_name(f".{place.name}.lock")
  lock.touch()
  with open(lock) as held:  # by one that builds another format, or that was a moment late
    fcntl.flock(held, fcntl.LOCK_EX)
    built(files, recipe, tmp_path / "c")
    assert lock.exists()
  built(files, recipe, tmp_path / "c")
  assert [p.name for p in (tmp_path / "c").iterdir()] == [place.name]


@pytest.mark.parametrize("kind", KINDS)
def test_a_damaged_cache_is_built_again(files, tokenizer, tmp_path, kind):
  first = built(files, recipe_of(tokenizer), tmp_path / "c")
  (place,) = (tmp_path / "c").iterdir()
  rng, before = random.Random(kind), {p.name: p.read_bytes() for p in place.iterdir()}
  for name in sorted(before):
    assert damage(place / name, kind, rng)
    said = []
    found = built(files, recipe_of(tokenizer), tmp_path / "c", damaged=said.append)
    assert len(said) == 1 and "built again" in said[0] and str(place) in said[0], (name, said)
    assert [p.name for p in (tmp_path / "c").iterdir()] == [place.name]
    assert {p.name: p.read_bytes() for p in place.iterdir()} == before
    assert_same(found, first)


def test_workers_give_what_one_process_gives(files, tokenizer, tmp_path, monkeypatch):
  alone = built(files, recipe_of(tokenizer), tmp_path / "a", num_workers=1)
  monkeypatch.setattr(cache, "CHUNK", 10)
  monkeypatch.setattr(cache, "ALONE", 2)
  assert_same(built(files, recipe_of(tokenizer), tmp_path / "b", num_workers=3), alone)


def test_every_change_of_what_shapes_tokens_is_built_anew(files, tokenizer, tmp_path):
  template = (FOLDER / "chat_template.jinja").read_text(encoding="utf-8")
  other = Tokenizer.load(str(FOLDER), template=template.replace("<|end|>", "<|end|>\n"))
  first, made_from = open_cache(open_sources(files), recipe_of(tokenizer), tmp_path / "c")
  prints = {first.fingerprint}
  for recipe, what in (
    (recipe_of(other), "the chat template"),
    (recipe_of(tokenizer, max_length=511), "the settings of data"),
    (recipe_of(tokenizer, over_long="truncate_answer"), "the settings of data"),
    (recipe_of(tokenizer, OFF | {"wrong_script": "drop"}), "the settings of data"),
  ):
    encoded, parts = open_cache(open_sources(files), recipe, tmp_path / "c")
    assert [k for k in parts if parts[k] != made_from.get(k)] == [what]
    prints.add(encoded.fingerprint)
  data = bytearray(Path(files[0]).read_bytes())
  data[data.index(b"3")] = ord("4")
  Path(files[0]).write_bytes(data)
  encoded, parts = open_cache(open_sources(files), recipe_of(tokenizer), tmp_path / "c")
  assert [k for k in parts if parts[k] != made_from.get(k)] == [files[0]]
  prints.add(encoded.fingerprint)
  assert len(prints) == 6


def test_a_file_that_is_listed_twice_counts_twice(files, tokenizer, tmp_path):
  """The first of its entries must not be passed over where the second is the same as before."""
  again = {"path": files[0], "name": "again"}
  lenient = {"path": files[0], "format": "prompt_completion"}
  made = [open_cache(open_sources(train), recipe_of(tokenizer), tmp_path / "c") for train in (
    [files[0], again], [lenient, again], [again],
  )]  # fmt: skip
  assert len({encoded.fingerprint for encoded, _ in made}) == 3
  changed = {k for k in made[0][1] if made[0][1][k] != made[1][1].get(k)}
  assert changed == {files[0]}


def test_what_only_reports_and_where_files_lie_do_not_change_the_plan(files, tokenizer, tmp_path):
  first = built(files, recipe_of(tokenizer), tmp_path / "c")
  report = OFF | {"wrong_script": "report", "overlap": "report"}
  held_out = read_sources([files[1]]).conversations
  flagged = built(files, recipe_of(tokenizer, report, held_out), tmp_path / "c")
  assert flagged.fingerprint == first.fingerprint and not first.flagged
  # Rows 5 to 8 of the second file: two of them are in the first as well, and went as duplicates.
  assert flagged.flagged["sw"]["overlap exact"] == 4
  moved = tmp_path / "elsewhere"
  moved.mkdir()
  names = [str(Path(f).rename(moved / Path(f).name)) for f in files]
  elsewhere = built(names, recipe_of(tokenizer), tmp_path / "c")
  assert elsewhere.fingerprint == first.fingerprint
  assert elsewhere.place(0) == f"{names[0]}:1" and elsewhere.sources == tuple(names)


def test_only_rows_that_stay_are_counted_as_flagged(tokenizer, tmp_path):
  """Of six rows in another script: one is too long, two are there twice, one is nearly the same."""
  asked = f"{ASKED['en'] * 12} Number"
  russian = {"completion": ANSWERED["ru"]}
  rows = [row("fi", i) | russian for i in (1, 2, 1, 2)]
  rows += [row("fi", 3) | {"completion": ANSWERED["ru"] * 100}]
  rows += [row("en", 0) | {"prompt": f"{asked} {i}?"} | russian for i in range(2)]
  path = write(tmp_path / "a.jsonl", [*rows, row("fi", 4)])
  settings = OFF | {"wrong_script": "report", "near_duplicates": "report"}
  found = built([path], recipe_of(tokenizer, settings), tmp_path / "c")
  assert found.dropped == {"fi": {"over_long": 1, "duplicate": 2}}
  assert found.flagged == {
    "fi": {"wrong script": 2},
    "en": {"wrong script": 2, "near duplicate": 1},
  }
  found = built(
    [path], recipe_of(tokenizer, settings | {"near_duplicates": "drop"}), tmp_path / "c"
  )
  assert found.dropped["en"] == {"near duplicate": 1}
  assert found.flagged == {"fi": {"wrong script": 2}, "en": {"wrong script": 1}}


def test_how_many_rows_were_judged_by_their_language(tokenizer, tmp_path):
  """Of those that stay; not the short ones, nor a language that lingua does not know."""
  german = "Das ist ganz sicher nicht auf Finnisch geschrieben, Nummer"
  rows = [row("fi", i) | {"completion": f"{german} {i % 30}."} for i in range(40)]
  rows += [row("fi", i) | {"completion": "Joo."} for i in range(5)]
  rows += [row("fi", i) | {"lang": "tlh", "completion": f"{german} {i}."} for i in range(3)]
  path = write(tmp_path / "a.jsonl", [*rows, *rows[:7]])
  settings = OFF | {"wrong_language": "report"}
  found = built([path], recipe_of(tokenizer, settings), tmp_path / "c")
  assert found.language_judged_every == 1 and len(found) == 48
  assert found.language_judged == {"fi": 40} and found.flagged == {"fi": {"wrong language": 40}}

  recipe = recipe_of(tokenizer, settings)
  recipe = dataclasses.replace(
    recipe, hygiene=dataclasses.replace(recipe.hygiene, language_every=4)
  )
  sample = built([path], recipe, tmp_path / "c")
  assert sample.language_judged_every == 4 and sample.fingerprint == found.fingerprint
  judged = sample.language_judged["fi"]
  ids = [int(sample.example_id(i)[:8], 16) for i in range(40)]
  assert 0 < judged < 40 and judged == sum(n % 4 == 0 for n in ids)
  assert sample.flagged == {"fi": {"wrong language": judged}}
  off = built([path], recipe_of(tokenizer), tmp_path / "c")
  assert off.language_judged_every == 0 and off.language_judged == {}


def test_a_cache_of_another_format_is_passed_over_and_the_plan_stays(
  files, tokenizer, tmp_path, monkeypatch
):
  first = built(files, recipe_of(tokenizer), tmp_path / "c")
  monkeypatch.setattr(cache, "FORMAT", cache.FORMAT + 1)
  again = built(files, recipe_of(tokenizer), tmp_path / "c")
  assert len(list((tmp_path / "c").iterdir())) == 2 and again.fingerprint == first.fingerprint


def test_hygiene_drops_on_request_and_counts_by_language(tokenizer, tmp_path):
  rows = [row("fi", i) for i in range(20)] + [row("fi", 7) | {"completion": ANSWERED["ru"]}]
  rows += [row("en", 0) | {"prompt": f"{ASKED['en'] * 12} Number {i}?"} for i in range(2)]
  path = write(tmp_path / "a.jsonl", rows)
  settings = OFF | {"wrong_script": "drop", "near_duplicates": "report"}
  found = built([path], recipe_of(tokenizer, settings), tmp_path / "c")
  assert found.dropped == {"fi": {"wrong script": 1}}
  assert found.flagged["en"] == {"near duplicate": 1} and len(found) == 22
  found = built(
    [path], recipe_of(tokenizer, settings | {"near_duplicates": "drop"}), tmp_path / "c"
  )
  assert found.dropped["en"] == {"near duplicate": 1} and not found.flagged.get("en")
  kept = [found.place(i) for i in range(len(found)) if found.languages[found.language[i]] == "en"]
  assert kept == [f"{path}:22"]  # the first of them stays


def test_a_bad_row_stops_the_build_by_its_place_or_is_counted(files, tokenizer, tmp_path):
  bad = tmp_path / "bad.jsonl"
  bad.write_text(json.dumps(row("fi")) + "\n{broken\n" + json.dumps(row("sw")) + "\n")
  with pytest.raises(UserError, match=rf"{bad}:2: broken JSON"):
    built([str(bad)], recipe_of(tokenizer), tmp_path / "c")
  assert list((tmp_path / "c").iterdir()) == []
  found = built([str(bad)], recipe_of(tokenizer, drop_bad=True), tmp_path / "c")
  assert len(found) == 2 and found.dropped == {"?": {"broken JSON": 1}}
  assert found.rows_read["?"] == {str(bad): 1} and found.languages == ("fi", "sw")


def test_a_worker_hands_its_errors_over_and_its_death_is_told():
  assert list(map_in_order(divmod, 7, [(2,), (3,), (4,)] * 5, 2)) == [(3, 1), (2, 1), (1, 3)] * 5
  with pytest.raises(ZeroDivisionError):
    list(map_in_order(divmod, 7, [(2,), (0,), (3,)], 2))
  with pytest.raises(RuntimeError, match="died with exit code 3"):
    list(map_in_order(_die, 3, [()], 1))


def _die(code):
  os._exit(code)


def test_the_first_of_equal_ids_is_kept_in_whatever_block_it_stands(monkeypatch):
  monkeypatch.setattr(cache, "BLOCK", 7)
  rng = np.random.default_rng(0)
  ids = rng.integers(0, 6, (200, 2), dtype=np.uint64)  # many have one half in common, some both
  seen, expected = set(), []
  for pair in ids.tolist():
    expected.append(tuple(pair) not in seen)
    seen.add(tuple(pair))
  assert cache._first_of_each(ids).tolist() == expected
  assert cache._first_of_each(np.zeros((0, 2), np.uint64)).tolist() == []


def test_looking_for_duplicates_takes_little_beside_the_ids(monkeypatch):
  monkeypatch.setattr(cache, "BLOCK", 1 << 14)
  ids = np.random.default_rng(0).integers(0, 2**63, (400_000, 2), dtype=np.uint64)
  ids[300_000:300_100] = ids[:100]
  tracemalloc.start()
  try:
    keep = cache._first_of_each(ids)
    _, peak = tracemalloc.get_traced_memory()
  finally:
    tracemalloc.stop()
  assert np.flatnonzero(~keep).tolist() == list(range(300_000, 300_100))
  assert peak / len(ids) < 20  # bytes; the ids themselves are 16


# --- processes

BUILD = """
import os, sys, time
from mlit_jax.data import cache
from mlit_jax.data.cache import open_cache
from mlit_jax.data.sources import open_sources
sys.path.insert(0, {tests!r})
import test_cache
from mlit_jax.data.tokenizer import Tokenizer
cache.CHUNK, cache.ALONE = 20, 1
def slow(part):
  print("part", flush=True)
  time.sleep({pause})
  while os.path.exists({hold!r}):
    time.sleep(0.02)
recipe = test_cache.recipe_of(Tokenizer.load(str(test_cache.FOLDER)))
encoded, _ = open_cache(
  open_sources([{path!r}]), recipe, __import__("pathlib").Path({folder!r}), num_workers={workers},
  progress=slow, waiting=lambda: print("waiting", flush=True))
print(len(encoded), encoded.fingerprint)
"""


def start(path, folder, pause=0.0, workers=1, hold=""):
  """A process that builds the cache; it goes on after a part when there is no file `hold`."""
  code = BUILD.format(
    tests=str(Path(__file__).parent),
    path=path,
    folder=str(folder),
    pause=pause,
    workers=workers,
    hold=str(hold),
  )
  env = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
  return subprocess.Popen([sys.executable, "-c", code], env=env, stdout=subprocess.PIPE, text=True)


def test_two_processes_build_once_and_a_killed_build_is_forgotten(tokenizer, tmp_path):
  path = write(tmp_path / "a.jsonl", [row(x, i) for i in range(20) for x in LANGUAGES])
  folder = tmp_path / "c"
  killed = start(path, folder, pause=0.2, workers=2)
  for _ in range(4):
    assert killed.stdout.readline() == "part\n"
  os.kill(killed.pid, signal.SIGKILL)
  killed.wait()
  (left,) = (p.name for p in folder.iterdir() if p.name.startswith(cache.BUILDING))
  assert (folder / left / "tokens.bin").is_file()
  deadline = time.monotonic() + 20
  while children_of_workers(killed.pid) and time.monotonic() < deadline:
    time.sleep(0.1)
  assert not children_of_workers(killed.pid)  # its workers went with it

  hold = tmp_path / "hold"
  hold.touch()
  one = start(path, folder, hold=hold)
  assert one.stdout.readline() == "part\n"
  two = start(path, folder)
  assert two.stdout.readline() == "waiting\n"
  hold.unlink()
  out = [p.communicate(timeout=120)[0].split("\n") for p in (one, two)]
  assert out[0].count("part") == 11 and "part" not in out[1]
  assert out[0][-2] == out[1][-2] and out[0][-2].startswith("240 ")
  assert [p.name.startswith(".") for p in folder.iterdir()] == [False]


def children_of_workers(parent: int) -> list[int]:
  """Worker processes that this test's killed parent left: they are told by its token in their environment."""
  found = []
  for entry in Path("/proc").glob("[0-9]*"):
    try:
      command = (entry / "cmdline").read_bytes()
      status = (entry / "stat").read_text().rsplit(")", 1)[1].split()
    except OSError:
      continue
    if b"mlit_jax.data.worker" in command and status[0] != "Z" and status[1] == "1":
      found.append(int(entry.name))
  return found
