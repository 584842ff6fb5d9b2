"""How many tasks may do the same at once, over all runs of a Prefect server.

Prefect keeps such limits by the tags of tasks. Where it knows none of that tag, nothing is limited; a person changes
one with `prefect concurrency-limit create TAG NUMBER`.
"""

HUB = "skyferry-hub"
"""Asks a hub, or copies a file from one: hubs count requests over all runs, and answer 429 to what is too much."""
STOCK = "skyferry-stock"
"""Asks clouds what they have in stock: some give only so many scores a day, and the same answer serves the next."""

AT_ONCE = {HUB: 16, STOCK: 1}
"""What `skyferry up` begins with: two mirrors with all their files, and one survey of the clouds."""
