"""Multilingual instruction tuning in JAX: exact language ratios, every language watched, weights handed back intact."""

import time

__version__ = "0.1.0"
STARTED = time.perf_counter()  # before JAX is imported, which takes seconds
