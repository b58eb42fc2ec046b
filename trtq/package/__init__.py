"""Folders that a consumer starts from: Triton, DeepStream, ONNX Runtime, programs of their own."""

from trtq.callable_module import share_name_with_verb_

share_name_with_verb_(__name__)
