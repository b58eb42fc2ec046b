"""What a model costs: multiply-accumulates, values read and written, bytes, BitOps, energy. Counted, never measured."""
