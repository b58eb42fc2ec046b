"""The cost of a model, counted and never measured.

Costs are multiply-accumulates, values read and written, bytes, BitOps, energy and latency.
"""

from trtq.callable_module import share_name_with_verb_

share_name_with_verb_(__name__)
