"""The published experiments as lists of runs, and what came of them."""
