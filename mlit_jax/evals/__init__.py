"""Likelihood, decoding, language fidelity and their statistics."""
