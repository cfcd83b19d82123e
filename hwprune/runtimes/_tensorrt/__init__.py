"""TensorRT on an NVIDIA GPU: CUDA by ctypes, building, running, timing. Standard library only, Python 3.8 or later."""
