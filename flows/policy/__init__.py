"""Decisions: pure functions of data, with no Prefect, SDK, clock, randomness or environment."""
