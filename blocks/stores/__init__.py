"""Buckets: one vendor a file, each keeping the port of a store. A mirror lies in one as `mirrors` says."""
