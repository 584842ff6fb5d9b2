"""What flows and tasks need of Prefect, and of time: retries, waits, their own run, a person who is asked."""
