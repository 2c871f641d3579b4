"""Headers of weight files: safetensors, GGUF, ONNX."""
