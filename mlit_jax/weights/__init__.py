"""Hugging Face names and files, in and out."""
