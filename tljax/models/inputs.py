"""Checks of the inputs that image towers share."""

from collections.abc import Mapping
from typing import Any

from tljax.base.errors import UserError
from tljax.models.configs import pair


def start_pixels(config: Any, inputs: Mapping[str, Any]) -> dict[str, Any]:
    """The first carry of an image tower: `pixel_values` (B, H, W, C).

    Raises:
      UserError: there are none, or they have not `config.num_channels` channels, or not `config.image_size` where the
        config has one.
    """
    if "pixel_values" not in inputs:
        raise UserError(f"The model reads `pixel_values`, and the inputs are: {', '.join(inputs) or 'none'}.")
    shape = inputs["pixel_values"].shape
    size = pair(getattr(config, "image_size", ("H", "W")))
    wanted = (*size, config.num_channels)
    if len(shape) != 4 or any(isinstance(w, int) and s != w for s, w in zip(shape[1:], wanted, strict=True)):
        entries = "num_channels" if size == ("H", "W") else "image_size or num_channels"
        raise UserError(
            f"pixel_values has the shape {shape}, and the model reads (B, {', '.join(map(str, wanted))}). Change the "
            f"processor, or adapt {entries}."
        )
    return {"pixel_values": inputs["pixel_values"]}
