"""Small models and images for tests, trtq's own and its users'."""
