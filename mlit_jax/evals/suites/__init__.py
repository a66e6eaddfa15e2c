"""Suites: questions in many languages as data, and one function that judges an answer."""
