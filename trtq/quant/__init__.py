"""Number formats, the fake-quantize op, calibrators, placement rules, encodings, simulation."""
