"""One graph for calibration, search, training and export: capture, normalise, name."""
