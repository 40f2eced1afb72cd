"""Beam search over continuations, one compiled loop. Sutskever, Vinyals and Le 2014; Wu et al. 2016.

The rules of ranking, finishing and stopping are those of transformers, so that texts are equal token for token.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

FAR = -1.0e9
"""Added to scores that must not win, as in transformers: finite, so that the worst candidates still have an order."""


def is_end(tokens: jax.Array, eos: tuple[int, ...]) -> jax.Array:
    """Whether a token ends a text."""
    return functools.reduce(jnp.logical_or, (tokens == e for e in eos), jnp.zeros(tokens.shape, bool))


def beam_search(
    advance: Callable[..., Any],
    choose: Callable[..., jax.Array],
    logits: jax.Array,
    cache: Any,
    *,
    length: int,
    beams: int,
    eos: tuple[int, ...],
    pad: Any,
    penalty: float,
    stopping: bool | str,
) -> tuple[jax.Array, jax.Array]:
    """The best text of each prompt.

    Args:
      advance: (tokens (N,), how many are written, cache) → (logits (N, V), cache), with N = B · K beams.
      choose: (logits (N, V), tokens (N, L), how many) → log-probabilities.
      logits: (B, V) after the prompts.
      cache: of the prompts, batch B. Leaves whose name begins with `cross_` are the same for all beams of a prompt.
      length: L, the most tokens.
      beams: K.
      eos: tokens that end a text.
      pad: fills up finished texts.
      penalty: scores are divided by length ** penalty.
      stopping: see `generate`.

    Returns:
      tokens (B, L) and penalised scores (B,).
    """
    batch = logits.shape[0]
    step = functools.partial(
        _rank, choose=choose, length=length, beams=beams, eos=eos, penalty=penalty, stopping=stopping
    )
    empty = jnp.full((batch, beams, length), pad, jnp.int32)
    state = {
        "cache": jax.tree.map(lambda leaf: jnp.repeat(leaf, beams, axis=0), cache),
        "running": empty,
        # All beams start equal: only the first may spread, or each would find the same tokens.
        "scores": jnp.full((batch, beams), FAR).at[:, 0].set(0.0),
        "texts": empty,
        "text_scores": jnp.full((batch, beams), FAR),
        "finished": jnp.zeros((batch, beams), bool),
        "open": jnp.ones((batch, 1), bool),
        "count": jnp.int32(0),
        "going": jnp.bool_(True),
    }

    def body(state: dict[str, Any]) -> dict[str, Any]:
        count = state["count"]
        last = jax.lax.dynamic_index_in_dim(state["running"], count - 1, axis=2, keepdims=False)
        logits, cache = advance(last.reshape(-1), count, state["cache"])
        return step(logits, {**state, "cache": cache})

    state = step(jnp.repeat(logits, beams, axis=0), state)
    state = jax.lax.while_loop(lambda state: state["going"], body, state)
    return state["texts"][:, 0], state["text_scores"][:, 0]


def _rank(
    logits: jax.Array,
    state: dict[str, Any],
    *,
    choose: Callable[..., jax.Array],
    length: int,
    beams: int,
    eos: tuple[int, ...],
    penalty: float,
    stopping: bool | str,
) -> dict[str, Any]:
    """One more token on every beam: the best continuations go on, those that end join the finished texts."""
    batch, vocabulary = state["running"].shape[0], logits.shape[1]
    count = state["count"]
    scores = choose(logits, state["running"].reshape(batch * beams, -1), count)
    scores = (scores.reshape(batch, beams, vocabulary) + state["scores"][..., None]).reshape(batch, -1)
    # Enough candidates that as many as there are beams go on, whatever ends.
    best, index = jax.lax.top_k(scores, min(max(2, 1 + len(eos)) * beams, beams * vocabulary))
    source, token = index // vocabulary, (index % vocabulary).astype(jnp.int32)
    candidates = jnp.take_along_axis(state["running"], source[..., None], axis=1)
    candidates = jax.lax.dynamic_update_slice_in_dim(candidates, token[..., None], count, axis=2)
    ends = is_end(token, eos) | (count + 1 == length)

    going_on, kept = jax.lax.top_k(best + ends * FAR, beams)
    running = jnp.take_along_axis(candidates, kept[..., None], axis=1)
    parents = jnp.take_along_axis(source, kept, axis=1) + beams * jnp.arange(batch)[:, None]

    # Only the best `beams` candidates may become texts; those after them are there to go on.
    ended = ends & (jnp.arange(best.shape[1]) < beams)
    full = jnp.all(state["finished"], axis=1, keepdims=True) & (stopping is True)
    marks = best / (count + 1.0) ** penalty + full * FAR + ~state["open"] * FAR + ~ended * FAR
    text_scores, kept = jax.lax.top_k(jnp.concatenate([state["text_scores"], marks], axis=1), beams)
    texts = jnp.concatenate([state["texts"], candidates], axis=1)
    finished = jnp.concatenate([state["finished"], ended], axis=1)
    texts = jnp.take_along_axis(texts, kept[..., None], axis=1)
    finished = jnp.take_along_axis(finished, kept, axis=1)

    count = count + 1
    longest = float(length) if stopping == "never" and penalty > 0 else count.astype(jnp.float32)
    worst = jnp.where(finished, text_scores.min(axis=1, keepdims=True), FAR)
    can_win = jnp.any(going_on[:, :1] / longest**penalty > worst, axis=1, keepdims=True)
    open_ = state["open"] & can_win
    going = jnp.any(open_) & ~jnp.all(ends)
    if stopping is True:
        going &= ~jnp.all(finished)
    return {
        "cache": {k: v if k.startswith("cross_") else v[parents.reshape(-1)] for k, v in state["cache"].items()},
        "running": running,
        "scores": going_on,
        "texts": texts,
        "text_scores": text_scores,
        "finished": finished,
        "open": open_,
        "count": count,
        "going": going,
    }
