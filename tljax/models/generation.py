"""Generation of text, token by token, with a key–value cache of static shape: greedy, sampled, or beam search.

What a decoder must accept (transformers' names; B batch, T new tokens, S slots of the cache = prompt + new tokens):

- Decoder only: `input_ids` (B, T), `attention_mask` (B, S) over all slots (1 = may be attended; a token sees slot j
  only if j ≤ its own slot too), `position_ids` (B, T), `cache` from `Family.cache(config, B, S, dtype)`, `cache_index`
  (int32 scalar: the first new token's slot). Outputs: `hidden` (B, T, D), the new `cache`, and what the head reads.
- Encoder–decoder, first call: the inputs as given (`input_ids` or `input_features` …, `attention_mask`) without
  `decoder_input_ids`. It runs the encoder and leaves the decoder out. Outputs: `encoder_hidden` (B, S', D) and `mask`
  (B, S'), or None for it where the encoder sees no padding.
- Encoder–decoder, every other call, from the bottom of the tower: `encoder_hidden` (B, S', D) in place of the
  encoder's inputs, its `attention_mask` (B, S') (absent where `mask` was None), `decoder_input_ids` (B, T),
  `decoder_attention_mask` (B, S) over the slots, `decoder_position_ids` (B, T), `cache`, `cache_index`. The encoder's
  stages pass the carry through, but still hand on shared leaves. Outputs: `hidden` (B, T, D) of the decoder, `cache`,
  and what the head reads. The call that fills the prompt may add leaves to the cache whose names begin with `cross_`
  (the keys and values of the encoder's tokens); later calls get them back and need not make them again.

A model is an encoder–decoder if it has stages in the wing `decoder`.
"""

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from tljax.base.errors import UserError, raise_faults
from tljax.base.types import Inputs, Model
from tljax.models import get_family
from tljax.models.beams import beam_search, is_end
from tljax.models.forward import forward
from tljax.models.heads import LanguageModel
from tljax.models.prompts import prompted

Adjust = Callable[[jax.Array, jax.Array, jax.Array], jax.Array]


class Generated(NamedTuple):
    """What `generate` returns.

    Attributes:
      tokens: (B, L) int32, the new tokens alone; after the end of a text the padding token.
      lengths: (B,) int32, how many of them count, the end token included.
      scores: (B,) float32, the sum of the log-probabilities of these tokens; of a beam search divided by
        length ** length_penalty.
    """

    tokens: jax.Array
    lengths: jax.Array
    scores: jax.Array


def generate(
    model: Model,
    variables: Mapping[str, Any],
    inputs: Inputs,
    *,
    max_new_tokens: int,
    eos_token_id: int | tuple[int, ...] | None = None,
    pad_token_id: int = 0,
    num_beams: int = 1,
    temperature: float = 0.0,
    top_k: int = 0,
    top_p: float = 1.0,
    length_penalty: float = 1.0,
    early_stopping: bool | str = False,
    rng: jax.Array | None = None,
    decoder_start_token_id: int | None = None,
    adjust: Adjust | None = None,
) -> Generated:
    """Continues the prompts of a batch. Compiled once for each shape and each set of the options marked static.

    Args:
      model: a decoder or an encoder–decoder with a `LanguageModel` head. Static.
      variables: its variables.
      inputs: a decoder's prompts `input_ids` (B, T) and `attention_mask` (B, T), best padded on the left (masked tokens
        elsewhere are moved there first); an encoder's inputs, with `decoder_input_ids` (B, T) if the decoder's prompt
        is longer than the start token; other inputs of the decoder are left out.
      max_new_tokens: L. Static.
      eos_token_id: the token or tokens that end a text; None: every text has L tokens. Static.
      pad_token_id: what follows the end.
      num_beams: beams kept alive; 1 is greedy or sampled. Static. Wu et al. 2016, as transformers implements it: each
        step ranks the (1 + end tokens, at least 2) · beams best continuations.
      temperature: 0 takes the most probable token; otherwise the logits are divided by it and a token is drawn.
      top_k: draws from the k most probable only; 0 is all (Fan, Lewis and Dauphin 2018).
      top_p: draws from the smallest set of tokens whose probability reaches p (Holtzman et al. 2020).
      length_penalty: scores of finished beams are divided by length ** length_penalty. Static.
      early_stopping: True stops when there are `num_beams` finished texts, False when the best running beam at its
        present length cannot beat them, "never" when no length allowed can. Static.
      rng: key for drawing; needed with a temperature.
      decoder_start_token_id: an encoder–decoder's first token.
      adjust: (log-probabilities (N, V), tokens so far (N, L), how many) → log-probabilities: bans, forced tokens,
        repetition rules. Static, so give the same function each time.

    Returns:
      `Generated`.

    Raises:
      UserError: a model without a language-model head or a cache, prompts that do not fit, and options that contradict.
    """
    eos = () if eos_token_id is None else (eos_token_id,) if isinstance(eos_token_id, int) else tuple(eos_token_id)
    faults = _model_faults(model) + _option_faults(
        max_new_tokens, num_beams, float(temperature), top_k, top_p, early_stopping, rng
    )
    encoder = _has_encoder(model)
    if encoder and decoder_start_token_id is None and "decoder_input_ids" not in inputs:
        faults.append("An encoder–decoder needs decoder_start_token_id or decoder_input_ids.")
    if not encoder and "input_ids" not in inputs:
        faults.append(f"A decoder reads `input_ids`, and the inputs are: {', '.join(inputs) or 'none'}.")
    raise_faults("This text cannot be generated:", faults)
    return _generate(
        model,
        variables,
        {name: value for name, value in inputs.items() if value is not None},
        (temperature, top_k, top_p, pad_token_id, decoder_start_token_id or 0),
        jax.random.key(0) if rng is None else rng,
        length=max_new_tokens,
        eos=eos,
        beams=num_beams,
        sample=temperature > 0,
        penalty=float(length_penalty),
        stopping=early_stopping,
        adjust=adjust,
    )


def _model_faults(model: Model) -> list[str]:
    faults = []
    if not isinstance(model.head, LanguageModel):
        faults.append(f"The model's head is {type(model.head).__name__}, and a LanguageModel is needed.")
    if get_family(model.family).cache is None:
        faults.append(f"The family {model.family!r} is no decoder: it has no key–value cache.")
    return faults


def _option_faults(length, beams, temperature, top_k, top_p, stopping, rng) -> list[str]:
    rules = (
        (length >= 1, f"max_new_tokens is {length}; it must be a whole number from 1."),
        (beams >= 1, f"num_beams is {beams}; it must be a whole number from 1."),
        (temperature >= 0, f"temperature is {temperature}; it must not be negative."),
        (top_k >= 0, f"top_k is {top_k}; it must be a whole number, 0 for all."),
        (0 < top_p <= 1, f"top_p is {top_p}; it must be above 0 and at most 1."),
        (stopping in (True, False, "never"), f"early_stopping is {stopping!r}. Accepted: True, False, 'never'."),
        (beams <= 1 or temperature == 0, "Beam search takes the best tokens: a temperature needs num_beams=1."),
        (temperature == 0 or rng is not None, "A temperature above 0 draws tokens and needs rng."),
    )
    return [fault for fits, fault in rules if not fits]


def _has_encoder(model: Model) -> bool:
    return any(stage.startswith("decoder/") for stage in model.backbone.stages)


@functools.partial(
    jax.jit, static_argnums=0, static_argnames=("length", "eos", "beams", "sample", "penalty", "stopping", "adjust")
)
def _generate(
    model: Model,
    variables: Mapping[str, Any],
    inputs: Inputs,
    numbers: tuple,
    rng: jax.Array,
    *,
    length: int,
    eos: tuple[int, ...],
    beams: int,
    sample: bool,
    penalty: float,
    stopping: bool | str,
    adjust: Adjust | None,
) -> Generated:
    temperature, top_k, top_p, pad, first = numbers
    prompt, context = (_encode if _has_encoder(model) else _left_justify)(model, variables, inputs, length, first)
    batch, width = prompt.shape
    dtype = jax.tree.leaves(variables["params"]["backbone"])[0].dtype
    cache = get_family(model.family).cache(model.config, batch, width + length - 1, dtype)
    logits, cache = _step(model, variables, context, prompt, jnp.int32(0), cache)

    def advance(context: Any, tokens: jax.Array, count: jax.Array, cache: Any) -> tuple[jax.Array, Any]:
        return _step(model, variables, context, tokens[:, None], width + count - 1, cache)

    def choose(logits: jax.Array, tokens: jax.Array, count: jax.Array) -> jax.Array:
        scores = jax.nn.log_softmax(logits)
        return scores if adjust is None else adjust(scores, tokens, count)

    if beams > 1:
        context = jax.tree.map(lambda leaf: jnp.repeat(leaf, beams, axis=0), context)
        tokens, scores = beam_search(
            functools.partial(advance, context),
            choose,
            logits,
            cache,
            length=length,
            beams=beams,
            eos=eos,
            pad=pad,
            penalty=penalty,
            stopping=stopping,
        )
    else:
        pick = functools.partial(_draw, temperature=temperature, top_k=top_k, top_p=top_p) if sample else _best
        tokens, scores = _run(functools.partial(advance, context), choose, pick, logits, cache, rng, length, eos, pad)
    ended = is_end(tokens, eos)
    lengths = jnp.where(jnp.any(ended, axis=1), jnp.argmax(ended, axis=1) + 1, length)
    return Generated(tokens, lengths.astype(jnp.int32), scores)


def _left_justify(model: Model, variables: Any, inputs: Inputs, length: int, first: Any) -> tuple[jax.Array, dict]:
    """The prompts with their padding on the left, and what every step of a decoder needs besides the tokens."""
    inputs, _ = prompted(model.config, variables["params"], inputs)
    ids = inputs["input_ids"]
    mask = inputs.get("attention_mask", jnp.ones_like(ids))
    if mask.shape != ids.shape:
        raise UserError(f"attention_mask has the shape {mask.shape}, and input_ids {ids.shape}.")
    order = jnp.argsort(mask > 0, axis=1, stable=True)
    ids, mask = (jnp.take_along_axis(x, order, axis=1) for x in (ids, mask))
    # New tokens stand in slots that causality hides until they are there.
    slots = jnp.pad(mask, ((0, 0), (0, length - 1)), constant_values=1)
    return ids, {"slots": slots, "padding": jnp.sum(mask == 0, axis=1)}


def _encode(model: Model, variables: Any, inputs: Inputs, length: int, first: Any) -> tuple[jax.Array, dict]:
    """The decoder's prompt, and what every step of it needs besides the tokens: the encoder runs once."""
    prompt = inputs.get("decoder_input_ids")
    encoded = {name: value for name, value in inputs.items() if not name.startswith("decoder_")}
    outputs, _ = forward(model._replace(head=None), variables, encoded)
    hidden = outputs["encoder_hidden"]
    batch = hidden.shape[0]
    prompt = jnp.full((batch, 1), first, jnp.int32) if prompt is None else prompt
    context = {
        "encoder_hidden": hidden,
        "slots": jnp.ones((batch, prompt.shape[1] + length - 1), jnp.int32),
        "padding": jnp.zeros(batch, jnp.int32),
    }
    if (mask := outputs.get("mask")) is None:
        return prompt, context
    # The decoder sees the encoder's learned prompt, too.
    before = hidden.shape[1] - mask.shape[1]
    return prompt, {**context, "mask": jnp.pad(mask, ((0, 0), (before, 0)), constant_values=1)}


def _step(
    model: Model, variables: Any, context: Mapping[str, Any], ids: jax.Array, index: jax.Array, cache: Any
) -> tuple[jax.Array, Any]:
    """Writes `ids` (N, T) into the cache from slot `index`; gives the logits after the last of them (N, V), float32."""
    positions = index + jnp.arange(ids.shape[1])[None] - context["padding"][:, None]
    prefix = "decoder_" if "encoder_hidden" in context else ""
    inputs = {
        f"{prefix}input_ids": ids,
        f"{prefix}attention_mask": context["slots"],
        f"{prefix}position_ids": jnp.maximum(positions, 0),
        "cache": cache,
        "cache_index": index,
    }
    if prefix:
        inputs["encoder_hidden"] = context["encoder_hidden"]
    if "mask" in context:
        inputs["attention_mask"] = context["mask"]
    outputs, _ = forward(model._replace(head=None), variables, inputs)
    head = {"params": variables["params"].get("head", {})}
    # The head sees the last token only: a prompt's other logits are B · T · V numbers that nobody reads.
    last = {**outputs, "hidden": outputs["hidden"][:, -1:]}
    logits = model.head.clone(lazy=False).apply(head, last)["logits"]
    return logits[:, -1].astype(jnp.float32), outputs["cache"]


def _best(scores: jax.Array, rng: jax.Array) -> jax.Array:
    return jnp.argmax(scores, axis=-1)


def _draw(scores: jax.Array, rng: jax.Array, *, temperature: Any, top_k: Any, top_p: Any) -> jax.Array:
    """Tokens (N,) drawn from the log-probabilities (N, V)."""
    order = jnp.argsort(-scores, axis=-1)
    ranked = jnp.take_along_axis(scores, order, axis=-1) / temperature
    rank = jnp.arange(scores.shape[-1])
    ranked = jnp.where((top_k == 0) | (rank < top_k), ranked, -jnp.inf)
    probabilities = jax.nn.softmax(ranked)
    before = jnp.cumsum(probabilities, axis=-1) - probabilities
    ranked = jnp.where((before < top_p) | (rank == 0), ranked, -jnp.inf)
    return jnp.take_along_axis(order, jax.random.categorical(rng, ranked)[:, None], axis=-1)[:, 0]


def _run(
    advance: Callable[..., Any],
    choose: Callable[..., jax.Array],
    pick: Callable[..., jax.Array],
    logits: jax.Array,
    cache: Any,
    rng: jax.Array,
    length: int,
    eos: tuple[int, ...],
    pad: Any,
) -> tuple[jax.Array, jax.Array]:
    """One text a prompt: tokens (B, L) and the sums of their log-probabilities (B,)."""
    batch = logits.shape[0]

    def write(logits: jax.Array, state: dict[str, Any]) -> dict[str, Any]:
        scores = choose(logits, state["tokens"], state["count"])
        token = pick(scores, jax.random.fold_in(rng, state["count"])).astype(jnp.int32)
        score = jnp.take_along_axis(scores, token[:, None], axis=1)[:, 0]
        token = jnp.where(state["ended"], pad, token).astype(jnp.int32)
        return {
            "cache": state["cache"],
            "tokens": jax.lax.dynamic_update_slice_in_dim(state["tokens"], token[:, None], state["count"], axis=1),
            "scores": jnp.where(state["ended"], state["scores"], state["scores"] + score),
            "ended": state["ended"] | is_end(token, eos),
            "last": token,
            "count": state["count"] + 1,
        }

    def body(state: dict[str, Any]) -> dict[str, Any]:
        logits, cache = advance(state["last"], state["count"], state["cache"])
        return write(logits, {**state, "cache": cache})

    state = {
        "cache": cache,
        "tokens": jnp.full((batch, length), pad, jnp.int32),
        "scores": jnp.zeros(batch, jnp.float32),
        "ended": jnp.zeros(batch, bool),
        "last": jnp.zeros(batch, jnp.int32),
        "count": jnp.int32(0),
    }
    going = lambda state: (state["count"] < length) & ~jnp.all(state["ended"])  # noqa: E731
    state = jax.lax.while_loop(going, body, write(logits, state))
    return state["tokens"], state["scores"]
