"""Writes a TFLite graph as ONNX: rules by family, in the layout that each operator needs."""
