"""Attention of packed rows: one interface, several backends, and the choice between them."""
