"""Commands in other processes and on other machines, and the store that keeps their files."""
