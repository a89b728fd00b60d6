"""Compiled helpers: the sources are in ``_speedups/`` at the top of the repository, here are their typed faces."""
