"""Where images come from, how they become tensors, and what is counted on outputs."""
