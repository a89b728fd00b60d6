"""Faults against the real server, and what must hold after each; `python -m tests.chaos` is the long form."""
