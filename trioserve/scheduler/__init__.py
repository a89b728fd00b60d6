"""Decides what every step computes: the waiting line, the token budget, KV blocks. Sync and total: no await in here."""
