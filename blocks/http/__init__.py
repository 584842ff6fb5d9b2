"""How foreign servers are spoken to: one client, and one set of rules for addresses, redirects, statuses and waits."""
