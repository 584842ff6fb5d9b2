"""Data in, markdown out: what people read in the UI. What is only shown decides nothing."""
