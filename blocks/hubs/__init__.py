"""Places that models come from: one protocol a file. What a hub says is checked here before anybody believes it."""
