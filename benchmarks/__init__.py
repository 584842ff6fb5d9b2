"""Each claim of speed or cost as a command that anyone can run."""
