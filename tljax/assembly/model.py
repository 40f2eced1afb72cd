"""From `config.model` to a model and its variables."""

import string
from typing import Any

import jax
import jax.numpy as jnp

from tljax.assembly.sections import ModelSection
from tljax.base.errors import UserError
from tljax.base.tables import suggest
from tljax.base.types import Model
from tljax.checkpoints.adapt import adapt
from tljax.checkpoints.load import load_pretrained
from tljax.checkpoints.merging import merge_adapters
from tljax.data.characters import characters
from tljax.data.images import ImageProcessor
from tljax.models import get_family
from tljax.models.forward import init_variables


def make_model(
    section: ModelSection, key: jax.Array, *, values: bool = True
) -> tuple[Model, dict, Any, tuple[str, ...]]:
    """(model, variables, processor, notes of adapt).

    Without `values` it is to be traced, so that shapes alone come out: of a source the headers of its files are read,
    and where the section names a variant, nothing of the source at all.
    """
    if section.source is not None and (values or section.variant is None):
        model, variables, processor = load_pretrained(
            section.source, dtype=section.dtype, family=section.family, sha256=section.sha256, values=values
        )
    elif section.family is None:
        raise UserError("config.model needs a source (a checkpoint), or a family with a variant.")
    else:
        model, processor = _fresh(section.family, section.variant), None
        variables = {**jax.jit(init_variables, static_argnums=0)(model, key), "extras": {}}
    if not values:
        processor = processor if section.source is None or processor else _stand_in(model)
        variables = {**jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), variables), "extras": {}}
    if section.adapters:
        variables = merge_adapters(model, variables, section.adapters)
    notes: tuple[str, ...] = ()
    if section.adapt:
        model, variables, notes = adapt(model, variables, rng=jax.random.fold_in(key, 1), **section.adapt)
    return model, variables, processor, tuple(map(str, notes))


def _stand_in(model: Model) -> Any:
    """A processor that makes batches of the shapes that the checkpoint's own would; None where none is plain."""
    inputs = get_family(model.family).inputs(model.config)
    if "pixel_values" in inputs and "input_ids" not in inputs:
        return ImageProcessor(size=getattr(model.config, "image_size", 224))
    if "input_ids" in inputs and "pixel_values" not in inputs:  # a token a character
        return characters(alphabet=string.ascii_letters, strict=False)
    return None


def _fresh(family_name: str, variant: Any) -> Model:
    family = get_family(family_name)
    if isinstance(variant, str):
        if variant not in family.variants:
            raise UserError(
                f"config.model.variant: {family_name} has no {variant!r}. {suggest(variant, family.variants)}"
            )
        variant = family.variants[variant]
    config = family.configure(variant or {})
    return Model(family=family.name, config=config, backbone=family.backbone(config))
