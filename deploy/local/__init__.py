"""The embedded stack behind `make run`: NATS and Postgres out of wheels, every service, one terminal. The tests use
the same parts."""
