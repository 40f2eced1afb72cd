"""Heads: small modules that turn the outputs of a backbone into the result of a task."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from tljax.models.layers import ACTIVATIONS, Dense, LayerNorm

STARTS = {
    "zeros": nn.initializers.zeros,
    # Deviation 0.02 before the truncation at 2, as the references publish it; 0.0176 after.
    "normal": nn.initializers.truncated_normal(0.02),
    "he": nn.initializers.variance_scaling(2.0, "fan_in", "truncated_normal"),
}
"""How the kernel of a head starts. "he" (He et al. 2015) suits a network that starts from scratch as a whole."""


NEVER = float(jnp.finfo(jnp.float32).min)
"""The logit of what cannot be."""


def pool(outputs: dict[str, Any], how: str) -> jax.Array:
    """One vector an example, (B, D), from a backbone's outputs.

    Args:
      outputs: `hidden` (B, T, D) or (B, H, W, D), `pooled` (B, D), `mask` (B, T).
      how: "pooled" (the checkpoint's own), "cls" (the first token), "last" (the last token that `mask` marks), or
        "mean" (over the tokens that `mask` marks, or over the pixels of a feature map).
    """
    if how == "pooled":
        return outputs["pooled"]
    hidden = outputs["hidden"]
    if how == "cls":
        return hidden[:, 0]
    if hidden.ndim == 4:
        return hidden.mean(axis=(1, 2))
    if how == "last":
        places = jnp.arange(hidden.shape[1]) * (outputs["mask"] > 0)
        return jnp.take_along_axis(hidden, places.max(axis=1)[:, None, None], axis=1)[:, 0]
    mask = outputs["mask"].astype(jnp.float32)[..., None]
    total = jnp.sum(hidden.astype(jnp.float32) * mask, axis=1)
    return (total / jnp.maximum(mask.sum(axis=1), 1e-9)).astype(hidden.dtype)


def normalize(x: jax.Array, epsilon: float = 1e-12) -> jax.Array:
    """`x` scaled to length 1 over its last axis; the norm in float32."""
    square = jnp.sum(jnp.square(x.astype(jnp.float32)), axis=-1, keepdims=True)
    # The maximum is taken of the squares: a padding row pools to 0, where a square root has an infinite gradient.
    return (x.astype(jnp.float32) / jnp.sqrt(jnp.maximum(square, epsilon**2))).astype(x.dtype)


def vector(outputs: dict[str, Any], how: str, normalized: bool = False) -> jax.Array:
    """The pooled vector of each example, (B, D), scaled to length 1 where `normalized`."""
    x = pool(outputs, how)
    return normalize(x) if normalized else x


class Embedding(nn.Module):
    """A parameter-free head: the pooled vector, L2-normalised if asked, as `embedding` (B, D)."""

    pool: str = "mean"
    normalize: bool = True

    @nn.compact
    def __call__(self, outputs: dict[str, Any], train: bool = False) -> dict[str, Any]:
        return {**outputs, "embedding": vector(outputs, self.pool, self.normalize)}


class Classifier(nn.Module):
    """Pooling, dropout and one dense layer, as `logits` (B, Y); its parameters are `out/kernel` and `out/bias`.

    Attributes:
      classes: Y; 1 for a regression.
      pool: see `pool`.
      normalize: L2-normalise the pooled vector first.
      dropout: rate before the dense layer.
      start: how the kernel starts, a key of `STARTS`.
    """

    classes: int
    pool: str = "pooled"
    normalize: bool = False
    dropout: float = 0.0
    start: str = "zeros"

    @nn.compact
    def __call__(self, outputs: dict[str, Any], train: bool = False) -> dict[str, Any]:
        x = vector(outputs, self.pool, self.normalize)
        x = nn.Dropout(self.dropout, deterministic=not train)(x)
        return {**outputs, "logits": Dense(self.classes, kernel_init=STARTS[self.start], name="out")(x)}


class MlpClassifier(nn.Module):
    """Pooling, a dense layer, an activation, dropout and a dense layer, as `logits` (B, Y): `hidden/…` and `out/…`.

    Attributes:
      classes: Y.
      pool: see `pool`.
      activation: between the two layers.
      dropout: rate before the last layer.
    """

    classes: int
    pool: str = "cls"
    activation: str = "tanh"
    dropout: float = 0.0

    @nn.compact
    def __call__(self, outputs: dict[str, Any], train: bool = False) -> dict[str, Any]:
        x = pool(outputs, self.pool)
        x = ACTIVATIONS[self.activation](Dense(x.shape[-1], kernel_init=STARTS["normal"], name="hidden")(x))
        x = nn.Dropout(self.dropout, deterministic=not train)(x)
        return {**outputs, "logits": Dense(self.classes, kernel_init=STARTS["normal"], name="out")(x)}


class TokenClassifier(nn.Module):
    """Dropout and one dense layer on every token or frame, as `logits` (B, T, Y); parameters `out/kernel`, `out/bias`.

    Attributes:
      classes: Y.
      dropout: rate before the dense layer.
      start: how the kernel starts, a key of `STARTS`.
    """

    classes: int
    dropout: float = 0.0
    start: str = "zeros"

    @nn.compact
    def __call__(self, outputs: dict[str, Any], train: bool = False) -> dict[str, Any]:
        x = nn.Dropout(self.dropout, deterministic=not train)(outputs["hidden"])
        return {**outputs, "logits": Dense(self.classes, kernel_init=STARTS[self.start], name="out")(x)}


class SpanClassifier(nn.Module):
    """Where an answer starts and stops: one dense layer on every token, as `start_logits` and `stop_logits` (B, T).

    Parameters: `out/kernel` (D, 2), `out/bias`. Padding, which `mask` marks with 0, gets the least number there is.

    Attributes:
      dropout: rate before the dense layer.
    """

    dropout: float = 0.0

    @nn.compact
    def __call__(self, outputs: dict[str, Any], train: bool = False) -> dict[str, Any]:
        x = nn.Dropout(self.dropout, deterministic=not train)(outputs["hidden"])
        logits = Dense(2, kernel_init=STARTS["normal"], name="out")(x).astype(jnp.float32)
        start, stop = (jnp.where(outputs["mask"] > 0, logits[..., i], NEVER) for i in (0, 1))
        return {**outputs, "start_logits": start, "stop_logits": stop}


class ProjectedClassifier(nn.Module):
    """A dense layer on every frame, their mean, and a dense layer on it, as `logits` (B, Y).

    What the SUPERB tasks put on speech models (Yang et al. 2021). Parameters: `projection/…` and `out/…`.

    Attributes:
      classes: Y.
      width: of the first layer.
    """

    classes: int
    width: int = 256

    @nn.compact
    def __call__(self, outputs: dict[str, Any], train: bool = False) -> dict[str, Any]:
        x = Dense(self.width, name="projection")(outputs["hidden"])
        logits = Dense(self.classes, name="out")(pool({**outputs, "hidden": x}, "mean"))
        return {**outputs, "logits": logits}


class DistilledClassifier(nn.Module):
    """A classifier on the class token and one on the distillation token, and their mean as `logits` (B, Y).

    Touvron et al. 2021 (DeiT), at inference. Parameters: `out/…` and `distillation/…`.

    Attributes:
      classes: Y.
    """

    classes: int

    @nn.compact
    def __call__(self, outputs: dict[str, Any], train: bool = False) -> dict[str, Any]:
        kernel = nn.initializers.truncated_normal(0.02)
        cls, distillation = (
            Dense(self.classes, kernel_init=kernel, name=name)(outputs["hidden"][:, i])
            for i, name in enumerate(("out", "distillation"))
        )
        logits = (cls + distillation) / 2
        return {**outputs, "logits": logits, "cls_logits": cls, "distillation_logits": distillation}


class Several(nn.Module):
    """Heads on one backbone: `heads` {name: what that head adds to the outputs}; parameters under each head's name.

    Attributes:
      heads: pairs of a name and a head.
    """

    heads: tuple[tuple[str, nn.Module], ...]

    @nn.compact
    def __call__(self, outputs: dict[str, Any], train: bool = False) -> dict[str, Any]:
        made = {name: head.clone(name=name, parent=self)(outputs, train) for name, head in self.heads}
        added = {name: {key: x for key, x in own.items() if x is not outputs.get(key)} for name, own in made.items()}
        return {**outputs, "heads": added}


class LanguageModel(nn.Module):
    """A distribution over the vocabulary at every token, as `logits` (B, T, V) from `hidden` (B, T, D).

    Parameters: `out/kernel` (D, V) unless `tied`, `out/bias` (V,) with `bias`; with a `transform` (the masked language
    models of Devlin et al. 2019 and their successors) also `transform/kernel`, `transform/bias` and `norm/…`.

    Attributes:
      vocabulary: V.
      tied: the output embedding is the backbone's `word_embeddings` (V, D); the head has no leaf for it (Press and
        Wolf 2017).
      bias: a bias on the logits.
      scale: factor on the features (T5 with tied embeddings: D ** -0.5).
      transform: activation of a dense layer with a layer norm after it, in front of the output embedding; "" for none.
      transform_bias: whether that dense layer has a bias.
      epsilon: of that norm.
      lazy: no logits; instead what makes them chunk by chunk, `features @ output_embedding.T + output_bias`:
        `features` (B, T, D), `output_embedding` (V, D) and `output_bias` (V,) or None.
    """

    vocabulary: int
    tied: bool = True
    bias: bool = False
    scale: float = 1.0
    transform: str = ""
    transform_bias: bool = True
    epsilon: float = 1e-12
    lazy: bool = False

    @nn.compact
    def __call__(self, outputs: dict[str, Any], train: bool = False) -> dict[str, Any]:
        x = outputs["hidden"]
        if self.transform:
            x = ACTIVATIONS[self.transform](Dense(x.shape[-1], self.transform_bias, name="transform")(x))
            x = LayerNorm(self.epsilon, name="norm")(x)
        x = x if self.scale == 1.0 else x * self.scale
        out = _OutputEmbedding(self.vocabulary, self.tied, self.bias, name="out")
        table, bias = out(outputs["word_embeddings"] if self.tied else None, x.shape[-1])
        if self.lazy:
            return {**outputs, "features": x, "output_embedding": table, "output_bias": bias}
        logits = x @ table.T.astype(x.dtype)
        return {**outputs, "logits": logits if bias is None else logits + bias}


class _OutputEmbedding(nn.Module):
    """The leaves of a language model's output, so that they stand under one name."""

    vocabulary: int
    tied: bool
    bias: bool

    @nn.compact
    def __call__(self, table: jax.Array | None, width: int) -> tuple[jax.Array, jax.Array | None]:
        if not self.tied:
            table = self.param("kernel", STARTS["normal"], (width, self.vocabulary)).T
        return table, self.param("bias", nn.initializers.zeros, (self.vocabulary,)) if self.bias else None
