"""trioserve: an OpenAI-compatible server for large language models on Trio.

``docs/architecture.md`` draws the rooms of this package and who may know whom; ``docs/a-request.md`` walks one
request through them.
"""

__version__ = "0.1.0"
