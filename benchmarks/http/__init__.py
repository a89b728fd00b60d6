"""What HTTP costs: CPU per streamed event, per small request, and what is left of the engine's speed."""
