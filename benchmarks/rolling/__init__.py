"""Replicas that are restarted in turn while clients ask: what is lost, cut, or said twice."""
