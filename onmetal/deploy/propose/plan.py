"""Plans the candidates of a target for the models, most exact first, with the reasons why some are
not tried."""

from importlib.util import find_spec

from msgspec import Struct
from msgspec.structs import replace

from onmetal.converters import format_named
from onmetal.deploy.ways import NO_WAYS, Way, Ways, usual
from onmetal.errors import UsageError
from onmetal.records import LEFT_OUT, NO_DATA, DeviceFacts, Lineage, Model
from onmetal.runtimes import spec
from onmetal.targets import EXACT, Recipe, Target
from onmetal.targets.recipe import STEPS
from onmetal.texts.suggest import did_you_mean


class Planned(Struct, frozen=True):
    name: str
    model: Model
    recipe: Recipe
    runtime: str
    skipped: str | None = None
    """Why it is not tried; None: it is tried."""
    reference_only: bool = False
    """Run as the reference, but left out of the choice by --recipes."""

    @property
    def lineage(self) -> Lineage:
        """The steps that are applied to the model; a model that is quantized already is not
        quantized again."""
        as_it_is = self.model.quantized and not self.skipped
        done = [step for step in self.recipe.steps if not (as_it_is and STEPS[step.do].quantizes)]
        return Lineage(steps=tuple(done))


WEIGHTED = {
    "onnx": ("Conv", "Gemm", "MatMul"),
    "tflite": ("CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED", "TRANSPOSE_CONV"),
    "openvino_ir": ("Convolution", "GroupConvolution", "MatMul"),
}
"""By the format of the graph, the operators that a model must have to be worth quantizing."""
ANOTHER = "the model is quantized already, in another format"
MATMUL_HEAVY = 0.5
"""From this share of its weights on, a model is worth trying with 8-bit MatMuls alone."""


def plan(
    target: Target,
    models: list[Model],
    facts: DeviceFacts,
    families: list[str] | None,
    *,
    samples: bool = True,
    timed: bool = True,
    ways: Ways = NO_WAYS,
) -> list[Planned]:
    """All candidates in plan order: by recipe, then model, then runtime, as the target lists them.
    `ways`: from the models to the runtimes; where it says nothing, the runtime is given the model.

    `families`: families of recipes (a recipe's name, or the word it starts with); None: all.
    `samples`: whether there is data to calibrate with; `timed`: whether there is a device.
    Raises UsageError for a family that the target does not know.
    """
    for family in families or []:
        if not any(_belongs(recipe.name, family) for recipe in target.recipes):
            known = list(dict.fromkeys(recipe.name for recipe in target.recipes))
            raise UsageError(
                f"--recipes {family}: unknown to the target {target.name}"
                f"{did_you_mean(family, known)}; it has: {', '.join(known)}"
            )
    entries = []
    has_float = any(recipe.quantized_by is None for recipe in target.recipes)
    for recipe_name in dict.fromkeys(recipe.name for recipe in target.recipes):
        left_out = families is not None and not any(_belongs(recipe_name, f) for f in families)
        for model in models:
            for runtime in target.runtimes:
                recipe = target.recipe(recipe_name, runtime.name)
                for way in ways.get((model.path, runtime.name)) or (usual(model, runtime.name),):
                    if way.model.way and not _worth_listing(recipe, runtime.name, way):
                        continue
                    skipped = (
                        _unfit(recipe, runtime.name, target, facts)
                        or way.lacks
                        or _unchangeable(recipe, way)
                        or (LEFT_OUT if left_out and recipe.name != EXACT else None)
                        or _needless(recipe, runtime.name, way.model, samples, timed, has_float)
                    )
                    name = candidate_name(recipe, runtime.name, way.model)
                    entries.append(
                        Planned(
                            name=f"{model.stem}/{name}" if len(models) > 1 else name,
                            model=way.model,
                            recipe=recipe,
                            runtime=runtime.name,
                            skipped=skipped,
                            reference_only=left_out and recipe.name == EXACT,
                        )
                    )
    return entries


def _unchangeable(recipe: Recipe, way: Way) -> str | None:
    """Why nothing can be done to a model that the runtime alone reads."""
    if not way.unchanged or not recipe.steps or recipe.does("nncf"):
        return None
    title = format_named(way.model.format).title
    return f"nothing is changed in {title} models: give the model that it was made from"


def _worth_listing(recipe: Recipe, runtime: str, way: Way) -> bool:
    """Whether a candidate by a way besides the usual one can be made by the recipe; where there is
    no such way, one of them says why."""
    if runtime not in recipe.runtimes or (way.lacks and recipe.name != EXACT):
        return False
    return not (way.unchanged and (recipe.steps or (way.model.quantized and recipe.name != EXACT)))


def candidate_name(recipe: Recipe, runtime: str, model: Model) -> str:
    """RECIPE@RUNTIME; between them the way from the model, where it is not the usual one."""
    by = f"-via-{model.way.replace('_', '-')}" if model.way else ""
    return f"{recipe.name}{by}@{runtime}"


def calibrates(planned: list[Planned]) -> bool:
    """Whether any candidate needs samples to be made."""
    return any(map(is_calibrated, planned))


def is_calibrated(entry: Planned) -> bool:
    """Whether a candidate is tried that needs samples to be made."""
    return entry.recipe.calibrated and not entry.model.quantized and not entry.skipped


def without_samples(planned: list[Planned], why: str) -> list[Planned]:
    """The plan with all candidates that need calibration skipped, for the reason `why`."""
    return [replace(entry, skipped=why) if is_calibrated(entry) else entry for entry in planned]


def _belongs(recipe: str, family: str) -> bool:
    return recipe.startswith(family) and family != ""


def _unfit(recipe: Recipe, runtime: str, target: Target, facts: DeviceFacts) -> str | None:
    """Why this runtime or CPU cannot run the recipe."""
    if runtime not in recipe.runtimes:
        ability = f"run {recipe.name}" if recipe.quantized_by else f"compute in {recipe.compute}"
        return f"{runtime} does not {ability} on this target"
    if recipe.requires_any_flag and not set(recipe.requires_any_flag) & set(facts.flags):
        flags_text = " or ".join(recipe.requires_any_flag)
        if target.arch not in (facts.arch, "any"):  # without a device, the facts are this machine's
            return f"needs a CPU with {flags_text}, as only a device can show (--device)"
        return f"this CPU has no {flags_text}, so it cannot compute in {recipe.compute}"
    if recipe.does("nncf") and not find_spec("nncf"):
        return "NNCF is not installed; `pip install 'onmetal[nncf]'` to try its quantization too"
    return None


def _needless(
    recipe: Recipe, runtime: str, model: Model, samples: bool, timed: bool, has_float: bool
) -> str | None:
    """Why the recipe has no point for this model and data; None where it has. Where a target has no
    float recipe, a quantized model is used unchanged, under the recipe of its format."""
    if recipe.quantized_by is None:
        return None
    if model.quantized and not has_float:
        return None if (recipe.compute == "i16") == model.wide else ANOTHER
    if model.stateful:
        return "the model keeps state from one inference to the next: it is run as it is"
    if model.quantized:
        return f"the model is quantized already ({model.quantized} operators hold integers)"
    if recipe.quantized_by == "half":
        return None
    kinds = WEIGHTED[model.graph_format]
    if not any(model.operators.get(kind) for kind in kinds):
        return f"the model has nothing to quantize: no {', '.join(kinds)}"
    by_matrices = recipe.quantized_by in ("weights", "dynamic") and spec(runtime).reads == "onnx"
    if by_matrices and model.matmul_share < MATMUL_HEAVY:
        share = f"{model.matmul_share:.0%}"
        return f"pays for models of MatMuls only, which hold {share} of this one's weights"
    if not samples:
        return NO_DATA
    if recipe.does("mixed") and not timed:
        return "made from a profile, for which a device is needed"
    return None
