"""Replicas and servers as processes of this machine. What is started here is found again, and ended, by its mark."""
