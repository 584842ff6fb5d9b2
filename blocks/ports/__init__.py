"""What Skyferry asks of the world: small protocols, and the frozen values that cross them, one port a file.

Every verb raises `Unavailable` where trying again may help and `Refused` where it will not; see `blocks.errors`.
"""
