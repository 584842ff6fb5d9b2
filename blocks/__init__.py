"""The vendors that Skyferry acts through: one file each, settings plus a few verbs."""
