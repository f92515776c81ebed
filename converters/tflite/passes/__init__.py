"""Passes that rewrite a TFLite graph into a cheaper one, each bit-identical in float.

The exception is `hard_swishes`: HARD_SWISH rounds once where three operators round three times.
"""
