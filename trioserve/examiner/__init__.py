"""Tries grammars out in processes of its own, which are killed when one takes too much."""
