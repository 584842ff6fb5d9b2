"""Evidence in, ruling out: whether a candidate gets more of the traffic, waits, or is rolled back.

Read `limits`, `measures`, `e_values`, `alpha`, `judge`, `evidence`, `decide`, in this order, with docs/gates.md.
"""
