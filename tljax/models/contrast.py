"""Heads on embeddings: the scaled products of images and texts, a projection, and a classifier written by texts."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from tljax.models.layers import Dense


def scale_of(raw: jax.Array, limit: float = 0.0) -> jax.Array:
    """exp(raw), in float32, at most `limit` where that is above 0; the gradient passes as if there were no limit.

    So a scale at its limit can come back, as where the parameter is clipped after the step (Radford et al. 2021).
    """
    raw = raw.astype(jnp.float32)
    if limit:
        raw = raw + jax.lax.stop_gradient(jnp.minimum(raw, jnp.log(limit)) - raw)
    return jnp.exp(raw)


class Contrast(nn.Module):
    """Cosines of all images with all texts, times a learned scale.

    They are `logits_per_image` (B, Bt) and `logits_per_text` (Bt, B). Its parameter is `logit_scale` (), the logarithm
    of the scale. Where the texts or the images are absent it gives the scale alone, as `scale` (); the embeddings are
    in the backbone's outputs.

    Attributes:
      start: of `logit_scale`; the default is log(1 / 0.07).
      limit: the largest scale, 0 for none (`scale_of`).
    """

    start: float = 2.6592
    limit: float = 0.0

    @nn.compact
    def __call__(self, outputs: dict[str, Any], train: bool = False) -> dict[str, Any]:
        raw = self.param("logit_scale", nn.initializers.constant(self.start), ())
        scale = scale_of(raw, self.limit)
        outputs = {**outputs, "scale": scale}
        if "text_embeds" not in outputs or "image_embeds" not in outputs:
            return outputs
        texts, images = (outputs[name].astype(jnp.float32) for name in ("text_embeds", "image_embeds"))
        per_text = (texts @ images.T) * scale
        return {**outputs, "logits_per_text": per_text, "logits_per_image": per_text.T}


class Projection(nn.Module):
    """The pooled vector through one dense layer without bias, not normalised, (B, D).

    Attributes:
      features: D.
      name_of_output: what the result is called: "text_embeds" or "image_embeds".
    """

    features: int
    name_of_output: str

    @nn.compact
    def __call__(self, outputs: dict[str, Any], train: bool = False) -> dict[str, Any]:
        x = outputs["pooled"]
        kernel = nn.initializers.normal(x.shape[-1] ** -0.5)
        return {**outputs, self.name_of_output: Dense(self.features, False, kernel, name="out")(x)}


class ZeroShot(nn.Module):
    """Scaled cosines of an image's embedding with one vector a class, as `logits` (B, Y).

    Parameters: `kernel` (D, Y), which a task fills with the embeddings of the classes' names, and `logit_scale` ().

    Attributes:
      classes: Y.
      start: of `logit_scale`.
      limit: the largest scale, 0 for none.
    """

    classes: int
    start: float = 2.6592
    limit: float = 0.0

    @nn.compact
    def __call__(self, outputs: dict[str, Any], train: bool = False) -> dict[str, Any]:
        x = outputs["image_embeds"].astype(jnp.float32)
        kernel = self.param("kernel", nn.initializers.normal(x.shape[-1] ** -0.5), (x.shape[-1], self.classes))
        raw = self.param("logit_scale", nn.initializers.constant(self.start), ())
        logits = (x @ kernel.astype(jnp.float32)) * scale_of(raw, self.limit)
        return {**outputs, "logits": logits}
