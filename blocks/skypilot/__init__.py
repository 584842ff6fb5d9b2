"""Rented machines, and what can be rented, by SkyPilot. Nothing outside this folder knows its words."""
