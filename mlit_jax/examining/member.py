"""One of several processes that `network` starts: `python -m mlit_jax.examining.member [SECONDS]`.

With SECONDS it joins the described cluster, waits so long for the others, and leaves; no device is touched.
"""

from __future__ import annotations

import json
import sys

from mlit_jax import preflight, runtime


def main() -> None:
  """Join, compare, add up, say how long it took."""
  if len(sys.argv) > 1:
    runtime.start(rendezvous_seconds=int(sys.argv[1]))
    return
  runtime.start()
  line, _ = preflight.preflight()
  print(json.dumps({"line": line}))


if __name__ == "__main__":
  sys.exit(runtime.run_main(main))
