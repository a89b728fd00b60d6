"""trioserve beside the engines that one would use instead of it: ``python -m benchmarks.cpu.peers``.

Each engine lives in a process of its own with an interpreter of its own, so that their libraries do not meet.
``face.py``, ``child.py``, ``drivers`` and ``formats`` run there: they know the standard library and the one engine.
"""
