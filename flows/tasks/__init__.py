"""One repeatable act on one port each, as a Prefect task: what it did once, doing it again leaves."""
