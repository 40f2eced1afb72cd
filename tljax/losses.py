"""Losses of single examples: pure functions, float32 inside, no reduction over the batch.

Axes: B batch, Y classes, D width, T tokens, V vocabulary.
"""

import jax
import jax.numpy as jnp


def softmax_cross_entropy(logits: jax.Array, targets: jax.Array) -> jax.Array:
    """−Σ_y t_y · log softmax(z)_y, for any distribution over the classes.

    Args:
      logits: (B, Y).
      targets: (B, Y), non-negative; one-hot, smoothed or mixed.

    Returns:
      (B,), float32.
    """
    return -jnp.sum(targets * jax.nn.log_softmax(logits.astype(jnp.float32)), axis=-1)


def token_cross_entropy(
    features: jax.Array,
    table: jax.Array,
    bias: jax.Array | None,
    labels: jax.Array,
    *,
    chunk: int | None = None,
    smoothing: float = 0.0,
) -> tuple[jax.Array, jax.Array]:
    """−log softmax(features · tableᵀ + bias) at the labels, without ever holding the logits of all tokens.

    The tokens are taken `chunk` at a time along their axis, and their logits are made again on the way back.

    Args:
      features: (B, T, D).
      table: (V, D), the output embedding.
      bias: (V,) or None.
      labels: (B, T), integers; a negative one is no label.
      chunk: tokens of each example at a time; None is as many as make about 16 million logits in the batch.
      smoothing: part of each label's weight that is spread evenly over the vocabulary (Szegedy et al. 2016).

    Returns:
      (losses (B, T) float32, 0 where there is no label; whether the label has the largest logit (B, T)).
    """
    batch, tokens, _ = features.shape
    chunk = min(tokens, chunk or max(1, CHUNK_LOGITS // (batch * table.shape[0])))
    count = -(-tokens // chunk)
    padding = [(0, 0), (0, count * chunk - tokens)]
    pieces = jnp.pad(features, [*padding, (0, 0)]).reshape(batch, count, chunk, -1).swapaxes(0, 1)
    wanted = jnp.pad(labels, padding, constant_values=-1).reshape(batch, count, chunk).swapaxes(0, 1)

    @jax.checkpoint
    def piece(x: jax.Array, label: jax.Array) -> tuple[jax.Array, jax.Array]:
        logits = (x @ table.T.astype(x.dtype)).astype(jnp.float32)
        logits = logits if bias is None else logits + bias.astype(jnp.float32)
        known = label >= 0
        at_label = jnp.take_along_axis(logits, jnp.where(known, label, 0)[..., None], axis=-1)[..., 0]
        wanted = (1 - smoothing) * at_label + smoothing * jnp.mean(logits, axis=-1) if smoothing else at_label
        losses = jnp.where(known, jax.nn.logsumexp(logits, axis=-1) - wanted, 0.0)
        return losses, known & (jnp.argmax(logits, axis=-1) == label)

    found = jax.lax.map(lambda both: piece(*both), (pieces, wanted)) if count > 1 else piece(pieces[0], wanted[0])
    losses, right = found if count == 1 else (x.swapaxes(0, 1).reshape(batch, -1)[:, :tokens] for x in found)
    return losses, right


CHUNK_LOGITS = 2**24
"""Logits that `token_cross_entropy` holds at a time."""


def binary_cross_entropy(logits: jax.Array, targets: jax.Array) -> jax.Array:
    """The mean over the classes of −t · log σ(z) − (1 − t) · log σ(−z), stable for large logits.

    Args:
      logits: (B, Y), one independent decision a class.
      targets: (B, Y), in [0, 1].

    Returns:
      (B,), float32.
    """
    z = logits.astype(jnp.float32)
    return jnp.mean(-targets * jax.nn.log_sigmoid(z) - (1 - targets) * jax.nn.log_sigmoid(-z), axis=-1)


def squared_error(predicted: jax.Array, targets: jax.Array) -> jax.Array:
    """(p − t)², both (B,); the result is (B,), float32."""
    return jnp.square(predicted.astype(jnp.float32) - targets)


def cosine(a: jax.Array, b: jax.Array, epsilon: float = 1e-8) -> jax.Array:
    """The cosine of the angle between rows.

    Args:
      a: (B, D).
      b: (B, D).
      epsilon: the least length that a row counts with, so that a zero row has cosine 0 and a finite gradient.

    Returns:
      (B,), float32, in [−1, 1] up to rounding.
    """
    a, b = a.astype(jnp.float32), b.astype(jnp.float32)
    # The maximum is taken of the squares: the gradient of a square root at 0 is infinite.
    lengths = [jnp.sqrt(jnp.maximum(jnp.sum(x * x, axis=-1), epsilon**2)) for x in (a, b)]
    return jnp.sum(a * b, axis=-1) / (lengths[0] * lengths[1])


def cosine_regression(a: jax.Array, b: jax.Array, targets: jax.Array) -> jax.Array:
    """(cos(a, b) − t)² for rows of (B, D) and targets (B,); Reimers and Gurevych 2019. Returns (B,), float32."""
    return squared_error(cosine(a, b), targets)


def smooth(targets: jax.Array, amount: float) -> jax.Array:
    """(1 − amount) · t + amount / Y: part of each distribution in (B, Y) spread evenly. Szegedy et al. 2016."""
    return (1 - amount) * targets + amount / targets.shape[-1]


def in_batch_cross_entropy(scores: jax.Array, groups: jax.Array, valid: jax.Array) -> jax.Array:
    """−log softmax of each query's scores of all items of the batch, at the items that match it, in the mean of these.

    With one match a query this is InfoNCE with in-batch negatives (van den Oord et al. 2018); with several it is that
    of Yang et al. 2022 (UniCL).

    Args:
      scores: (B, B); row i is the query i, and column i the item that belongs to it.
      groups: (B,), integers: an item of the same group matches too; a negative number is no group.
      valid: (B,), whether the row is an example. The items of the others (padding) are no negatives.

    Returns:
      (B,), float32.
    """
    own = jnp.eye(scores.shape[0], dtype=bool)
    # A padding row sees itself, so that its loss, which nobody counts, is finite.
    seen = valid[None, :] | own
    match = (((groups[:, None] == groups[None, :]) & (groups[:, None] >= 0)) | own) & seen
    log_p = jax.nn.log_softmax(jnp.where(seen, scores.astype(jnp.float32), -jnp.inf), axis=-1)
    return -jnp.sum(jnp.where(match, log_p, 0.0), axis=-1) / match.sum(axis=-1)
