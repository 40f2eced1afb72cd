"""Contrastive learning of speech without labels. Baevski, Zhou, Mohamed and Auli 2020, arXiv 2006.11477.

Axes: B batch, T frames, C channels of the feature encoder, D width of the transformer, G groups of the codebook, V
codes a group, K negatives, W width of the common space.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from tljax.base.errors import UserError, raise_faults
from tljax.base.types import Loss, Method, Task
from tljax.methods.common import negative_faults


def wav2vec2(
    forward: Callable[..., tuple[Any, Any]],
    task: Task,
    *,
    mask_probability: float = 0.65,
    mask_length: int = 10,
    min_spans: int = 2,
    negatives: int = 100,
    groups: int = 2,
    codes: int = 320,
    code_width: int = 256,
    width: int = 256,
    contrast_temperature: float = 0.1,
    diversity: float = 0.1,
    temperature: tuple[float, float, float] = (2.0, 0.5, 0.999995),
) -> Method:
    """Spans of frames are hidden from the transformer, which tells each one's quantized features from other frames'.

    The wing `method/` holds `quantizer/projection` (C → G · V), `quantizer/codes` (G, V, code_width / G), `project_q`
    (code_width → W) and `project_hid` (D → W). It starts from random values: a checkpoint's own quantizer is not read.
    The paper's penalty on the size of the features, and its smaller gradient for the feature encoder, are left out;
    the latter is a learning rate of a strategy. Padding is known by the inputs' `attention_mask`; without one it counts
    as sound.

    Args:
      forward: (params, state, inputs, rng, *, train) → (outputs, state), with the outputs `hidden` (B, T, D),
        `features` (B, T, C) and `mask` (B, T), and the input `mask_time_indices` (B, T).
      task: gives the model inputs; its loss is not used, and no labels are.
      mask_probability: share of the frames that spans would cover if they never overlapped; 0.65 hides about half.
      mask_length: frames of a span.
      min_spans: the fewest spans of an utterance that is long enough for them.
      negatives: K, drawn with replacement from the other hidden frames of the same utterance.
      groups: G.
      codes: V.
      code_width: of the concatenated codes; a multiple of G.
      width: W.
      contrast_temperature: what the cosines are divided by.
      diversity: weight of the diversity loss.
      temperature: of the Gumbel softmax (Jang, Gu and Poole 2017): at the start, at the least, and the factor a step.

    Returns:
      A `Method` with the losses `contrastive`, a mean over hidden frames, and `diversity`, 0 where all codes are
      equally likely; and the metrics `accuracy` (the true frame is the nearest), `perplexity` of the codes (G · V at
      most), `temperature` and `masked`, the share of frames that are hidden.

    Raises:
      UserError: options out of range; a backbone that gives out no features of frames.
    """
    _check(
        mask_probability=mask_probability,
        mask_length=mask_length,
        min_spans=min_spans,
        negatives=negatives,
        groups=groups,
        codes=codes,
        code_width=code_width,
        width=width,
        contrast_temperature=contrast_temperature,
        diversity=diversity,
        temperature=temperature,
    )

    def init(rng, shapes):
        if any(shapes.get(name) is None for name in ("features", "hidden", "mask")):
            raise UserError(
                "The method wav2vec2 needs a speech model with a feature encoder (family wav2vec2), and this backbone "
                f"gives out {', '.join(shapes) or 'nothing'}."
            )
        channels, inner = shapes["features"].shape[-1], shapes["hidden"].shape[-1]
        return init_wing(rng, channels, inner, groups=groups, codes=codes, code_width=code_width, width=width), {}

    def loss(params, state, batches, rng, step):
        batch = batches["train"]
        inputs, weight = task.inputs(batch), jnp.asarray(batch["weight"])
        if "input_values" not in inputs:
            raise UserError(f"The method wav2vec2 hides frames of waveforms, and the inputs are {', '.join(inputs)}.")
        mask_key, negative_key, noise_key, forward_key = jax.random.split(rng, 4)
        # Of this pass only the mask of the frames is used, so the compiler drops the rest of it.
        mask = forward(params, state, inputs, forward_key, train=False)[0]["mask"]
        real = (mask > 0) & (weight > 0)[:, None]
        masked = sample_mask(mask_key, real, probability=mask_probability, length=mask_length, least=min_spans)
        drawn = sample_negatives(negative_key, masked, negatives)
        outputs, state = forward(params, state, {**inputs, "mask_time_indices": masked}, forward_key, train=True)
        heat = gumbel_temperature(step, *temperature)
        noise = jax.random.gumbel(noise_key, (*masked.shape, groups, codes))
        losses, metrics = objective(
            params["method"],
            outputs,
            masked,
            drawn,
            noise=noise,
            temperature=heat,
            contrast_temperature=contrast_temperature,
            diversity=diversity,
            weight=weight,
        )
        share = jnp.sum(masked) / jnp.maximum(jnp.sum(real), 1)
        return losses, state, {**metrics, "temperature": heat, "masked": share}

    return Method(loss=loss, init=init, streams={"train": "unlabelled"}, changes_inputs=True)


def _check(*, temperature: Any, **options: Any) -> None:
    faults = [
        f"{name} is {options[name]!r}; it must be a whole number from 1."
        for name in ("mask_length", "min_spans", "negatives", "groups", "codes", "code_width", "width")
        if not isinstance(options[name], int) or options[name] < 1
    ]
    if not 0 < options["mask_probability"] <= 1:
        faults.append(f"mask_probability is {options['mask_probability']!r}; it must be above 0, and at most 1.")
    if options["contrast_temperature"] <= 0:
        faults.append(f"contrast_temperature is {options['contrast_temperature']!r}; it must be above 0.")
    faults += negative_faults(diversity=options["diversity"])
    if not faults and options["code_width"] % options["groups"]:
        faults.append(f"code_width is {options['code_width']}; it must be a multiple of groups, {options['groups']}.")
    if len(temperature) != 3 or not (temperature[0] >= temperature[1] > 0 and 0 < temperature[2] <= 1):
        faults.append(
            f"temperature is {tuple(temperature)!r}; it must be (first, least, factor a step), with first at or above "
            "least, least above 0, and the factor above 0 and at most 1."
        )
    raise_faults("The section config.method cannot be used:", faults)


def init_wing(
    rng: jax.Array, channels: int, inner: int, *, groups: int, codes: int, code_width: int, width: int
) -> dict[str, Any]:
    """Random parameters of the wing `method/`, float32; starts as in the reference."""
    keys = jax.random.split(rng, 6)

    def dense(kernel_key, bias_key, size):
        limit = 1 / math.sqrt(size)
        draw = lambda key, shape: jax.random.uniform(key, shape, minval=-limit, maxval=limit)  # noqa: E731
        return {"kernel": draw(kernel_key, (size, width)), "bias": draw(bias_key, (width,))}

    projection = {
        "kernel": jax.random.normal(keys[0], (channels, groups * codes)),
        "bias": jnp.zeros((groups * codes,)),
    }
    table = jax.random.uniform(keys[1], (groups, codes, code_width // groups))
    return {
        "quantizer": {"projection": projection, "codes": table},
        "project_q": dense(keys[2], keys[3], code_width),
        "project_hid": dense(keys[4], keys[5], inner),
    }


def gumbel_temperature(step: Any, first: float, least: float, factor: float) -> jax.Array:
    """first · factor ** step, and never below `least`."""
    # The logarithm in double precision: a factor near 1 loses its last digits in float32, and the power multiplies
    # the error.
    return jnp.maximum(first * jnp.exp(jnp.asarray(step, jnp.float32) * math.log(factor)), least)


def sample_mask(rng: jax.Array, real: jax.Array, *, probability: float, length: int, least: int) -> jax.Array:
    """Which frames are hidden: spans of `length` whose starts are drawn without replacement; they may overlap.

    A row of n real frames gets `probability` · n / `length` spans, rounded up or down at random; at least `least`, and
    at most as many as there are places. A row shorter than a span gets none.

    Args:
      rng: key.
      real: (B, T), true for frames that are not padding; padding stands at the end.
      probability, length, least: see `wav2vec2`.

    Returns:
      (B, T), bool; never true in padding.
    """
    place_key, round_key = jax.random.split(rng)
    frames = jnp.sum(real, axis=1)
    places = jnp.maximum(frames - length + 1, 0)
    wanted = jnp.floor(probability * frames / length + jax.random.uniform(round_key, frames.shape)).astype(jnp.int32)
    count = jnp.minimum(jnp.maximum(wanted, least), places)
    possible = jnp.arange(real.shape[1]) < places[:, None]
    order = jnp.argsort(jnp.where(possible, jax.random.uniform(place_key, real.shape), 2.0), axis=1)
    starts = jnp.argsort(order, axis=1) < count[:, None]
    begun = jnp.cumsum(starts, axis=1)
    ended = jnp.pad(begun, ((0, 0), (length, 0)))[:, : real.shape[1]]
    return begun > ended


def sample_negatives(rng: jax.Array, masked: jax.Array, count: int) -> jax.Array:
    """For each hidden frame the places of `count` others of the same row, evenly and with replacement.

    Args:
      rng: key.
      masked: (B, T), the hidden frames.
      count: K.

    Returns:
      (B, T, K), int32: places along T. Frames that are not hidden get places that mean nothing.
    """
    order = jnp.argsort(~masked, axis=1, stable=True)
    rank = (jnp.cumsum(masked, axis=1) - 1)[..., None]
    others = jnp.maximum(jnp.sum(masked, axis=1) - 1, 1)[:, None, None]
    drawn = jax.random.randint(rng, (*masked.shape, count), 0, others)
    drawn = drawn + (drawn >= rank)  # the frame itself is skipped
    flat = jnp.take_along_axis(order, jnp.minimum(drawn, masked.shape[1] - 1).reshape(len(masked), -1), axis=1)
    return flat.reshape(drawn.shape)


def quantize(
    wing: Mapping[str, Any], features: jax.Array, noise: jax.Array | None, temperature: Any
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Codes for features: one of V in each of G groups, concatenated (product quantization, Jégou et al. 2011).

    Args:
      wing: `quantizer/…`.
      features: (B, T, C).
      noise: (B, T, G, V), standard Gumbel: the code is drawn, and its gradient is that of the softmax at
        `temperature`; None takes the likeliest code, without a gradient.
      temperature: of that softmax.

    Returns:
      (vectors (B, T, code_width), the chosen codes (B, T, G), log-probabilities of all codes (B, T, G, V)), float32.
    """
    table = wing["quantizer"]["codes"].astype(jnp.float32)
    groups, codes, _ = table.shape
    scores = _dense(wing["quantizer"]["projection"], features).reshape(*features.shape[:2], groups, codes)
    noisy = scores if noise is None else (scores + noise) / temperature
    chosen = jnp.argmax(noisy, axis=-1)
    weights = jax.nn.one_hot(chosen, codes, dtype=jnp.float32)
    if noise is not None:
        soft = jax.nn.softmax(noisy)
        weights = weights + soft - jax.lax.stop_gradient(soft)
    vectors = jnp.einsum("btgv,gvw->btgw", weights, table)
    return vectors.reshape(*features.shape[:2], -1), chosen, jax.nn.log_softmax(scores)


def perplexity(shares: jax.Array, weight: jax.Array) -> jax.Array:
    """Σ_g exp(H(mean share of each code)): from G, where one code is used in each group, to G · V.

    Args:
      shares: (B, T, G, V), probabilities of the codes.
      weight: (B, T).
    """
    mean = jnp.einsum("btgv,bt->gv", shares, weight) / jnp.maximum(jnp.sum(weight), 1e-9)
    # A share of a code that nobody uses is 0 in float32, where the logarithm's gradient is infinite.
    entropy = -jnp.sum(mean * jnp.log(jnp.maximum(mean, 1e-30)), axis=-1)
    return jnp.sum(jnp.exp(entropy))


def objective(
    wing: Mapping[str, Any],
    outputs: Mapping[str, Any],
    masked: jax.Array,
    negatives: jax.Array,
    *,
    noise: jax.Array | None,
    temperature: Any,
    contrast_temperature: float,
    diversity: float,
    weight: jax.Array,
) -> tuple[dict[str, Loss], dict[str, jax.Array]]:
    """({"contrastive", "diversity"}, {"accuracy", "perplexity"}) for given hidden frames, negatives and noise.

    Args:
      wing: parameters under `method/`.
      outputs: `hidden` (B, T, D) and `features` (B, T, C).
      masked: (B, T), the hidden frames.
      negatives: (B, T, K), places along T.
      noise, temperature: see `quantize`; without noise the diversity is that of the chosen codes.
      contrast_temperature, diversity: see `wav2vec2`.
      weight: (B,), of the utterances.
    """
    vectors, chosen, log_shares = quantize(wing, outputs["features"], noise, temperature)
    wanted = _unit(_dense(wing["project_q"], vectors))
    found = _unit(_dense(wing["project_hid"], outputs["hidden"]))
    # All pairs of an utterance at once: T² cosines take less room than K vectors of W for each of T frames.
    cosines = jnp.matmul(found, wanted.swapaxes(1, 2), precision="highest")
    alike = jnp.all(chosen[:, :, None] == chosen[:, None], axis=-1)
    others = jnp.take_along_axis(cosines, negatives, axis=2)
    # A negative with the same codes is no negative.
    others = jnp.where(jnp.take_along_axis(alike, negatives, axis=2), -jnp.inf, others)
    positive = jnp.diagonal(cosines, axis1=1, axis2=2)
    logits = jnp.concatenate([positive[..., None], others], axis=-1) / contrast_temperature
    each = jax.nn.logsumexp(logits, axis=-1) - logits[..., 0]

    # One hidden frame alone has no others to be told from.
    several = jnp.sum(masked, axis=1, keepdims=True) > 1
    counts = jnp.where(masked & several, weight[:, None], 0.0).astype(jnp.float32)
    total = jnp.sum(counts)
    groups, codes = log_shares.shape[-2:]
    shares = jax.nn.one_hot(chosen, codes) if noise is None else jnp.exp(log_shares)
    spread = perplexity(shares, counts)
    size = groups * codes
    losses = {
        "contrastive": Loss(jnp.sum(each * counts), total),
        "diversity": Loss(diversity * (size - spread) / size * total, total),
    }
    right = jnp.sum((logits[..., :1] > logits[..., 1:]).all(axis=-1) * counts) / jnp.maximum(total, 1e-9)
    return losses, {"accuracy": right, "perplexity": spread}


def _dense(leaves: Mapping[str, jax.Array], x: jax.Array) -> jax.Array:
    kernel, bias = (leaves[name].astype(jnp.float32) for name in ("kernel", "bias"))
    return x.astype(jnp.float32) @ kernel + bias


def _unit(x: jax.Array, epsilon: float = 1e-8) -> jax.Array:
    """`x` scaled to length 1 over its last axis."""
    return x * jax.lax.rsqrt(jnp.maximum(jnp.sum(x * x, axis=-1, keepdims=True), epsilon**2))
