"""A recipe with lists becomes runs, and a store keeps each of them under its content address."""

from trtq.callable_module import share_name_with_verb_

share_name_with_verb_(__name__)
