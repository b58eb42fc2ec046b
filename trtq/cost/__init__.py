"""What a model costs: multiply-accumulates, values read and written, bytes, BitOps, energy, latency. Counted, never measured."""

from trtq.room import share_name_with_verb_

share_name_with_verb_(__name__)
