"""Building and measuring on a device over SSH."""

from trtq.room import share_name_with_verb_

share_name_with_verb_(__name__)
