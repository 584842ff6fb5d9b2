"""The ledger and its steps, and what follows from it: who runs, who is stopped, who may act."""
