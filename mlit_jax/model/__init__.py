"""The decoder: its sizes, layers, attention and parameters."""
