"""The verbs: each takes a frozen spec and returns a record."""
