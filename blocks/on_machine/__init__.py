"""Programs that are sent to a rented machine and run there; no block among them. They import nothing of Skyferry."""
