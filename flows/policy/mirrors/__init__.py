"""Which files of a model are mirrored, and what of a store is right, wrong or needed no more."""
