"""Building and measuring on a device over SSH."""

from trtq.callable_module import share_name_with_verb_

share_name_with_verb_(__name__)
