"""wav2vec 2.0: a transformer on features of raw speech. Baevski, Zhou, Mohamed and Auli 2020, arXiv 2006.11477.

With the layer-normed feature encoder and the norms in front of the residual of Conneau et al. 2020 (XLSR-53) and of the
LV-60k models. Axes: S samples, T frames, C channels of the feature encoder, D width.
"""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from tljax.base.errors import UserError, raise_faults
from tljax.base.types import Family, HeadFormat
from tljax.base.weights import AS_IS, CONV1D, Table, reshaped, row
from tljax.models.configs import read_config
from tljax.models.formats import dense_rows, describe_labels, label_count, norm_rows
from tljax.models.heads import ProjectedClassifier, TokenClassifier
from tljax.models.layers import ACTIVATIONS
from tljax.models.tower import Tower
from tljax.models.wav2vec2_tower import Block, FeatureConv, LastNorm, Positions, Projection


@dataclasses.dataclass(frozen=True)
class Wav2Vec2Config:
    """The entries of config.json that shape a wav2vec 2.0, with transformers' names and defaults.

    The rates of masking decide whether there is an embedding of masked frames; `mask_time_length` is what a span has
    that a training run masks.
    """

    vocab_size: int = 32
    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    intermediate_size: int = 3072
    hidden_act: str = "gelu"
    hidden_dropout: float = 0.1
    activation_dropout: float = 0.1
    attention_dropout: float = 0.1
    feat_proj_dropout: float = 0.0
    final_dropout: float = 0.1
    layerdrop: float = 0.1
    initializer_range: float = 0.02
    layer_norm_eps: float = 1e-5
    feat_extract_norm: str = "group"
    feat_extract_activation: str = "gelu"
    conv_dim: tuple[int, ...] = (512,) * 7
    conv_stride: tuple[int, ...] = (5, 2, 2, 2, 2, 2, 2)
    conv_kernel: tuple[int, ...] = (10, 3, 3, 3, 3, 2, 2)
    conv_bias: bool = False
    num_conv_pos_embeddings: int = 128
    num_conv_pos_embedding_groups: int = 16
    do_stable_layer_norm: bool = False
    mask_time_prob: float = 0.05
    mask_time_length: int = 10
    mask_feature_prob: float = 0.0
    classifier_proj_size: int = 256

    @property
    def masks(self) -> bool:
        """Whether there is an embedding that stands for masked frames."""
        return self.mask_time_prob > 0 or self.mask_feature_prob > 0


ACCEPTED = {
    "hidden_act": ACTIVATIONS,
    "feat_extract_activation": ACTIVATIONS,
    "feat_extract_norm": ("group", "layer"),
    "add_adapter": (False,),
    "use_weighted_layer_sum": (False,),
}
"""The values of config.json's entries that are implemented."""


def configure(entries: Mapping[str, Any]) -> Wav2Vec2Config:
    """config.json → `Wav2Vec2Config`; raises `UserError` for what is not implemented, and for sizes that do not fit."""
    config = read_config(Wav2Vec2Config, entries, what="wav2vec 2.0", accepted=ACCEPTED)
    counts = {name: len(getattr(config, name)) for name in ("conv_dim", "conv_stride", "conv_kernel")}
    faults = []
    if entries.get("adapter_attn_dim") is not None:
        faults.append(
            f"adapter_attn_dim is {entries['adapter_attn_dim']!r}: the adapters of the MMS models are not implemented."
        )
    if len(set(counts.values())) > 1:
        faults.append(
            "The feature encoder has as many layers as each of these lists has entries, and they disagree: "
            f"{', '.join(f'{name} {count}' for name, count in counts.items())}."
        )
    for name in ("num_attention_heads", "num_conv_pos_embedding_groups"):
        if config.hidden_size % getattr(config, name):
            faults.append(f"hidden_size {config.hidden_size} is no multiple of {name} {getattr(config, name)}.")
    raise_faults("This config.json describes no wav2vec 2.0 that can be built:", faults)
    return config


def frame_count(config: Wav2Vec2Config, samples: Any) -> Any:
    """How many frames so many samples give, a number or an array of them; 0 where the first frame does not fit."""
    frames = samples
    for kernel, stride in zip(config.conv_kernel, config.conv_stride, strict=True):
        frames = (frames - kernel) // stride + 1
    return max(frames, 0) if isinstance(frames, int) else frames.clip(0)


def sample_count(config: Wav2Vec2Config, frames: int) -> int:
    """The fewest samples that give so many frames; for one frame, the receptive field."""
    for kernel, stride in zip(reversed(config.conv_kernel), reversed(config.conv_stride), strict=True):
        frames = (frames - 1) * stride + kernel
    return frames


class Wav2Vec2(Tower):
    """`conv0 …, projection, positions, block0 …`, and `norm` where the norms stand in front of the residuals."""

    config: Wav2Vec2Config

    def chain(self) -> dict[str, Any]:
        c = self.config
        return {
            **{f"conv{i}": functools.partial(FeatureConv, c, i) for i in range(len(c.conv_dim))},
            "projection": functools.partial(Projection, c),
            "positions": functools.partial(Positions, c),
            **{f"block{i}": functools.partial(Block, c) for i in range(c.num_hidden_layers)},
            **({"norm": functools.partial(LastNorm, c.layer_norm_eps)} if c.do_stable_layer_norm else {}),
        }

    @property
    def recorded_stages(self) -> tuple[str, ...]:
        return tuple(stage for stage in self.stages if stage.startswith(("positions", "block")))


def start(config: Wav2Vec2Config, inputs: Mapping[str, Any]) -> dict[str, Any]:
    """Waveforms (B, S), the mask of their frames (B, T), and where frames are masked, which ones (B, T).

    Args:
      config: of the family.
      inputs: `input_values` (B, S), floating: the waveform at 16 kHz, normalised where the checkpoint's processor says
        so; `attention_mask` (B, S), 1 for samples and 0 for padding behind them, default all 1; `mask_time_indices`
        (B, T), nonzero for frames that the transformer sees as the mask embedding, default none.

    Raises:
      UserError: no or wrong `input_values`, fewer samples than one frame needs, masks of other shapes.
    """
    if "input_values" not in inputs:
        raise UserError(f"wav2vec 2.0 reads `input_values`, and the inputs are: {', '.join(inputs) or 'none'}.")
    values = jnp.asarray(inputs["input_values"])
    if values.ndim != 2:
        raise UserError(f"input_values has the shape {values.shape}; it must be (B, S): one channel a waveform.")
    mask, masked = inputs.get("attention_mask"), inputs.get("mask_time_indices")
    frames, least = frame_count(config, values.shape[1]), sample_count(config, 1)
    faults = []
    if not jnp.issubdtype(values.dtype, jnp.floating):
        faults.append(f"input_values has the dtype {values.dtype}; a waveform is floating, within ±1 or normalised.")
    if frames < 1:
        faults.append(
            f"input_values has {values.shape[1]} samples an example, and one frame needs {least}. Pad the waveforms."
        )
    if mask is not None and mask.shape != values.shape:
        faults.append(f"attention_mask has the shape {mask.shape}, and input_values {values.shape}.")
    if masked is not None and masked.shape != (len(values), frames):
        faults.append(
            f"mask_time_indices has the shape {masked.shape}; {values.shape[1]} samples give the frames "
            f"{(len(values), frames)}."
        )
    if masked is not None and not config.masks:
        faults.append("mask_time_indices masks frames, and this model has no embedding for them (mask_time_prob is 0).")
    raise_faults("These inputs do not fit the model:", faults)
    if mask is None:
        real = jnp.ones((len(values), frames), jnp.int32)
    else:
        lengths = frame_count(config, jnp.sum(jnp.asarray(mask) > 0, axis=1))
        real = (jnp.arange(frames) < lengths[:, None]).astype(jnp.int32)
    carry = {"hidden": values, "mask": real}
    return carry if masked is None else {**carry, "mask_time_indices": jnp.asarray(masked) != 0}


def finish(config: Wav2Vec2Config, carry: Mapping[str, Any]) -> dict[str, Any]:
    """hidden (B, T, D), mask (B, T), features (B, T, C) as the quantizer of the pretraining reads them, pooled None."""
    return {"hidden": carry["hidden"], "mask": carry["mask"], "features": carry.get("features"), "pooled": None}


def inputs(config: Wav2Vec2Config) -> dict[str, Any]:
    """Shapes for one waveform of eight frames."""
    samples, frames = sample_count(config, 8), 8
    shapes = {
        "input_values": jax.ShapeDtypeStruct((1, samples), jnp.float32),
        "attention_mask": jax.ShapeDtypeStruct((1, samples), jnp.int32),
    }
    return {**shapes, "mask_time_indices": jax.ShapeDtypeStruct((1, frames), jnp.int32)} if config.masks else shapes


POSITIONS = "encoder.pos_conv_embed.conv"


def table(config: Wav2Vec2Config, prefix: str) -> Table:
    """transformers' names of a Wav2Vec2Model."""
    rows = []
    for i in range(len(config.conv_dim)):
        theirs, ours = f"{prefix}feature_extractor.conv_layers.{i}", f"backbone/conv{i}"
        rows.append(row(f"{theirs}.conv.weight", f"{ours}/conv/kernel", CONV1D))
        if config.conv_bias:
            rows.append(row(f"{theirs}.conv.bias", f"{ours}/conv/bias", AS_IS))
        if i == 0 or config.feat_extract_norm == "layer":
            rows += norm_rows(f"{theirs}.layer_norm", f"{ours}/norm")
    rows += norm_rows(f"{prefix}feature_projection.layer_norm", "backbone/projection/norm")
    rows += dense_rows(f"{prefix}feature_projection.projection", "backbone/projection/dense")
    if config.masks:
        rows.append(row(f"{prefix}masked_spec_embed", "backbone/projection/mask_embedding", AS_IS))
    theirs, taps = f"{prefix}{POSITIONS}", config.num_conv_pos_embeddings
    rows += [
        row(
            f"{theirs}.parametrizations.weight.original0",
            "backbone/positions/conv/scale",
            reshaped((1, 1, taps), (taps,)),
        ),
        row(f"{theirs}.parametrizations.weight.original1", "backbone/positions/conv/kernel", CONV1D),
        row(f"{theirs}.bias", "backbone/positions/conv/bias", AS_IS),
    ]
    stable = config.do_stable_layer_norm
    rows += norm_rows(f"{prefix}encoder.layer_norm", "backbone/norm" if stable else "backbone/positions/norm")
    for i in range(config.num_hidden_layers):
        theirs, ours = f"{prefix}encoder.layers.{i}", f"backbone/block{i}"
        for name, own in (("q_proj", "query"), ("k_proj", "key"), ("v_proj", "value"), ("out_proj", "output")):
            rows += dense_rows(f"{theirs}.attention.{name}", f"{ours}/attention/{own}")
        rows += norm_rows(f"{theirs}.layer_norm", f"{ours}/attention/norm")
        rows += dense_rows(f"{theirs}.feed_forward.intermediate_dense", f"{ours}/mlp/up")
        rows += dense_rows(f"{theirs}.feed_forward.output_dense", f"{ours}/mlp/down")
        rows += norm_rows(f"{theirs}.final_layer_norm", f"{ours}/mlp/norm")
    return Table(
        rows=tuple(rows),
        extras=(
            r"(quantizer|project_hid|project_q|lm_head|projector|classifier)\..*",
            *(() if config.masks else (r"(wav2vec2\.)?masked_spec_embed",)),
        ),
        # The names of torch's weight normalisation before 2023.
        renames=(
            (r"(.*pos_conv_embed\.conv)\.weight_g", r"\1.parametrizations.weight.original0"),
            (r"(.*pos_conv_embed\.conv)\.weight_v", r"\1.parametrizations.weight.original1"),
        ),
    )


CTC = HeadFormat(
    architecture="Wav2Vec2ForCTC",
    head=lambda config, entries: TokenClassifier(config.vocab_size, dropout=config.final_dropout, start="normal"),
    matches=lambda head: isinstance(head, TokenClassifier),
    rows=lambda config: tuple(dense_rows("lm_head", "head/out")),
    prefix="wav2vec2.",
    describe=lambda head, classes: {"vocab_size": head.classes},
)
"""Connectionist temporal classification: one dense layer on every frame."""

CLASSIFIER = HeadFormat(
    architecture="Wav2Vec2ForSequenceClassification",
    head=lambda config, entries: ProjectedClassifier(label_count(entries), width=config.classifier_proj_size),
    matches=lambda head: isinstance(head, ProjectedClassifier),
    rows=lambda config: (*dense_rows("projector", "head/projection"), *dense_rows("classifier", "head/out")),
    prefix="wav2vec2.",
    describe=lambda head, classes: {**describe_labels(head, classes), "classifier_proj_size": head.width},
)

LARGE = dict(hidden_size=1024, num_hidden_layers=24, num_attention_heads=16, intermediate_size=4096)
STABLE = dict(**LARGE, conv_bias=True, feat_extract_norm="layer", do_stable_layer_norm=True)

VARIANTS = {
    "wav2vec2-base": {},
    "wav2vec2-large": LARGE,
    "wav2vec2-large-lv60": STABLE,
    "wav2vec2-large-xlsr-53": STABLE,
}
"""Published name → the sizes and norms that differ from the defaults; rates of dropout are transformers' defaults."""

FAMILY = Family(
    name="wav2vec2",
    configure=configure,
    backbone=Wav2Vec2,
    carry=dict.fromkeys(("hidden", "mask", "mask_time_indices", "features"), "example"),
    start=start,
    finish=finish,
    inputs=inputs,
    table=table,
    prefixes=("wav2vec2.", ""),
    heads={"Wav2Vec2ForCTC": CTC, "Wav2Vec2ForSequenceClassification": CLASSIFIER},
    own_pool="mean",
    sharding=(
        (r"backbone/conv\d+/conv/kernel", (None, None, "fsdp")),
        (r"backbone/projection/dense/kernel", (None, "fsdp")),
        (r"backbone/projection/mask_embedding", (None,)),
        (r"backbone/positions/conv/kernel", (None, None, "fsdp")),
        (r"backbone/block\d+/(attention/(query|key|value)|mlp/up)/kernel", ("fsdp", "tensor")),
        (r"backbone/block\d+/(attention/(query|key|value)|mlp/up)/bias", ("tensor",)),
        (r"backbone/block\d+/(attention/output|mlp/down)/kernel", ("tensor", "fsdp")),
        (r"backbone/.*/(scale|bias)", (None,)),
    ),
    variants=VARIANTS,
)
