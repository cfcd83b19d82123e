"""The ONNX graph as plain nodes, for the writers of other formats."""
