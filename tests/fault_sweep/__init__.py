"""One fault at a time, and what comes of it: the tables of docs/reliability.md. See __main__."""
