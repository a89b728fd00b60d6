"""The parts of benchmarks/serve.py: a client that costs little, the load it makes, and the report on it."""
