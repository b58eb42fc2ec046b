"""``trtq demo``: trained models of other people, from PyPI, to INT8 engines without a GPU."""
