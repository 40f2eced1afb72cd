"""From `config.model` to a model and its variables."""

from typing import Any

import jax

from tljax.assembly.sections import ModelSection
from tljax.base.errors import UserError
from tljax.base.tables import suggest
from tljax.base.types import Model
from tljax.checkpoints.adapt import adapt
from tljax.checkpoints.load import load_pretrained
from tljax.checkpoints.merging import merge_adapters
from tljax.models import get_family
from tljax.models.forward import init_variables


def make_model(section: ModelSection, key: jax.Array) -> tuple[Model, dict, Any, tuple[str, ...]]:
    """(model, variables, processor, notes of adapt)."""
    if section.source is not None:
        model, variables, processor = load_pretrained(
            section.source, dtype=section.dtype, family=section.family, sha256=section.sha256
        )
    elif section.family is None:
        raise UserError("config.model needs a source (a checkpoint), or a family with a variant.")
    else:
        model, processor = _fresh(section.family, section.variant), None
        variables = {**jax.jit(init_variables, static_argnums=0)(model, key), "extras": {}}
    if section.adapters:
        variables = merge_adapters(model, variables, section.adapters)
    notes: tuple[str, ...] = ()
    if section.adapt:
        model, variables, notes = adapt(model, variables, rng=jax.random.fold_in(key, 1), **section.adapt)
    return model, variables, processor, tuple(map(str, notes))


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
