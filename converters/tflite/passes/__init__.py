"""Passes that rewrite a TFLite graph to a faster one with bit-identical results in float.

The exception is `hard_swishes`: HARD_SWISH rounds once where three operators round three times.
"""
