"""`adapt`: named, reported changes of shape between a checkpoint and what is needed."""

import json
from collections.abc import Mapping
from functools import lru_cache
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from tljax.base.errors import raise_faults
from tljax.base.paths import flatten, unflatten
from tljax.base.tables import suggest
from tljax.base.types import Model
from tljax.models import get_family
from tljax.models.forward import forward, init_variables
from tljax.models.heads import LanguageModel
from tljax.models.resizing import resize_language_model


class Note(NamedTuple):
    """What one change did.

    Attributes:
      change: its name.
      path: the leaf, "head" or "extras".
      before: its shape, or what stood there.
      after: likewise.
      how: the method.
      undoable: whether export can return to the checkpoint's shape without loss.
    """

    change: str
    path: str
    before: Any
    after: Any
    how: str
    undoable: bool

    def __str__(self) -> str:
        back = "export can undo it" if self.undoable else "export cannot undo it"
        how = f" ({self.how})" if self.how else ""
        return f"adapted {self.change}: {self.path} {self.before} → {self.after}{how}; {back}"


def adapt(
    model: Model, variables: Mapping[str, Any], *, rng: jax.Array | None = None, head: Any = None, **changes: Any
) -> tuple[Model, dict[str, Any], tuple[Note, ...]]:
    """A model of other shapes, filled from `variables`.

    Args:
      model: from `load_pretrained`.
      variables: likewise.
      rng: for values that no checkpoint gives (new rows, a new head); default key 0.
      head: a new head module; its leaves start from its initialisers.
      **changes: what the family's `resizes` name: `image_size`, `num_channels`, `vocab_size`,
        `max_position_embeddings` …, with their new values.

    Returns:
      (model, variables, notes): a note says for each change which leaf went from which shape to which, and whether
      export can undo it.

    Raises:
      UserError: a change that the family does not know.
    """
    family = get_family(model.family)
    raise_faults(
        f"The family {family.name} cannot be adapted so:",
        [f"{name}. {suggest(name, family.resizes)}" for name in changes if name not in family.resizes],
    )
    rng = jax.random.key(0) if rng is None else rng
    flat, notes = flatten(variables["params"]), []
    config, entries = model.config, json.loads(model.source)
    for i, (name, value) in enumerate(changes.items()):
        resize = family.resizes[name]
        before = flat[resize.path]
        flat[resize.path] = jnp.array(resize.resize(before, config, value, jax.random.fold_in(rng, i)), copy=True)
        config = resize.config(config, value)
        entries.update(resize.source(entries, value))
        notes.append(Note(name, resize.path, before.shape, flat[resize.path].shape, resize.how, resize.undoable))
    extras = dict(variables.get("extras", {}))
    if changes:
        model = model._replace(config=config, backbone=family.backbone(config), source=json.dumps(entries, indent=2))
        # Counters fit any shape; heads that nobody uses and buffers have the shapes of before.
        stale = [name for name, extra in extras.items() if extra.ndim]
        extras = {name: extra for name, extra in extras.items() if name not in stale}
        if stale:
            what = ", ".join(changes)
            notes.append(Note(what, "extras", ", ".join(stale), "none", "they have the shapes of before", False))
    words = getattr(config, "vocab_size", None)
    if head is None and isinstance(model.head, LanguageModel) and model.head.vocabulary != words:
        old = {path.removeprefix("head/"): leaf for path, leaf in flat.items() if path.startswith("head/")}
        resized, leaves = resize_language_model(model.head, old, words, jax.random.fold_in(rng, len(changes)))
        flat.update({f"head/{path}": jnp.array(leaf, copy=True) for path, leaf in leaves.items()})
        notes.append(Note("vocab_size", "head", model.head.vocabulary, words, "as the words", False))
        model = model._replace(head=resized)
    params = unflatten(flat)
    if head is not None:
        params.pop("head", None)
        made = init_head(model, head, jax.random.fold_in(rng, len(changes)))
        if made:
            params["head"] = made
        notes.append(Note("head", "head", _kind(model.head), _kind(head), "by its own initialisers", False))
        model = model._replace(head=head)
    return model, {**variables, "params": params, "extras": extras}, tuple(notes)


def _kind(head: Any) -> str:
    classes = f" of {head.classes} classes" if hasattr(head, "classes") else ""
    return "none" if head is None else f"{type(head).__name__}{classes}"


def init_head(model: Model, head: Any, rng: jax.Array) -> dict[str, Any]:
    """The parameters of a new `head` on the backbone of `model`; {} for a head without any."""
    return head.lazy_init(rng, dict(output_shapes(model))).get("params", {})


def output_shapes(
    model: Model, *, hidden_states: bool = False, inputs: Mapping[str, Any] | None = None
) -> Mapping[str, Any]:
    """The shapes of the model's outputs for a batch of one.

    Args:
      model: any.
      hidden_states: with those of the hidden states.
      inputs: shapes to use in place of the family's own, by name.
    """
    inputs = {**get_family(model.family).inputs(model.config), **(inputs or {})}
    return dict(_output_shapes(model, hidden_states, tuple(sorted(inputs.items(), key=lambda item: item[0]))))


@lru_cache(maxsize=64)
def _output_shapes(model: Model, hidden_states: bool, inputs: tuple) -> Mapping[str, Any]:
    """Kept, because a trace of a large model takes seconds, and a run asks for the same one several times."""

    def run(inputs):
        return forward(model, init_variables(model, jax.random.key(0)), inputs, hidden_states=hidden_states)[0]

    return jax.eval_shape(run, dict(inputs))
