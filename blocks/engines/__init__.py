"""Engines, asked directly and past the gateway: how they answer, and what a good answer is."""
