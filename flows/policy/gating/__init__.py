"""Evidence in, ruling out: whether a candidate gets more of the traffic, waits, or goes back."""
