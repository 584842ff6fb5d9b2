"""What clouds say of their stock of machines: one cloud a file, and all of them in `sources`."""
