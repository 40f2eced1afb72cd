"""Running a whole model: backbone, then head."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from tljax.base.types import Inputs, Model, Outputs
from tljax.models import get_family
from tljax.models.prompts import prompted, unprompted

HEAD = "head"
"""In the place of a stage: none of the backbone runs."""


def forward(
    model: Model,
    variables: Mapping[str, Any],
    inputs: Inputs,
    *,
    rngs: Mapping[str, jax.Array] | None = None,
    train: tuple[str, ...] = (),
    hidden_states: bool = False,
    stop: str | None = None,
    remat: bool = False,
    gates: Mapping[str, jax.Array] | None = None,
) -> tuple[Outputs, dict[str, Any]]:
    """Runs `model` on a batch. Pure; jit it with all that follows `rngs`, and `model`, static.

    Args:
      model: from `load_pretrained`.
      variables: `params/backbone`, `params/head`, `batch_stats/backbone`.
      inputs: Hugging Face names: `input_ids` (B, T), `attention_mask`, `pixel_values` (B, H, W, C) …
      rngs: {"dropout": key} when a stage trains with dropout.
      train: the stages in training mode; "head" names the head.
      hidden_states: also return `hidden_states`, the reference's tuple, embeddings first; `encoder_hidden_states` and
        the like where there are several towers.
      stop: the first stage not to run; None is `model.stop`.
      remat: a gradient keeps only what goes into each stage, and computes the rest of it again.
      gates: stage → factors (B, D) on the channels of what it hands on: by the gradient at 1 it shows which count.

    Returns:
      (outputs, updates): `outputs` as the family maps them (`hidden`, `pooled`, `logits` where there is a head …);
      `updates` is {"batch_stats": …}, the new running statistics, equal to the old where nothing trains.
    """
    family = get_family(model.family)
    stats = variables.get("batch_stats", {})
    given, before = prompted(model.config, variables["params"], inputs) if model.start is None else (inputs, 0)
    carry = (
        family.start(model.config, given)
        if model.start is None
        else {**inputs, **variables["params"].get("carried", {})}
    )
    if model.start == HEAD:
        return _headed(model, variables, carry, train, rngs), {"batch_stats": stats}
    collections = {"params": variables["params"].get("backbone", {}), "batch_stats": stats.get("backbone", {})}
    carry, changed = model.backbone.apply(
        collections,
        carry,
        start=model.start,
        stop=model.stop if stop is None else stop,
        train=train,
        record=hidden_states,
        remat=remat,
        gates=gates,
        groups=model.groups,
        rngs=rngs,
        mutable=["batch_stats"],
    )
    recorded = carry.pop("recorded", {})
    outputs = dict(family.finish(model.config, carry))
    if hidden_states:
        for stage in model.backbone.recorded_stages:
            if stage in recorded:
                wing = stage.rpartition("/")[0]
                key = f"{wing}_hidden_states" if wing else "hidden_states"
                outputs[key] = (*outputs.get(key, ()), recorded[stage])
    outputs = unprompted(outputs, inputs, before)
    outputs = _headed(model, variables, outputs, train, rngs)
    # Where the backbone has no statistics the structure must stay as it was, or the next jitted step compiles anew.
    moved = {"backbone": changed["batch_stats"]} if "backbone" in stats else {}
    return outputs, {"batch_stats": {**stats, **moved}}


def recorded_stages(model: Model) -> tuple[str, ...]:
    """The stages that run and give a hidden state, in order."""
    stages = model.backbone.stages
    first = 0 if model.start is None else len(stages) if model.start == HEAD else stages.index(model.start)
    return tuple(stage for stage in model.backbone.recorded_stages if stage in stages[first:])


def _headed(model: Model, variables: Mapping[str, Any], outputs: Outputs, train: tuple[str, ...], rngs: Any) -> Outputs:
    """The outputs with what the head makes of them."""
    if model.head is None:
        return outputs
    return model.head.apply({"params": variables["params"].get("head", {})}, outputs, "head" in train, rngs=rngs)


def init_variables(model: Model, rng: jax.Array) -> dict[str, Any]:
    """Random `variables` of `model`, by its own initialisers. Trace it with `jax.eval_shape` for shapes alone."""
    family = get_family(model.family)
    backbone_key, head_key = jax.random.split(rng)
    inputs = {name: jnp.zeros(spec.shape, spec.dtype) for name, spec in family.inputs(model.config).items()}
    carry, made = model.backbone.init_with_output(backbone_key, family.start(model.config, inputs))
    params = {"backbone": made["params"]}
    if model.head is not None:
        outputs = family.finish(model.config, carry)
        params["head"] = model.head.init(head_key, outputs).get("params", {})
    stats = {"backbone": made["batch_stats"]} if "batch_stats" in made else {}
    return {"params": params, "batch_stats": stats}
