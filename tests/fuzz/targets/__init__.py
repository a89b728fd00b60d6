"""What is fuzzed: each module has a ``check`` that raises when bytes break a promise, and seeds to begin with."""
