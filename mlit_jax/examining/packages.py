"""Python and packages, by what is installed; nothing of them is imported."""

from __future__ import annotations

import glob
import importlib.metadata
import platform
import re
from collections.abc import Callable, Iterable, Mapping

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.version import Version

from mlit_jax.examining.finding import Finding, ok, warning, wrong

OURS = "mlit_jax"
SHOWN = ("jax", "flax", "optax", "orbax-checkpoint", "grain", "tokenizers", "numpy")
PLUGINS = re.compile(r"jax-(cuda|rocm).*|libtpu")
OPTIONAL = {  # name of the distribution: what it is for, how to get it
  "tokamax": "attention kernels, extra tokamax",
  "torch": "comparing an export, extra torch",
  "transformers": "comparing an export, extra torch",
  "fasttext-predict": "fastText detectors, extra fasttext",
  "datasets": "sources hf:, extra hub",
  "lm_eval": "evaluate --harness, extra harness",
  "wandb": "log.trackers",
  "trackio": "log.trackers",
}
Versions = Callable[[str], str | None]


def installed(name: str) -> str | None:
  """Its version; None: it is not there."""
  try:
    return importlib.metadata.version(name)
  except importlib.metadata.PackageNotFoundError:
    return None


def python() -> list[Finding]:
  """This Python, against what our package asks for."""
  here = platform.python_version()
  wanted = ""
  if installed(OURS):
    wanted = importlib.metadata.metadata(OURS).get("Requires-Python") or ""
  return check_python(here, wanted)


def check_python(here: str, wanted: str) -> list[Finding]:
  if not SpecifierSet(wanted).contains(here, prereleases=True):
    return [
      wrong("Python", f"{here}, and {wanted} is needed", "Make the environment with another.")
    ]
  return [ok("Python", here)]


def requirements() -> list[Finding]:
  """What our package's metadata ask for."""
  if not installed(OURS):
    return [
      warning(
        "requirements", f"{OURS} is not installed, so its ranges are not known", "pip install -e ."
      )
    ]
  return check_requirements(importlib.metadata.requires(OURS) or [], installed)


def check_requirements(asked: Iterable[str], versions: Versions) -> list[Finding]:
  """One line for all that are as they should be, and one for each that is not. Extras are not asked for."""
  needed = [Requirement(text) for text in asked]
  needed = [r for r in needed if r.marker is None or r.marker.evaluate({"extra": ""})]
  faults = [_check(r, versions(r.name)) for r in needed]
  faults = [f for f in faults if f]
  shown = ", ".join(f"{name} {versions(name)}" for name in SHOWN if versions(name))
  return faults or [ok("requirements", f"{len(needed)} as asked for: {shown}")]


def jax_and_jaxlib() -> list[Finding]:
  """Whether the two are of one release, and the plugins for accelerators of theirs."""
  if not installed("jax"):
    return []  # said as a requirement
  return [
    *check_jaxlib(installed("jax"), installed("jaxlib")),
    *check_plugins(importlib.metadata.requires("jax") or [], installed),
    *check_accelerators(installed, {"NVIDIA GPU": "/dev/nvidia[0-9]*", "TPU": "/dev/accel[0-9]*"}),
  ]


def check_jaxlib(jax: str, jaxlib: str | None) -> list[Finding]:
  if not jaxlib:
    return [wrong("jaxlib", f"missing beside jax {jax}", f"pip install jaxlib=={jax}")]
  if Version(jax).release[:3] != Version(jaxlib).release[:3]:
    return [wrong("jaxlib", f"{jaxlib} beside jax {jax}", f"pip install jax=={jax} jaxlib=={jax}")]
  return [ok("jaxlib", f"{jaxlib}, as jax")]


def check_plugins(asked_by_jax: Iterable[str], versions: Versions) -> list[Finding]:
  """Installed plugins against what JAX's own extras ask for; JAX leaves out one that does not fit."""
  found, seen = [], {}
  for text in asked_by_jax:
    r = Requirement(text)
    if PLUGINS.fullmatch(r.name) and r.name not in seen and versions(r.name):
      seen[r.name] = versions(r.name)
      if not r.specifier.contains(seen[r.name], prereleases=True):
        said = f"{r.name} {seen[r.name]} beside a JAX that asks for {r.specifier}"
        found.append(wrong("plugin", said, f"pip install '{r.name}{r.specifier}'"))
  kinds = {name.split("-")[1] for name in seen if name.startswith("jax-cuda")}
  if len(kinds) > 1:
    said = f"{' and '.join(sorted(kinds))} are both installed, and one hides the other"
    found.append(warning("plugin", said, "Uninstall the one that the driver does not fit."))
  shown = ", ".join(f"{name} {version}" for name, version in seen.items())
  return found or [ok("plugin", shown or "none: CPU only")]


def check_accelerators(versions: Versions, places: Mapping[str, str]) -> list[Finding]:
  """Hardware that no plugin is installed for."""
  cuda = ("jax-cuda12-plugin", "jax-cuda13-plugin")
  needed = {"NVIDIA GPU": (cuda, "gpu"), "TPU": (("libtpu",), "tpu")}
  found = []
  for kind, place in places.items():
    names, extra = needed[kind]
    if glob.glob(place) and not any(versions(name) for name in names):
      said = f"there is a {kind} ({place}) and no plugin for it: JAX will use the CPU"
      found.append(warning("plugin", said, f"pip install 'mlit_jax[{extra}]'"))
  return found


def optional(versions: Versions = installed) -> list[Finding]:
  """For information: what is missing here is missed only by what it is for."""
  here = [f"{name} {versions(name)}" for name in OPTIONAL if versions(name)]
  gone = [f"{name} ({use})" for name, use in OPTIONAL.items() if not versions(name)]
  text = ", ".join(here) or "none"
  return [ok("optional packages", f"{text}; not here: {', '.join(gone)}" if gone else text)]


def _check(r: Requirement, version: str | None) -> Finding | None:
  remedy = f"pip install '{r.name}{r.specifier}'"
  if version is None:
    return wrong(f"package {r.name}", "not installed", remedy)
  if not r.specifier.contains(version, prereleases=True):
    return wrong(f"package {r.name}", f"{version}, and {r.specifier} is needed", remedy)
  return None
