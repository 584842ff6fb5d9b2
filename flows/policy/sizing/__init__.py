"""What a model needs of a machine: memory, cache, disk, cards. A number that is not known is a bound that says so."""
