"""Convert, measure, choose and bundle a neural network for the hardware it will run on."""

__version__ = "0.1.0"
