"""The verbs on objects: quantize, evaluate; nothing here reads or writes files on its own."""
