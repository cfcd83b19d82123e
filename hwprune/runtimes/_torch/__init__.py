"""Torch as a runtime: the ONNX graph as a torch module, and sessions on it. ExecuTorch begins here too."""
