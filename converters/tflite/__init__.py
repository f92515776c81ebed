"""ONNX to TFLite, without TensorFlow: a graph of its own, and what reads, lowers and writes it."""
