"""What people read in the Prefect UI: data in, pages and tables out, one file a subject.

What is only shown decides nothing: `artifacts` alone speaks to the server, and no error or wait there reaches a run.
"""
