"""Runs sequences: admission, the step loop, supervision of the works, the state of the server."""
