"""Which layers bear fewer bits, and what to give each of them."""

from trtq.room import share_name_with_verb_

share_name_with_verb_(__name__)
