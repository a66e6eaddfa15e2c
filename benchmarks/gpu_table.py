"""The lines of the table of benchmarks/gpu.py: what, figure, goal."""

from __future__ import annotations

GOALS = {
  "0.5B": "130,000 tokens/s", "1.2B": "60,000 tokens/s, MFU 50 %", "3B": "24,000 tokens/s", "8B": "10,000 tokens/s",
}  # fmt: skip
_RATIO = "ours / torch at least 1.3 at no more memory"


def table_rows(case: str, found: dict) -> list[tuple[str, str, str]]:
  if "reason" in found:
    return [("all", reason(found), "")]
  return LINES[case](found)


def reason(found: dict) -> str:
  return f"not measured: {found['reason']}".replace("|", "/").replace("\n", " ")


def speed(found: dict) -> str:
  if "reason" in found:
    return reason(found)
  mfu = f", MFU {found['mfu']:.1%}" if found.get("mfu") else ""
  how = ", ".join(str(found[k]) for k in ("remat", "attention", "loss_by") if k in found)
  return (
    f"{found['tokens_per_second']:,.0f} tokens/s, {found['trained_tokens_per_second']:,.0f} trained{mfu}, "
    f"{found['peak_gib']:.1f} GiB, {found.get('rows', '?')} rows, {how}"
  )


def _step(found: dict) -> list:
  return [(name, speed(found[name]), goal) for name, goal in GOALS.items() if name in found]


def _torch(found: dict) -> list:
  rows = []
  for name in (n for n in GOALS if n in found):
    rows.append((name, speed(found[name]), ""))
    for one in found[name].get("tried", []):
      how = ", ".join(
        f"{k} {one[k]}" for k in ("checkpointing", "loss") if isinstance(one.get(k), (str, bool))
      )
      rows.append((f"{name}, {one['attention']} {how}", speed(one), ""))
    if "ours_over_torch" in found[name]:
      of = found[name]
      figure = f"{of['ours_over_torch']:.2f} × at {of['our_memory_over_torch']:.2f} × the memory"
      rows.append((f"{name}, ours / the best of torch", figure, _RATIO))
  return rows


def _attention(found: dict) -> list:
  rows = []
  for name in (n for n in found if n not in ("fastest", "seconds", "date")):
    of = found[name]
    if "reason" in of:
      rows.append((name, reason(of), ""))
      continue
    numbers = of["numerics"]
    error = max(numbers["error"].values())
    figure = f"error {error:.1e}, largest leak {numbers['largest_leak']:.1e}"
    figure += (
      ", the same bits each time"
      if numbers["repeats_bitwise"]
      else ", bits differ from time to time"
    )
    rows.append((name, figure, "no leak"))
    for shape in of["shapes"]:
      at = f"{name}, T {shape['length']}, head {shape['head_dim']}"
      if "reason" in shape:
        rows.append((at, reason(shape), ""))
      else:
        rows.append(
          (
            f"{at}, mean segment {shape['mean'] or 'the row'}",
            f"{shape['ms']:.2f} ms, {shape['tflops']:.1f} TFLOP/s, {shape['planned_gib']:.2f} GiB",
            "",
          )
        )
  wins: dict[str, int] = {}
  for of in found["fastest"].values():
    wins[of["backend"]] = wins.get(of["backend"], 0) + 1
  fastest = ", ".join(f"{k} in {v}" for k, v in sorted(wins.items(), key=lambda x: -x[1]))
  return rows + [
    ("fastest", f"{fastest or 'none'} of {len(found['fastest'])} shapes", "the default")
  ]


def _numerics(found: dict) -> list:
  gradient, resume = found["gradient"], found["resume"]
  first = reason(gradient) if "reason" in gradient else (
    f"loss differs by {gradient['loss_difference']:.1e}, gradients by {gradient['largest_gradient_difference']:.1e}"
  )  # fmt: skip
  second = reason(resume) if "reason" in resume else (
    f"{resume['arrays_that_differ']} arrays differ, losses {'equal' if resume['losses_equal'] else 'differ'}, "
    f"resumed at step {resume['resumed_at']}, {resume['flags']}"
  )  # fmt: skip
  return [("float32 gradient beside CPU", first, ""), ("killed and resumed", second, "0 differ")]


def _start(found: dict) -> list:
  return [
    (f"first step, {name} cache", f"{found[name]['seconds']:.1f} s: {found[name]['shares']}", goal)
    for name, goal in (("cold", ""), ("warm", "60 s"))
  ]


def _unpacked(found: dict) -> list:
  rows = [(name, speed(found[name]), "") for name in ("packed", "unpacked")]
  if "packed_over_unpacked" in found:
    rows.append(
      ("packed / unpacked", f"{found['packed_over_unpacked']:.2f} × trained tokens/s", "reported")
    )
  return rows


def _loader(found: dict) -> list:
  figure = f"a batch {found['batch_ms']:.2f} ms ({found['batch_ms_through_loader']:.2f} through the loader), "
  figure += f"{found['share']:.2%} ({found['share_through_loader']:.2%}) of a step of {found['step_ms']:.0f} ms"
  return [("0.5B", figure, "0.5 % of a step")]


LINES = {
  "step": _step, "torch": _torch, "attention": _attention, "numerics": _numerics, "start": _start,
  "unpacked": _unpacked, "loader": _loader,
}  # fmt: skip
