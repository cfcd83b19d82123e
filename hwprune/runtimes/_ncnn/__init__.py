"""ncnn: a network in its two files, written from the ONNX graph."""
