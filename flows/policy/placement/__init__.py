"""Where replicas go: which offers fit, in which order they are tried, and how they are spread."""
