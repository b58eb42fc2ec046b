"""ONNX files as modules of torch: the other door into the same graph."""

from trtq.reader.module import OnnxModule
from trtq.reader.port import Port
from trtq.reader.read import read_onnx

__all__ = ["OnnxModule", "Port", "read_onnx"]
