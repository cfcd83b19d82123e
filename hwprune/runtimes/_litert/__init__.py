"""LiteRT: a network as its file, written from the ONNX graph."""
