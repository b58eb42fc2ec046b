"""The records of commands: what they return and write as JSON, and what reports read."""
