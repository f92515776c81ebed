"""Keras models in memory: saved as a .keras file, or as a SavedModel where they hold classes that
are not Keras's own. The model is the user's object, so nothing of a stranger's is run."""

import sys
import zipfile
from pathlib import Path
from typing import Any

from onmetal.converters import LiveModel
from onmetal.errors import UnsupportedError, UsageError, reason


class KerasModel(LiveModel):
    title = "Keras model"

    def owns(self, model: Any) -> bool:
        loaded = sys.modules.get("keras")
        return loaded is not None and isinstance(model, loaded.Model)

    def save(
        self, model: Any, example_inputs: Any, folder: Path, stem: str
    ) -> tuple[Path, list[str]]:
        from onmetal.converters.keras import checks

        if example_inputs is not None:
            raise UsageError("example_inputs are for PyTorch modules; a Keras model has its inputs")
        path = folder / f"{stem}.keras"
        try:
            model.save(path)
            with zipfile.ZipFile(path) as archive:
                config = checks.check_config(archive.read("config.json"), path, trust=False)
            activations = dir(sys.modules["keras"].activations)
            if name := checks.stranger(config, activations, path):
                raise UsageError(f"it holds {name}, which is not Keras's own")
            return path, ["saved from a Keras model in memory"]
        except Exception as error:
            path.unlink(missing_ok=True)
            return self._export(model, folder / stem, reason(error))

    def _export(self, model: Any, path: Path, why: str) -> tuple[Path, list[str]]:
        try:
            model.export(path, format="tf_saved_model", verbose=False)
        except Exception as error:
            raise UnsupportedError(
                f"this {type(model).__name__} can neither be saved as a .keras file ({why}) nor "
                f"exported as a SavedModel ({reason(error)}); call it once on an input, so that it "
                "is built"
            ) from error
        note = (
            "exported as a SavedModel from a Keras model in memory, since it holds more than "
            "Keras's own layers"
        )
        return path, [note]


LIVE: LiveModel = KerasModel()
