"""The keys of data.toml that say where boxes and masks are, and how a detector's outputs are
read."""

from pathlib import PurePath
from typing import Annotated, Literal

from msgspec import Meta, Struct

BoxLayout = Literal["xyxy", "xywh", "yxyx", "cxcywh"]
"""What the four numbers of a box are: corners, or a corner or the centre and the size."""
HeadKind = Literal["detections", "lists", "candidates", "yolov5", "yolov8"]
Role = Literal["boxes", "scores", "classes", "count"]


class TaskSettings(Struct, frozen=True, forbid_unknown_fields=True):
    """data.toml, beside Preprocessing: the labels of detection and segmentation."""

    annotations: str | None = None
    """A COCO file in the folder; None: annotations.json, where it is there."""
    masks: str | None = None
    """A folder of masks in the folder; None: masks, where it is there."""
    ignore: Annotated[int, Meta(ge=0, le=65_535)] = 255
    """The value of a mask's pixels that are not judged."""
    boxes: BoxLayout | None = None
    """What a box of the model's output is; None: what is usual for such outputs."""
    normalized: bool | None = None
    """Whether these boxes are parts of the input's width and height, not pixels; None: found out
    from their values."""
    class_numbers: Literal["order", "category"] = "order"
    """What the model's class numbers are: places in `classes` or in the sorted ids of the
    categories, or these ids themselves."""
    head: HeadKind | None = None
    """What kind of outputs the model has; None: by their shapes and names."""
    outputs: dict[Role, str] = {}
    """The names of the model's outputs by what they hold; empty: by their shapes and names."""

    def fault(self) -> str | None:
        """What is wrong with it though its keys and types are right; None where nothing is."""
        for key in ("annotations", "masks"):
            name = getattr(self, key)
            if name is not None and (not name or {"..", "/"} & set(PurePath(name).parts)):
                return f"{key} must be a name in the folder of data, and is {name!r:.100}"
        if self.annotations and self.masks:
            return "annotations and masks exclude each other"
        return None
