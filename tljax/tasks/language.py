"""What the language-modelling tasks share: the head, the loss of a token, the sums of a text, the perplexity."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tljax import losses
from tljax.base.errors import UserError
from tljax.data.language import NO_LABEL
from tljax.models.forward import forward
from tljax.models.heads import LanguageModel
from tljax.tasks.spec import TaskSpec


def own_language_model(spec: TaskSpec) -> LanguageModel:
    """The checkpoint's own head; for a backbone alone a new one, tied as its config says."""
    if isinstance(spec.head, LanguageModel):
        return spec.head
    tied = getattr(spec.config, "tie_word_embeddings", True)
    return LanguageModel(spec.config.vocab_size, tied=tied and "word_embeddings" in spec.outputs)


def token_losses(outputs: Mapping[str, Any], labels: Any, *, chunk: int | None = None) -> tuple[jax.Array, jax.Array]:
    """(−log p, whether right) of a lazy head's outputs, both (B, T); `chunk` tokens of each example at a time."""
    table, bias = outputs["output_embedding"], outputs["output_bias"]
    return losses.token_cross_entropy(outputs["features"], table, bias, labels, chunk=chunk)


def check_chunk(chunk: int | None) -> None:
    """Raises `UserError` for an option `chunk` that is no number of tokens."""
    if chunk is not None and (type(chunk) is not int or chunk < 1):
        raise UserError(f"config.task.chunk is {chunk!r}; it must be a whole number from 1, or None.")


def next_token_sums(model: Any, variables: Mapping[str, Any], batch: Mapping[str, Any]) -> dict[str, jax.Array]:
    """`nll`, `right` and `count` of each example, (B,) float32."""
    outputs, _ = forward(model, variables, batch["inputs"])
    return sums(*token_losses(outputs, batch["targets"]), batch["targets"])


def sums(each: jax.Array, right: jax.Array, labels: jax.Array) -> dict[str, jax.Array]:
    """Sums over the tokens of each example, (B,) float32."""
    count = (labels != NO_LABEL).sum(axis=1).astype(jnp.float32)
    return {"nll": each.sum(axis=1), "right": right.sum(axis=1).astype(jnp.float32), "count": count}


def language_metrics(predictions: Mapping[str, Sequence[float]]) -> dict[str, float]:
    """`perplexity`, `loss` (nats a token) and `token_accuracy`, over all tokens of the split."""
    nll, right, count = (float(np.sum(predictions[name], dtype=np.float64)) for name in ("nll", "right", "count"))
    loss = nll / max(count, 1.0)
    return {"perplexity": float(np.exp(min(loss, 700.0))), "loss": loss, "token_accuracy": right / max(count, 1.0)}
