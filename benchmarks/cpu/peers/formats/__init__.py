"""Checkpoints in the formats of other engines; each runs with the interpreter of its engine.

python -m benchmarks.cpu.peers.formats.NAME FROM TO VARIANT
"""
