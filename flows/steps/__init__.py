"""What flows share: placing replicas, holding a stage, going back. A step calls tasks; no person runs it by itself."""
