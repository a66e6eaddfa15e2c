"""Run configurations: each file is a diff on base.py."""
