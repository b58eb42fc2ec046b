"""Which layers bear fewer bits, and what to give each of them."""
