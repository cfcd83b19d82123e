"""The dense network as ONNX, exported once and cut at any width: export -> clean -> label -> cut -> fold -> bytes."""
