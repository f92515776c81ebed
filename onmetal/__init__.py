"""Convert, measure, choose and bundle a neural network for the hardware it will run on.

`onmetal.deploy(model, target="x86-64", data=…)` does it from Python; the command line is `deploy`.
"""

__version__ = "0.1.0"
__all__ = ["__version__", "deploy"]

TYPE_CHECKING = False  # as of `typing`, without importing it
if TYPE_CHECKING:
    from onmetal.deploy import deploy as deploy
else:

    def __getattr__(name: str) -> object:
        """`deploy` is imported when it is asked for: `import onmetal` alone loads nothing."""
        if name != "deploy":
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        import onmetal.deploy as package

        return package

    def __dir__() -> list[str]:
        return sorted({*globals(), *__all__})
