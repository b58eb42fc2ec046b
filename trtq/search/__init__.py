"""Which layers tolerate fewer bits, and which width each of them gets."""

from trtq.callable_module import share_name_with_verb_

share_name_with_verb_(__name__)
