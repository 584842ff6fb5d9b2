"""What clouds say of their stock of preemptible machines: one cloud a file."""
