"""Learned vectors that stand among those of the tokens: prefixes of attentions, prompts of texts and of images.

    …/attention/{key, value}/prefix/vectors     (n, N·K): keys and values before those of the tokens
    …/embed/positions/prefix/places             (n,) ones: as many positions are the prefix's, the tokens' follow them
    …/embed/words/prompt/vectors                (n, D): tokens before the text
    …/block0/attention/query/visual_prompt/vectors  (n, D): tokens of a block besides those of the image

They hang beside kernels, as all adapters do (`tljax.models.adapters`).
"""

from collections.abc import Iterator, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from tljax.base.errors import UserError
from tljax.models.adapters import PREFIX, PROMPT, VISUAL, beside

FAMILIES = {
    PROMPT: ("bert", "distilbert", "gpt2", "llama", "mistral", "qwen2", "qwen3", "t5", "t5_encoder"),
    VISUAL: ("vit", "deit"),
}
"""The families that can have them, where not all can."""

FILLED = {"attention_mask": 1, "token_type_ids": 0, "segment_ids": -1}
"""What the inputs of a text say of its prompt."""


def with_prefix(
    module: nn.Module, k: jax.Array, v: jax.Array, mask: Any, bias: Any
) -> tuple[jax.Array, jax.Array, Any, Any]:
    """Keys and values (B, S, N, K) with the prefix of the attention `module` before them, if it has one.

    Every token sees it, and it has no bias. As nothing is turned any more here, it stands at no rotary position.

    Raises:
      UserError: a prefix of the keys or of the values alone.
    """
    keys, values = (_beside(module, child).get(PREFIX) for child in ("key", "value"))
    if keys is None and values is None:
        return k, v, mask, bias
    if keys is None or values is None:
        lone = "values" if keys is None else "keys"
        raise UserError(
            f"{'/'.join(module.path)} has a prefix of its {lone} alone. Let the other strategies leave its kernels of "
            "both key and value free to train, or none."
        )
    count, tokens = len(keys["vectors"]), k.shape[1]

    def before(x: jax.Array, vectors: jax.Array) -> jax.Array:
        own = vectors.astype(x.dtype).reshape(1, count, *x.shape[2:])
        return jnp.concatenate([jnp.broadcast_to(own, (x.shape[0], *own.shape[1:])), x], axis=1)

    def widened(x: Any, value: Any) -> Any:
        if x is None:
            return None
        x = jnp.broadcast_to(x, (*x.shape[:-1], tokens))
        return jnp.pad(x, (*((0, 0) for _ in x.shape[:-1]), (count, 0)), constant_values=value)

    return before(k, keys["vectors"]), before(v, values["vectors"]), widened(mask, True), widened(bias, 0)


def after_places(module: nn.Module, ids: jax.Array) -> jax.Array:
    """The rows `ids` (…, T) of a table of positions, moved behind those that stand for a prefix, if there is one.

    Raises:
      UserError: more tokens than positions are left.
    """
    if PREFIX not in (found := beside(module)):
        return ids
    places = found[PREFIX]["places"]
    check_room(module.count, ids.shape[-1], len(places), "prefix")
    # A sum of ones and not their number, so that the leaf is read: adapters that nobody reads are refused.
    return ids + jnp.sum(places.astype(jnp.float32)).astype(ids.dtype)


def with_prompt(module: nn.Module, ids: jax.Array, vectors: jax.Array) -> jax.Array:
    """The `vectors` (…, T, D) of words with those of the prompt in the places whose id is −1 (its first), −2 …"""
    if PROMPT not in (found := beside(module)):
        return vectors
    own = found[PROMPT]["vectors"].astype(vectors.dtype)
    return jnp.where((ids < 0)[..., None], jnp.take(own, jnp.maximum(-1 - ids, 0), axis=0, mode="clip"), vectors)


def prompted(config: Any, params: Mapping[str, Any], inputs: Mapping[str, Any]) -> tuple[Mapping[str, Any], int]:
    """(inputs with the prompt of `params` before their tokens, its length); the inputs as they are and 0 without one.

    With a cache the inputs are those of a step: who fills it puts the prompt in.

    Raises:
      UserError: more tokens than positions, with the prompt and the positions that a prefix takes.
    """
    backbone = params.get("backbone", {})
    prompt, places = (next(_leaves(backbone, *path), ()) for path in ((PROMPT, "vectors"), (PREFIX, "places")))
    given = {name: x for name, x in inputs.items() if x is not None}
    if (not len(prompt) and not len(places)) or "input_ids" not in given:
        return inputs, 0
    count, slots = 0 if "cache" in given else len(prompt), given.get("attention_mask", given["input_ids"]).shape[1]
    what = PROMPT if count else PREFIX
    check_room(getattr(config, "max_position_embeddings", None), slots, count + len(places), what)
    if not count:
        return inputs, 0
    ids = given["input_ids"]
    rows = {name: jnp.full(count, value, jnp.int32) for name, value in FILLED.items()}
    rows |= {"input_ids": -1 - jnp.arange(count), "position_ids": jnp.arange(count)}
    if "position_ids" in given:
        given["position_ids"] = given["position_ids"] + count
    before = {
        name: jnp.concatenate([jnp.broadcast_to(row.astype(given[name].dtype), (len(ids), count)), given[name]], axis=1)
        for name, row in rows.items()
        if name in given
    }
    return {**given, **before}, count


def unprompted(outputs: Mapping[str, Any], inputs: Mapping[str, Any], count: int) -> dict[str, Any]:
    """The outputs for `inputs` without the `count` places of a prompt. A decoder's are left alone: it stands before the
    encoder's tokens; and so is `encoder_hidden`, which a decoder reads with the prompt."""
    if not count:
        return dict(outputs)
    own = inputs.get("decoder_input_ids") is None
    cut = {name: outputs[name][:, count:] for name in ("hidden", "mask") if own and outputs.get(name) is not None}
    for name in ("hidden_states", "encoder_hidden_states"):
        if name in outputs:
            cut[name] = tuple(x[:, count:] for x in outputs[name])
    return {**outputs, **cut}


def check_room(positions: int | None, tokens: int, count: int, what: str) -> None:
    """Raises `UserError` where a prompt or prefix of `count` and so many tokens do not fit the positions of a model."""
    if positions is not None and tokens + count > positions:
        raise UserError(
            f"An input has {tokens} tokens, the {what} takes {count} positions before them, and the model has "
            f"{positions}. Lower the processor's max_length (of a language model the task's length or max_new_tokens), "
            f"or config.strategy.{what}.length{', or set places=False' if what == PREFIX else ''}."
        )


def with_visual_prompts(module: nn.Module, carry: Mapping[str, Any]) -> jax.Array:
    """`hidden` (B, T, D) and after it the visual prompts: the block's own, or those that the block before handed on."""
    x, prompts = carry["hidden"], carry.get("visual_prompts")
    own = _beside(module, "attention", "query").get(VISUAL)
    if own is not None:
        prompts = jnp.broadcast_to(own["vectors"].astype(x.dtype), (len(x), *own["vectors"].shape))
    return x if prompts is None else jnp.concatenate([x, prompts], axis=1)


def without_visual_prompts(x: jax.Array, carry: Mapping[str, Any]) -> dict[str, jax.Array]:
    """What a block makes of `with_visual_prompts`, apart: `hidden`, and `visual_prompts` where there are any."""
    tokens = carry["hidden"].shape[1]
    return {"hidden": x} if x.shape[1] == tokens else {"hidden": x[:, :tokens], "visual_prompts": x[:, tokens:]}


def prefix_leaves(rng: jax.Array, kernel: jax.Array, *, length: int, deviation: float) -> dict[str, jax.Array]:
    """As many keys or values as `length`, as wide as what the kernel makes; normal."""
    return {"prefix/vectors": deviation * jax.random.normal(rng, (length, kernel.shape[-1]))}


def places_leaves(rng: jax.Array, table: jax.Array, *, length: int) -> dict[str, jax.Array]:
    """`length` ones."""
    del rng, table
    return {"prefix/places": jnp.ones(length)}


def prompt_leaves(rng: jax.Array, table: jax.Array, *, length: int, start: str) -> dict[str, jax.Array]:
    """Vectors of words that are drawn from the table ("vocabulary"), or normal ones of the table's deviation."""
    table = table.astype(jnp.float32)
    if start == "vocabulary":
        return {"prompt/vectors": table[jax.random.randint(rng, (length,), 0, len(table))]}
    return {"prompt/vectors": jnp.std(table) * jax.random.normal(rng, (length, table.shape[-1]))}


def visual_prompt_leaves(rng: jax.Array, kernel: jax.Array, *, length: int) -> dict[str, jax.Array]:
    """As many tokens as `length`, as wide as what goes into the kernel; uniform up to √(3 / D).

    It is Jia et al.'s √(6 / (pixels of a patch + D)) where the two are equal, as in ViT-B/16.
    """
    width = kernel.shape[-2]
    bound = (3 / width) ** 0.5
    return {"visual_prompt/vectors": jax.random.uniform(rng, (length, width), minval=-bound, maxval=bound)}


def _beside(module: nn.Module, child: str, *path: str) -> Mapping[str, Any]:
    """The branches of a child of `module`, or of a child's child; none where there is none."""
    found = module.get_variable("params", child, {})
    for name in path:
        found = found.get(name, {})
    return found


def _leaves(tree: Mapping[str, Any], kind: str, leaf: str) -> Iterator[Any]:
    """All leaves `…/kind/leaf`."""
    for name, branch in tree.items():
        if isinstance(branch, Mapping):
            if name == kind and leaf in branch:
                yield branch[leaf]
            yield from _leaves(branch, kind, leaf)
