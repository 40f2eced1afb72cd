"""CLIP: one tower for texts and one for images, projected into one space; and each of the two alone.

Radford et al. 2021, https://arxiv.org/abs/2103.00020.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from tljax.base.types import Family, HeadFormat, Resize
from tljax.base.weights import AS_IS, CONV, LINEAR, Row, Table, row
from tljax.models.clip_tower import (
    Clip,
    ClipConfig,
    Config,
    TextConfig,
    VisionConfig,
    configure,
    finish,
    read_text,
    read_vision,
    start,
    towers,
)
from tljax.models.configs import pair
from tljax.models.contrast import Contrast, Projection
from tljax.models.formats import dense_rows, norm_rows
from tljax.models.resizing import resize_grid, resize_positions


def _inputs(config: Config) -> dict[str, Any]:
    text, vision, _ = towers(config)
    specs = {}
    if text is not None:
        shape = (1, min(8, text.max_position_embeddings))
        specs = {name: jax.ShapeDtypeStruct(shape, jnp.int32) for name in ("input_ids", "attention_mask")}
    if vision is not None:
        shape = (1, vision.image_size, vision.image_size, vision.num_channels)
        specs["pixel_values"] = jax.ShapeDtypeStruct(shape, jnp.float32)
    return specs


def _text_rows(config: TextConfig, prefix: str) -> list[Row]:
    rows = [
        row(f"{prefix}embeddings.{theirs}_embedding.weight", f"backbone/text/embed/{ours}/embedding", AS_IS)
        for theirs, ours in (("token", "words"), ("position", "positions"))
    ]
    return [*rows, *_block_rows(config, prefix, "text"), *norm_rows(f"{prefix}final_layer_norm", "backbone/text/norm")]


def _vision_rows(config: VisionConfig, prefix: str) -> list[Row]:
    ours = "backbone/vision"
    return [
        row(f"{prefix}embeddings.class_embedding", f"{ours}/embed/cls", AS_IS),
        row(f"{prefix}embeddings.patch_embedding.weight", f"{ours}/embed/patch/kernel", CONV),
        row(f"{prefix}embeddings.position_embedding.weight", f"{ours}/embed/position", AS_IS),
        # Their spelling.
        *norm_rows(f"{prefix}pre_layrnorm", f"{ours}/embed/norm"),
        *_block_rows(config, prefix, "vision"),
        *norm_rows(f"{prefix}post_layernorm", f"{ours}/norm"),
    ]


def _block_rows(config: TextConfig | VisionConfig, prefix: str, wing: str) -> list[Row]:
    rows = []
    for i in range(config.num_hidden_layers):
        theirs, ours = f"{prefix}encoder.layers.{i}", f"backbone/{wing}/block{i}"
        for name, layer in (("q", "query"), ("k", "key"), ("v", "value"), ("out", "output")):
            rows += dense_rows(f"{theirs}.self_attn.{name}_proj", f"{ours}/attention/{layer}")
        rows += norm_rows(f"{theirs}.layer_norm1", f"{ours}/attention/norm")
        rows += dense_rows(f"{theirs}.mlp.fc1", f"{ours}/mlp/up") + dense_rows(f"{theirs}.mlp.fc2", f"{ours}/mlp/down")
        rows += norm_rows(f"{theirs}.layer_norm2", f"{ours}/mlp/norm")
    return rows


def table(config: Config, prefix: str) -> Table:
    """transformers' names of a CLIPModel, or of a CLIPTextModel or CLIPVisionModel."""
    extras = (r"(.*\.)?embeddings\.position_ids",)
    text, vision, _ = towers(config)
    if vision is None:
        return Table(tuple(_text_rows(text, prefix)), extras=(*extras, r"text_projection\..*"))
    if text is None:
        return Table(tuple(_vision_rows(vision, prefix)), extras=(*extras, r"visual_projection\..*"))
    rows = _text_rows(text, f"{prefix}text_model.") + _vision_rows(vision, f"{prefix}vision_model.")
    rows += [
        row(f"{prefix}text_projection.weight", "backbone/text/projection/kernel", LINEAR),
        row(f"{prefix}visual_projection.weight", "backbone/vision/projection/kernel", LINEAR),
    ]
    return Table(tuple(rows), extras=(*extras, r"logit_scale"))


def _replace(config: Config, wing: str, **entries: Any) -> Config:
    """`config` with entries of one tower changed."""
    if isinstance(config, ClipConfig):
        part = dataclasses.replace(getattr(config, f"{wing}_config"), **entries)
        return dataclasses.replace(config, **{f"{wing}_config": part})
    return dataclasses.replace(config, **entries)


def _with_image_size(before: Config, value: Any) -> Config:
    part = {**dataclasses.asdict(towers(before).vision), "image_size": list(pair(value))}
    return _replace(before, "vision", image_size=read_vision(part).image_size)


def _entry(wing: str, name: str, entries: Mapping[str, Any], value: Any) -> dict[str, Any]:
    """The entry of a tower in config.json, which is an object of its own where there are two towers."""
    if f"{wing}_config" not in entries and entries.get("model_type") != "clip":
        return {name: value}
    key = f"{wing}_config_dict" if entries.get(f"{wing}_config_dict") else f"{wing}_config"
    return {key: {**(entries.get(key) or {}), name: value}}


IMAGE_SIZE = Resize(
    path="backbone/vision/embed/position",
    config=_with_image_size,
    source=lambda entries, value: _entry("vision", "image_size", entries, pair(value)[0]),
    resize=lambda array, before, value, rng: resize_grid(
        array, towers(before).vision.grid, towers(_with_image_size(before, value)).vision.grid, extra=1
    ),
    undoable=False,
    how="the grid of positions interpolated",
)

POSITIONS = Resize(
    path="backbone/text/embed/positions/embedding",
    config=lambda before, value: _replace(before, "text", max_position_embeddings=value),
    source=lambda entries, value: _entry("text", "max_position_embeddings", entries, value),
    resize=lambda array, before, value, rng: resize_positions(array, value),
    undoable=False,
    how="cut at the end, or repeated from the start",
)


def _projection(architecture: str, wing: str, theirs: str, writes: str) -> HeadFormat:
    """One tower with its projection, which is a head there."""
    return HeadFormat(
        architecture=architecture,
        head=lambda config, entries: Projection(config.projection_dim, writes),
        matches=lambda head: isinstance(head, Projection) and head.name_of_output == writes,
        rows=lambda config: (row(f"{theirs}.weight", "head/out/kernel", LINEAR),),
        prefix=f"{wing}_model.",
        describe=lambda head, classes: {"projection_dim": head.features},
    )


CONTRAST = HeadFormat(
    architecture="CLIPModel",
    head=lambda config, entries: Contrast(config.logit_scale_init_value),
    matches=lambda head: isinstance(head, Contrast),
    rows=lambda config: (row("logit_scale", "head/logit_scale", AS_IS),),
    prefix="",
    describe=lambda head, classes: {},
)

SHARDING = (
    (r"backbone/text/embed/words/embedding", ("tensor", "fsdp")),
    (r"backbone/text/embed/positions/embedding", (None, "fsdp")),
    (r"backbone/vision/embed/cls", (None,)),
    (r"backbone/vision/embed/position", (None, "fsdp")),
    (r"backbone/vision/embed/patch/kernel", (None, None, None, "fsdp")),
    (r"backbone/(text|vision)/block\d+/(attention/(query|key|value)|mlp/up)/kernel", ("fsdp", "tensor")),
    (r"backbone/(text|vision)/block\d+/(attention/(query|key|value)|mlp/up)/bias", ("tensor",)),
    (r"backbone/(text|vision)/block\d+/(attention/output|mlp/down)/kernel", ("tensor", "fsdp")),
    (r"backbone/(text|vision)/projection/kernel", ("fsdp", None)),
    (r"backbone/.*(scale|bias)", (None,)),
)


def _size(
    text: tuple[int, int, int], vision: tuple[int, int, int], patch: int, dim: int, image: int = 224, **others: Any
) -> dict[str, Any]:
    """Sizes as (width, layers, heads); `others` are entries of both towers."""
    towers = {}
    for name, (width, layers, heads) in (("text_config", text), ("vision_config", vision)):
        sizes = {"hidden_size": width, "num_hidden_layers": layers, "num_attention_heads": heads}
        towers[name] = {**sizes, "intermediate_size": 4 * width, "projection_dim": dim, **others}
    towers["vision_config"] |= {"patch_size": patch, "image_size": image}
    return {**towers, "projection_dim": dim}


VARIANTS = {
    "clip-vit-base-patch32": _size((512, 12, 8), (768, 12, 12), 32, 512),
    "clip-vit-base-patch16": _size((512, 12, 8), (768, 12, 12), 16, 512),
    "clip-vit-large-patch14": _size((768, 12, 12), (1024, 24, 16), 14, 768),
    "clip-vit-large-patch14-336": _size((768, 12, 12), (1024, 24, 16), 14, 768, 336),
    # Schuhmann et al. 2022.
    "CLIP-ViT-B-32-laion2B-s34B-b79K": _size((512, 12, 8), (768, 12, 12), 32, 512, hidden_act="gelu"),
    "CLIP-ViT-B-16-laion2B-s34B-b88K": _size((512, 12, 8), (768, 12, 12), 16, 512, hidden_act="gelu"),
    "CLIP-ViT-L-14-laion2B-s32B-b82K": _size((768, 12, 12), (1024, 24, 16), 14, 768, hidden_act="gelu"),
    "CLIP-ViT-H-14-laion2B-s32B-b79K": _size((1024, 24, 16), (1280, 32, 16), 14, 1024, hidden_act="gelu"),
}
"""Published name → the entries of its config.json that shape it."""


def _sharding(absent: str) -> tuple:
    """The rules of one tower alone, which has no projection."""
    return tuple(rule for rule in SHARDING if f"backbone/{absent}" not in rule[0] and "projection" not in rule[0])


FAMILY = Family(
    name="clip",
    configure=configure,
    backbone=Clip,
    carry=dict.fromkeys(
        (
            *("input_ids", "text_mask", "pixel_values", "hidden", "text_hidden", "text_pooled", "text_embeds"),
            *("vision_mask", "vision_pooled", "image_embeds"),
        ),
        "example",
    ),
    start=start,
    finish=finish,
    inputs=_inputs,
    table=table,
    prefixes=("",),
    heads={"CLIPModel": CONTRAST},
    own_pool="pooled",
    sharding=SHARDING,
    variants=VARIANTS,
    resizes={"image_size": IMAGE_SIZE, "max_position_embeddings": POSITIONS},
)

TEXT = FAMILY._replace(
    name="clip_text_model",
    configure=read_text,
    carry=dict.fromkeys(("input_ids", "text_mask", "hidden", "text_hidden", "text_pooled"), "example"),
    prefixes=("text_model.", ""),
    heads={
        "CLIPTextModelWithProjection": _projection(
            "CLIPTextModelWithProjection", "text", "text_projection", "text_embeds"
        )
    },
    sharding=_sharding("vision"),
    variants={name: entries["text_config"] for name, entries in VARIANTS.items()},
    resizes={"max_position_embeddings": POSITIONS},
)

VISION = FAMILY._replace(
    name="clip_vision_model",
    configure=read_vision,
    carry=dict.fromkeys(("pixel_values", "vision_mask", "hidden", "vision_pooled"), "example"),
    prefixes=("vision_model.", ""),
    heads={
        "CLIPVisionModelWithProjection": _projection(
            "CLIPVisionModelWithProjection", "vision", "visual_projection", "image_embeds"
        )
    },
    sharding=_sharding("text"),
    variants={name: entries["vision_config"] for name, entries in VARIANTS.items()},
    resizes={"image_size": IMAGE_SIZE},
)
