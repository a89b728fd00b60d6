"""One entry point per claim in docs/performance.md, each against a named peer or limit."""
