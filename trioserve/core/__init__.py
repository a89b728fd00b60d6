"""The nouns that every room may use: standard library and msgspec only, no behaviour beyond their own invariants."""
