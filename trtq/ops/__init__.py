"""The table of operators: one row an operator, whichever file or graph it comes from.

A row says what an operator is called in ATen and in ONNX, which of its operands can be quantized,
what else is true of it, what it costs and which function writes it. Naming, placement, methods,
counts, export and the ONNX walker ask here, for FX nodes and ONNX nodes alike. Neither the table
nor a question about an ONNX node imports torch.
"""

from trtq.ops.lookup import as_written, form_of, kind, of, onnx_types, row_function
from trtq.ops.row import Op, Operand, Role, Trait

__all__ = [
    "Op",
    "Operand",
    "Role",
    "Trait",
    "as_written",
    "form_of",
    "kind",
    "of",
    "onnx_types",
    "row_function",
]
