"""Starts the ranks, submits StepPlans to them and yields their StepResults."""
