"""Multilingual instruction tuning in JAX: exact language ratios, every language watched, weights handed back intact."""

__version__ = "0.1.0"
