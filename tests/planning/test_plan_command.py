import dataclasses
import json

import jax
import jax.numpy as jnp
import pytest

from mlit_jax import mesh as meshes
from mlit_jax import plan
from mlit_jax.config import load_config
from mlit_jax.model import decoder
from mlit_jax.model.config import from_hf, from_scratch
from mlit_jax.model.families import FAMILIES
from mlit_jax.planning import compiling, planner
from mlit_jax.planning.collectives import read_traffic
from mlit_jax.planning.compiling import refused_memory
from mlit_jax.planning.topologies import open_topology
from mlit_jax.stepping import make_stepping
from mlit_jax.training.flops import step_flops
from tests import commands, families

QUICKSTART = commands.ROOT / "configs" / "quickstart.py"


NOTHING = compiling.Memory(params=1, optimizer=2, batch=3, arguments=6, temporaries=1, peak=7)


def config_of_tiny_rows():
  return load_config(str(QUICKSTART), ["--config.batch.max_length=32"])


def planned(folder, *args, config=QUICKSTART):
  """(lines, figures) of a plan that went well."""
  file = folder / "plan.json"
  # A workdir of its own: what was planned in another would be taken from there.
  where = f"--config.workdir={folder}"
  code, out, err = commands.here(plan, "--config", config, "--json", file, where, *args)
  assert (code, err) == (0, ""), err
  return out, json.loads(file.read_text())


def refused(*args) -> str:
  code, _out, err = commands.here(plan, *args)
  assert code == 2 and err.startswith("error: ") and err.count("\n") == 1, err
  return err


def write_model(folder, variant: str):
  path = folder / "config.json"
  path.write_text(json.dumps(families.keys_of(variant, families.IDS)))
  return path


def state_bytes(cfg, mesh) -> int:
  """Of parameters and two moments in float32, as the rules split them."""
  shardings = meshes.param_shardings(decoder.param_specs(cfg), mesh)
  shapes = decoder.param_shapes(cfg)
  parts = jax.tree.map(lambda s, place: place.shard_shape(s.shape), shapes, shardings)
  leaves = jax.tree.leaves(parts, is_leaf=lambda x: isinstance(x, tuple))
  return 3 * 4 * sum(int(jnp.prod(jnp.array(shape))) for shape in leaves)


def test_the_quick_start(tmp_path):
  out, f = planned(tmp_path, "--topology", "cpu:8")
  m = f["memory"]
  # Every parameter is split over the eight devices.
  assert f["parameters"] == 4_008_384 and m["params"] == 4_008_384 * 4 // 8
  assert m["optimizer"] == 2 * m["params"] + 4  # and the number of the step
  assert m["batch"] == 6 * 1 * 256 * 4
  assert m["arguments"] == m["params"] + m["optimizer"] + m["batch"]
  assert m["peak"] == m["arguments"] + m["temporaries"] and m["temporaries"] > m["params"]
  assert (m["usable"], m["fits"], f["estimate"]) == (None, None, None)
  assert f["mesh"] == {"data": 1, "fsdp": 8, "expert": 1, "context": 1, "tensor": 1}
  assert f["rows_per_device"] == 1 and f["mean_segment"] == 256
  assert f["written_flops"] > f["useful_flops"] > 6 * 2e6 * 8 * 256
  kinds = {c["kind"]: c for c in f["collectives"]}
  # Each layer's weights are gathered once: it keeps all for the backward pass, and has no loop on a CPU.
  assert kinds["all-gather"]["payload_bytes"] == pytest.approx(4 * 4_008_384, rel=0.01)
  assert f["unknown_loops"] == 0
  assert "nothing was run" in out and "optimizer state" in out and "all-gather" in out


@pytest.mark.parametrize(
  "variant, mesh",
  [
    ("gemma3_text", ["--config.mesh.tensor=2"]),
    ("qwen3_moe", ["--config.mesh.expert=2", "--config.batch.microbatches=2"]),
  ],
)
def test_other_families(tmp_path, variant, mesh):
  path = write_model(tmp_path, variant)
  args = ["--model", path, "--topology", "cpu:4", "--rows_per_device", 2, *mesh]
  _out, f = planned(tmp_path, *args, "--config.batch.max_length=32")
  cfg = from_hf(json.loads(path.read_text()))
  sizes = dict(item.removeprefix("--config.mesh.").split("=") for item in mesh if "mesh" in item)
  built = meshes.make_mesh(
    **{k: int(v) for k, v in sizes.items()}, devices=open_topology("cpu:4").devices
  )
  m = f["memory"]
  assert 0 <= m["params"] + m["optimizer"] - state_bytes(cfg, built) <= 4
  assert m["arguments"] == m["params"] + m["optimizer"] + m["batch"]
  assert f["rows"] == 2 * meshes.batch_shards(built) * f["microbatches"]
  assert f["family"] == variant and f["parameters"] == decoder.count_params(cfg)
  assert f["collectives"]


@pytest.mark.slow
def test_search(tmp_path, monkeypatch):
  """Of a compiler whose peaks are known: remat none 100 a row, the others less, in MiB, and 200 always."""
  per_row = {"none": 100, "dots_saved": 60, "attention_saved": 40, "full": 30}
  asked = []

  def compile_step(c, cfg, mesh, topology, num_languages, max_segments=0):
    asked.append((c.model.remat, c.batch.rows))
    peak = (200 + per_row[c.model.remat] * c.batch.rows // 8) * 2**20
    memory = compiling.Memory(params=1, optimizer=2, batch=3, arguments=6, temporaries=peak - 6, peak=peak)  # fmt: skip
    return compiling.Compiled(memory, "", compiling.written_flops(c, cfg, mesh), 1.0)

  monkeypatch.setattr(planner, "compile_step", compile_step)
  out, f = planned(tmp_path, "--topology", "cpu:8", "--memory_gib", 0.5, "--search")
  found = {of["remat"]: of["rows_per_device"] for of in f["search"]["largest"]}
  assert found == {
    "none": 3,
    "dots_saved": 5,
    "attention_saved": 7,
    "full": 10,
  }  # (512 - 200) / 100, 60, ..
  assert next(iter(found)) == "none" and all(of["proven"] for of in f["search"]["largest"])
  assert f["search"]["compilations"] == len(asked) == len(set(asked)) <= 20
  assert (
    "model.remat=none with batch.rows=24" in out and "model.remat=full with batch.rows=80" in out
  )
  assert f["memory"]["fits"] is True


@pytest.mark.slow
def test_search_compiles_for_real(tmp_path):
  args = ["--topology", "cpu:2", "--memory_gib", 0.1, "--search", "--max_compilations", 4]
  _out, f = planned(
    tmp_path, *args, "--model", write_model(tmp_path, "llama"), "--config.batch.max_length=32"
  )
  tried = f["search"]["tried"]
  assert len(tried) == f["search"]["compilations"] == 4
  by_rows = {(t["remat"], t["rows_per_device"]): t["peak"] for t in tried}
  assert len(by_rows) == 4 and len({peak for peak in by_rows.values()}) == 4
  assert all(t["fits"] == (t["peak"] <= 0.1 * 2**30) for t in tried)


def test_segments_make_attention_cheaper_and_neither_data_nor_workdir_is_needed(tmp_path):
  config = tmp_path / "bare.py"
  config.write_text(
    "from configs import base\ndef get_config():\n  c = base.get_config()\n  c.batch.max_length = 64\n  return c\n"
  )
  path = write_model(tmp_path, "llama")
  args = ["--topology", "cpu:1", "--model", path, "--mean_segment", 24]
  _, f = planned(tmp_path, *args, config=config)
  cfg = from_hf(json.loads(path.read_text()))
  pairs = 64**2 - 2 * 24**2 - 16**2  # 24, 24 and 16 in place of 64
  attention = 6 * cfg.num_layers * cfg.num_heads * cfg.head_dim * pairs
  assert f["useful_flops"] == 8 * (step_flops(cfg, [64]) - attention)
  assert f["dtype"] == "bfloat16" and f["rows"] == 8


def test_segments_are_those_of_the_workdirs_plan(tmp_path, monkeypatch):
  monkeypatch.setattr(
    planner, "compile_step", lambda *args, **kw: compiling.Compiled(NOTHING, "", 1.0, 1.0)
  )
  args = ["--topology", "cpu:1", "--config.batch.max_length=64", "--config.batch.rows=2"]
  _, whole = planned(tmp_path, *args)
  assert (whole["mean_segment"], whole["segment_planned"], whole["tokens"]) == (64, False, 128)
  ledger = {"en": {"tokens": 900, "examples": 30}, "sw": {"tokens": 100, "examples": 10}}
  (tmp_path / "data_plan.json").write_text(json.dumps({"languages": ledger}))
  out, f = planned(tmp_path, *args)
  assert (f["mean_segment"], f["segment_planned"]) == (25, True) and "25 tokens, as planned" in out
  assert f["useful_flops"] < whole["useful_flops"]
  _, stated = planned(tmp_path, *args, "--mean_segment", 10)
  assert (stated["mean_segment"], stated["segment_planned"]) == (10, False)
  (tmp_path / "data_plan.json").write_text("[]")
  error = refused("--config", QUICKSTART, *args, f"--config.workdir={tmp_path}")
  assert "data_plan.json" in error and "--mean_segment" in error


def test_a_row_that_is_not_packed_is_one_example_and_padding():
  assert planner.row_segments(64, 24, packed=True) == [24, 24, 16]
  assert planner.row_segments(64, 24, packed=False) == [24]
  assert planner.row_segments(64, 0, packed=True) == planner.row_segments(64, 99, packed=False) == [64]  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_every_family(family):
  cfg = from_hf(families.keys_of(families.one_of(family), families.IDS))
  f = planner.make_plan(config_of_tiny_rows(), cfg, open_topology("cpu:4"))
  m = f["memory"]
  assert m["arguments"] == m["params"] + m["optimizer"] + m["batch"]
  assert f["family"] == family and f["unknown_loops"] == 0 and f["collectives"]
  assert f["written_flops"] > f["useful_flops"] > 0


def test_parameters_that_stay_whole_are_named():
  """A width of 36 over 8 devices: four of them split it, so two copies of each part."""
  cfg = from_scratch(dict(d_model=36, num_layers=2, num_heads=2, d_ff=48, tied=True), 64)
  c = load_config(str(QUICKSTART), ["--config.batch.max_length=16"])
  f = planner.make_plan(c, cfg, open_topology("cpu:8"))
  (line,) = f["advice"]
  assert "mesh.fsdp=8 does not divide the width 36" in line
  assert "mesh.fsdp=4 with mesh.data=2" in line


@pytest.mark.slow
def test_a_mesh_over_slices_is_advised_on():
  cfg = from_hf(families.keys_of("llama", families.IDS))
  c = load_config(str(QUICKSTART), [])
  topology = dataclasses.replace(open_topology("cpu:4"), groups=(0, 0, 1, 1))
  f = planner.make_plan(c, cfg, topology)
  assert any("mesh.data=2" in line for line in f["advice"])
  assert sum(c["far_bytes"] for c in f["collectives"]) > 0
  c.mesh.data = 2
  kept = planner.make_plan(c, cfg, topology)
  assert not kept["advice"]
  gathers = [c for c in kept["collectives"] if c["kind"] == "all-gather"]
  assert gathers and all(c["far_bytes"] == 0 for c in gathers)


@pytest.mark.parametrize("remat", ["none", "attention_saved"])
def test_gradients_go_back_to_their_shards(remat):
  """Two copies of four parts: four devices add up a layer's gradient and keep a part each, and only parts are
  added up between the copies. Summed whole over all eight it would be four times as much for that."""
  cfg = from_hf(families.keys_of("llama", families.IDS))
  c = load_config(
    str(QUICKSTART),
    [
      "--config.batch.max_length=32",
      "--config.mesh.data=2",
      f"--config.model.remat={remat}",
    ],
  )
  topology = open_topology("cpu:8")
  mesh = meshes.make_mesh(**c.mesh, devices=topology.devices)
  found = read_traffic(compiling.compile_step(c, cfg, mesh, topology, 1).text, topology.groups)
  has_loop = remat != "none"  # over layers
  sums = [r for r in found.collectives if r.kind == "all-reduce" and (r.in_loop or not has_loop)]
  shapes = decoder.param_shapes(cfg)
  weights, total = (
    4 * sum(s.size for s in jax.tree.leaves(tree)) for tree in (shapes["blocks"], shapes)
  )
  payload = {n: sum(r.times * r.payload for r in sums if r.size == n) for n in (2, 4, 8)}
  # Tables are added up as parts too, and scattered by a reduce-scatter before.
  assert payload[4] == pytest.approx(weights, rel=0.02)
  assert payload[2] == pytest.approx((weights if has_loop else total) / 4, rel=0.02)
  assert payload[8] < 0.02 * weights  # norms


def test_gathers_that_became_sums_are_told():
  """As on v5p:8x8x8, where 512 parts of a width of 4,096 are narrower than the compiler likes."""
  cfg = from_scratch(dict(d_model=32, num_layers=2, num_heads=2, d_ff=48, tied=True), 64)
  c = load_config(str(QUICKSTART), [])
  topology = dataclasses.replace(open_topology("cpu:8"), platform="tpu")
  mesh = meshes.make_mesh(devices=topology.devices)
  f = {"memory": {"fits": True}, "collectives": [{"kind": "all-reduce"}]}
  (line,) = planner._advice(c, cfg, topology, mesh, f)
  assert "mesh.fsdp=8" in line and "twice the traffic" in line
  f["collectives"].append({"kind": "all-gather"})
  assert planner._advice(c, cfg, topology, mesh, f) == []


def test_what_a_tpu_compiler_says_of_too_much():
  sizes = {"params": 2**30, "optimizer": 2**31, "batch": 0}
  said = (
    "RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm. Used 29.50G of 15.75G hbm. Exceeded"
  )
  memory = refused_memory(said, sizes)
  assert (memory.peak, memory.temporaries) == (29.5 * 2**30, 26.5 * 2**30)
  said = "RESOURCE_EXHAUSTED: the total memory required for HLO temporaries (38.00G) exceeds available HBM (15.75G)."
  memory = refused_memory(said, sizes)
  assert (memory.peak, memory.temporaries) == (41 * 2**30, 38 * 2**30)
  assert refused_memory("RESOURCE_EXHAUSTED: so it is", sizes).peak == 0


@pytest.mark.parametrize(
  "args, parts",
  [
    (["--topology", "v5q:4x4"], ["v5q:4x4", "v5e:4x4", "--topology list"]),
    (["--topology", "cpu:8", "--config.mesh.tensor=3"], ["does not fit 8 devices", "mesh.tensor"]),
    (["--topology", "cpu:8", "--config.batch.rows=6"], ["batch.rows 6", "8 shards"]),
    (["--topology", "cpu:8", "--search"], ["memory of cpu:8", "--memory_gib"]),
    (["--topology", "cpu:8", "--model", "nowhere/model"], ["nowhere/model", "fetches nothing"]),
    (["--topology", "cpu:8", "--model", "../a b"], ["../a b", "fetches nothing"]),
    (["--topology", "cpu:8", "--rows_per_device", "-1"], ["--rows_per_device is -1"]),
    (["--topology", "cpu:8", "--config.model.remat=some"], ["model.remat", "attention_saved"]),
  ],
)
def test_mistakes_are_explained(args, parts):
  error = refused("--config", QUICKSTART, *args)
  for part in parts:
    assert part in error


def test_a_config_is_needed_but_for_the_list():
  assert "--config is missing" in refused("--topology", "cpu:8")
  code, out, _ = commands.here(plan, "--topology", "list")
  assert code == 0 and "v5p:8x8x8" in out and "h100:256" in out


@pytest.mark.slow
def test_a_process_of_its_own_has_the_devices_it_wants():
  code, out, err = commands.ended(
    commands.start("plan", "--config", QUICKSTART, "--topology", "cpu:16", "--rows_per_device", "1")
  )
  assert code == 0, err
  assert "fsdp=16" in out


def test_what_rests_in_the_hosts_memory_is_not_the_devices(tmp_path):
  """The same state, elsewhere: off the arguments and off the peak; this compiler does not tell, so by arithmetic."""
  path = write_model(tmp_path, "llama")
  args = ["--topology", "cpu:4", "--model", path, "--config.batch.max_length=32"]
  (_, here), (out, there) = (
    planned(tmp_path, *args, f"--config.optimizer.offload={offload}") for offload in (False, True)
  )
  a, b = here["memory"], there["memory"]
  assert a["host"] == 0 and b["host"] > 0 and b["optimizer"] == 4  # the number of the step
  assert a["optimizer"] == b["optimizer"] + b["host"]
  assert b["arguments"] == a["arguments"] - b["host"] == b["params"] + b["optimizer"] + b["batch"]
  # What comes to the device and goes back is among the temporaries.
  aligned = 2**10  # JAX 0.11 needs 184 bytes more
  assert a["temporaries"] <= b["temporaries"] <= a["temporaries"] + 3 * b["host"] + aligned
  assert b["peak"] == b["arguments"] + b["temporaries"]
  assert "in the host's memory, for each of its devices" in out
  assert any("by arithmetic" in line for line in there["advice"]) and not here["advice"]


def test_most_of_a_streamed_state_at_once_is_a_layer_or_a_table():
  """Two moments in float32: of a layer 2 * 4 * its weights, of the table 2 * 4 * 640 * 16; coming and going."""
  sizes = dict(d_model=16, num_layers=3, num_heads=2, num_kv_heads=2, d_ff=32, tied=True)
  layer = 4 * 16 * 16 + 3 * 16 * 32 + 2 * 16
  for vocab, at_once in ((64, layer), (640, 640 * 16)):
    cfg, mesh = from_scratch(sizes, vocab), meshes.make_mesh(devices=jax.devices()[:1])
    c = config_of_tiny_rows()
    c.optimizer.offload = True
    stepping = make_stepping(c, cfg, mesh, total_steps=9, num_languages=1)
    found = compiling.streamed_bytes(stepping.state_shapes().opt_state, cfg)
    assert found == 2 * 2 * 4 * at_once
