"""Optimizers and learning-rate schedules by name, built over the live leaves alone.

The optimizer sees a flat tree {path: leaf} of what trains, so that frozen leaves have no state, no decay and no
place in the clipped norm. Leaves with the same (rate, decays?) share one group of `optax.multi_transform`; decay
stands inside each group, for a decay after `multi_transform` would move every leaf.
"""

import math
import numbers
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax

from tljax.base.errors import UserError, raise_faults
from tljax.base.paths import assign
from tljax.base.tables import call, lookup, options_of, suggest

OPTIMIZERS = {
    "adamw": "tljax.optim:adamw",
    "sgd": "tljax.optim:sgd",
    "lion": "tljax.optim:lion",
    "adafactor": "tljax.optim:adafactor",
}
"""Name → function (schedule, weight decay, **options) → `optax.GradientTransformation`."""

SCHEDULES = {
    "cosine": "tljax.optim:cosine",
    "linear": "tljax.optim:linear",
    "constant": "tljax.optim:constant",
}
"""Name → function: progress in [0, 1] after the warm-up → what is left of the way from 1 to the end factor."""

Schedule = Callable[[Any], Any]


def adamw(
    schedule: Schedule, weight_decay: float, *, b1: float = 0.9, b2: float = 0.999, eps: float = 1e-8
) -> optax.GradientTransformation:
    """Adam with decoupled decay: p ← p − lr · (m̂ / (√v̂ + eps) + decay · p). Loshchilov and Hutter 2019."""
    return optax.adamw(schedule, b1=b1, b2=b2, eps=eps, weight_decay=weight_decay)


def sgd(
    schedule: Schedule, weight_decay: float, *, momentum: float = 0.9, nesterov: bool = False
) -> optax.GradientTransformation:
    """Gradient descent with momentum: g ← g + decay · p, m ← momentum · m + g, p ← p − lr · m.

    The decay is the L2 penalty that torch's SGD means by it, not the decoupled one. Sutskever et al. 2013.
    """
    penalty = optax.identity() if _is_zero(weight_decay) else optax.add_decayed_weights(weight_decay)
    return optax.chain(penalty, optax.sgd(schedule, momentum=momentum or None, nesterov=nesterov))


def lion(schedule: Schedule, weight_decay: float, *, b1: float = 0.9, b2: float = 0.99) -> optax.GradientTransformation:
    """p ← p − lr · (sign(b1 · m + (1 − b1) · g) + decay · p), m ← b2 · m + (1 − b2) · g. Chen et al. 2023."""
    return optax.lion(schedule, b1=b1, b2=b2, weight_decay=weight_decay)


def adafactor(
    schedule: Schedule,
    weight_decay: float,
    *,
    decay_rate: float = 0.8,
    min_size_to_factor: int = 128,
    scale_by_parameter: bool = True,
    clipping_threshold: float | None = 1.0,
    momentum: float | None = None,
    eps: float = 1e-30,
) -> optax.GradientTransformation:
    """Adafactor: the second moment of a matrix is kept as its row and column means. Shazeer and Stern 2018.

    The decay is decoupled and follows the schedule, p ← p − lr · decay · p, as in AdamW; `optax.adafactor`
    takes decay · p off at every step, whatever the learning rate is.

    Args:
      schedule: step → learning rate; relative to the leaf's root mean square if `scale_by_parameter` is set.
      weight_decay: see above.
      decay_rate: exponent of the second moment's memory, 1 − (step + 1)^−decay_rate.
      min_size_to_factor: a leaf is factored when two of its dimensions are at least this long.
      scale_by_parameter: multiply the update by the leaf's root mean square (at least 1e-3).
      clipping_threshold: the largest root mean square of a leaf's update, before the rate; None: no clipping.
      momentum: decay of a running mean of the updates; None keeps none.
      eps: added to squared gradients.
    """
    parts = [optax.scale_by_factored_rms(decay_rate=decay_rate, min_dim_size_to_factor=min_size_to_factor, epsilon=eps)]
    if clipping_threshold is not None:
        parts.append(optax.clip_by_block_rms(clipping_threshold))
    if scale_by_parameter:
        parts.append(optax.scale_by_param_block_rms())
    if momentum is not None:
        parts.append(optax.ema(momentum, debias=False))
    if not _is_zero(weight_decay):
        parts.append(optax.add_decayed_weights(weight_decay))
    return optax.chain(*parts, optax.scale_by_learning_rate(schedule))


def cosine(progress: Any) -> Any:
    """Half a cosine, from 1 to 0. Loshchilov and Hutter 2017, without restarts."""
    return 0.5 * (1 + jnp.cos(jnp.pi * progress))


def linear(progress: Any) -> Any:
    """A straight line from 1 to 0."""
    return 1 - progress


def constant(progress: Any) -> Any:
    """1 throughout."""
    return jnp.ones_like(progress)


def make_schedule(
    learning_rate: float,
    total_steps: int,
    *,
    schedule: str = "cosine",
    warmup: float = 0.0,
    end: float = 0.0,
) -> Schedule:
    """The learning rate by step: up from 0 to `learning_rate` in the warm-up, then down to `end` times that.

    At step `s < W` it is `learning_rate · s / W`, then the schedule's shape over `(s − W) / (total − W)`, as in
    transformers' `get_linear_schedule_with_warmup` and its kin. Beyond `total_steps` it stays.

    Args:
      learning_rate: the highest value, above 0.
      total_steps: at least 1.
      schedule: a name in `SCHEDULES`.
      warmup: below 1 a fraction of `total_steps`, rounded up to whole steps; from 1 on, a number of steps.
      end: the last value as a fraction of the highest; `constant` never falls, whatever it is.

    Raises:
      UserError: an unknown schedule, or numbers out of range; all at once.
    """
    shape = lookup(SCHEDULES, schedule, what="schedule")
    _check(
        learning_rate=(learning_rate, "above 0", lambda x: x > 0),
        total_steps=(total_steps, "at least 1", lambda x: x >= 1),
        warmup=(warmup, "0 or more", lambda x: x >= 0),
        end=(end, "between 0 and 1", lambda x: 0 <= x <= 1),
    )
    steps = math.ceil(warmup * total_steps) if warmup < 1 else int(warmup)
    if steps >= total_steps:
        raise UserError(
            f"config.optim.warmup is {warmup!r}: {steps} steps of warm-up leave none of the {total_steps} steps."
        )

    def rate(step: Any) -> Any:
        step = jnp.asarray(step, jnp.float32)
        progress = jnp.clip((step - steps) / (total_steps - steps), 0.0, 1.0)
        falling = end + (1 - end) * shape(progress)
        return learning_rate * jnp.where(step < steps, step / max(steps, 1), falling)

    return rate


def decays(path: str, shape: tuple[int, ...]) -> bool:
    """Whether weight decay pulls on a leaf, unless the user says otherwise.

    It does on matrices and kernels, embedding tables of tokens and positions among them; it does not on leaves
    of rank 1 or less (scales, class tokens) nor on any `bias` or `scale`, whatever its rank.
    """
    return len(shape) > 1 and path.rpartition("/")[2] not in ("bias", "scale")


def make_optimizer(
    shapes: Mapping[str, Any],
    total_steps: int,
    rates: Mapping[str, float] | None = None,
    since: Mapping[str, int] | None = None,
    at: int = 0,
    *,
    learning_rate: float | None = None,
    name: str = "adamw",
    schedule: str = "cosine",
    warmup: float = 0.0,
    end: float = 0.0,
    weight_decay: float = 0.0,
    no_decay: Sequence[str] | None = None,
    clip: float | None = None,
    head_rate: float = 1.0,
    **options: Any,
) -> tuple[optax.GradientTransformation, Schedule]:
    """An optimizer over a flat tree of live leaves, and its learning rate by step.

    Args:
      shapes: {path: array or `jax.ShapeDtypeStruct`} of the live leaves; it works on such flat trees.
      total_steps: the number of updates.
      rates: path → factor on the learning rate; 1 for paths that are not named.
      since: path → the step at which the leaf becomes live, for paths where that is not 0. Leaves of one start form a
        group with counts of its own: what an optimizer corrects in its first steps, it corrects in theirs.
      at: the step from which the optimizer is used: over the leaves that are live by then.
      learning_rate: the highest value of the schedule; required. It and `weight_decay` may be traced.
      name: a name in `OPTIMIZERS`.
      schedule: see `make_schedule`, also for `warmup` and `end`.
      warmup: below 1 a fraction of the steps, else a number of steps.
      end: the last learning rate as a fraction of the highest.
      weight_decay: strength; what it multiplies is said at each optimizer.
      no_decay: regular expressions over paths (full match) of the leaves without decay; None: see `decays`.
      clip: the largest global norm of the live gradients; None does not clip.
      head_rate: a further factor for the wings `head` and `method`.
      **options: the optimizer's own.

    Returns:
      (transformation, schedule): `schedule(step)` is the learning rate of a leaf with rate 1.

    Raises:
      UserError: unknown names and options with the nearest accepted ones, numbers out of range, a rule in
        `no_decay` that matches no live leaf.
    """
    make = lookup(OPTIMIZERS, name, what="optimizer")
    own = options_of(make, 2)
    accepted = {*own, *options_of(make_optimizer, 5)}
    faults = [
        f"config.optim.{key} is not an option of {name}. {suggest(key, accepted)}" for key in options if key not in own
    ]
    if learning_rate is None:
        faults.append("config.optim.learning_rate is required and not given.")
    raise_faults("The optimizer cannot be made:", faults)
    _check(
        weight_decay=(weight_decay, "0 or more", lambda x: x >= 0),
        head_rate=(head_rate, "0 or more", lambda x: x >= 0),
        clip=(math.inf if clip is None else clip, "above 0, or None", lambda x: x > 0),
    )
    rate = make_schedule(learning_rate, total_steps, schedule=schedule, warmup=warmup, end=end)
    factors = {
        path: float((rates or {}).get(path, 1.0)) * (1.0 if path.startswith("backbone/") else head_rate)
        for path in shapes
    }
    pulled, begun, groups, labels = _decayed(shapes, no_decay), since or {}, {}, {}
    for path in (path for path in shapes if begun.get(path, 0) <= at):
        factor, decay, start = factors[path], weight_decay if pulled[path] else 0.0, begun.get(path, 0)
        marks = ("" if _is_zero(decay) else ",decay") + (f",since={start}" if start else "")
        labels[path] = f"rate={factor!r}{marks}"
        if labels[path] not in groups:
            groups[labels[path]] = call(make, (_scaled(rate, factor, start), decay), options, where="config.optim")
    update = optax.multi_transform(groups, labels)
    return (update if clip is None else optax.chain(optax.clip_by_global_norm(clip), update)), rate


def carried(new: Any, old: Any) -> Any:
    """The optimizer state `new`, with the values of `old` wherever that has the same place: a leaf's, a group's."""
    values = {jax.tree_util.keystr(path): leaf for path, leaf in jax.tree_util.tree_flatten_with_path(old)[0]}
    return jax.tree_util.tree_map_with_path(lambda path, leaf: values.get(jax.tree_util.keystr(path), leaf), new)


def _scaled(schedule: Schedule, factor: float, start: int) -> Schedule:
    """The rate of a group by the number of its own steps, which begin at step `start`."""
    return lambda step: factor * schedule(step + start)


def _decayed(shapes: Mapping[str, Any], no_decay: Sequence[str] | None) -> dict[str, bool]:
    if no_decay is None:
        return {path: decays(path, tuple(leaf.shape)) for path, leaf in shapes.items()}
    rules = [(pattern, False) for pattern in no_decay]
    return assign(rules, shapes, what="config.optim.no_decay", default=True)


def _is_zero(decay: Any) -> bool:
    """Whether there is no decay; what is traced is never known to be 0."""
    return not isinstance(decay, jax.core.Tracer) and not decay


def _check(**values: tuple[Any, str, Callable[[Any], bool]]) -> None:
    """Each value is (value, what it must be, whether it is). What is traced was checked by who traces it."""
    raise_faults(
        "The section config.optim cannot be used:",
        [
            f"{name} is {value!r}; it must be a number {wanted}."
            for name, (value, wanted, holds) in values.items()
            if not isinstance(value, jax.core.Tracer)
            and (isinstance(value, bool) or not isinstance(value, numbers.Real) or not holds(value))
        ],
    )
