"""The step: only live leaves move, parts add up to the whole, losses are divided once."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from tljax.base.types import Loss, Method
from tljax.sharding import batch_sharding, make_mesh, parts_sharding, replicated
from tljax.train.state import State, first_state, merge, split
from tljax.train.step import START, make_step, mix_leaves

KEY = jax.random.key(0)


def _params() -> dict:
    keys = jax.random.split(KEY, 3)
    return {
        "backbone": {"block0": {"kernel": jax.random.normal(keys[0], (5, 7))}},
        "head": {"out": {"kernel": jax.random.normal(keys[1], (7, 3)), "bias": jax.random.normal(keys[2], (3,))}},
    }


def _batch(count: int = 8) -> dict:
    generator = np.random.default_rng(0)
    return {
        "x": generator.normal(size=(count, 5)).astype(np.float32),
        "y": generator.integers(0, 3, count),
        "weight": np.array([1, 1, 0, 2, 1, 0.5, 1, 0][:count], np.float32),
    }


def _losses(params: dict, batch: dict) -> dict[str, Loss]:
    hidden = jnp.tanh(batch["x"] @ params["backbone"]["block0"]["kernel"])
    logits = hidden @ params["head"]["out"]["kernel"] + params["head"]["out"]["bias"]
    each = optax.softmax_cross_entropy_with_integer_labels(logits, batch["y"])
    weight = batch["weight"].astype(logits.dtype)
    return {
        "task": Loss(jnp.sum(each * weight), jnp.sum(weight)),
        "size": Loss(jnp.sum(hidden**2), jnp.float32(hidden.size)),
    }


def _method(combine=None) -> Method:
    def loss(params, state, batches, rng, step):
        losses = _losses(params, batches["train"])
        return losses, state, {"seen": jnp.sum(batches["train"]["weight"])}

    return Method(loss=loss, combine=combine)


def _run(live_paths, *, combine=None, accumulate=1, steps=1, batch=None) -> tuple[State, dict, dict]:
    live, frozen = split(_params(), frozenset(live_paths), jnp.float32)
    optimizer = optax.sgd(0.1)
    state = first_state(live, optimizer, batch_stats={}, method={})
    step = jax.jit(
        make_step(_method(combine), optimizer, compute_dtype=jnp.float32, accumulate=accumulate), donate_argnums=0
    )
    for _ in range(steps):
        state, metrics = step(state, frozen, {"train": batch or _batch()}, KEY)
    return state, frozen, metrics


ALL = ("backbone/block0/kernel", "head/out/kernel", "head/out/bias")


def test_one_step_is_plain_gradient_descent_on_the_weighted_means():
    state, _, metrics = _run(ALL)

    def objective(params):
        return sum(loss.sum / loss.weight for loss in _losses(params, _batch()).values())

    value, grads = jax.value_and_grad(objective)(_params())
    expected = jax.tree.map(lambda p, g: p - 0.1 * g, _params(), grads)
    got = merge(state.live, {}, jnp.float32)
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-6, atol=1e-6), got, expected)
    np.testing.assert_allclose(metrics["loss"], value, rtol=1e-6)
    np.testing.assert_allclose(metrics["gradient_norm"], optax.tree.norm(grads), rtol=1e-6)
    assert state.step == 1


def test_frozen_leaves_have_no_gradient_and_no_optimizer_state():
    state, frozen, _ = _run(("head/out/bias",), steps=3)
    assert set(state.live) == {"head/out/bias"}
    np.testing.assert_array_equal(frozen["head/out/kernel"], _params()["head"]["out"]["kernel"])
    only_bias = jax.grad(
        lambda b: _losses({**_params(), "head": {"out": {**_params()["head"]["out"], "bias": b}}}, _batch())["task"].sum
    )(_params()["head"]["out"]["bias"])
    first = _run(("head/out/bias",))[2]
    np.testing.assert_allclose(first["gradient_norm"], jnp.linalg.norm(only_bias) / 6.5, rtol=1e-5)


@pytest.mark.parametrize("accumulate", [2, 4, 8])
def test_accumulated_parts_give_the_gradient_of_the_whole(accumulate):
    whole, _, metrics = _run(ALL)
    parts, _, more = _run(ALL, accumulate=accumulate)
    for path in ALL:
        np.testing.assert_allclose(parts.live[path], whole.live[path], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(more["loss"], metrics["loss"], rtol=1e-5)


def test_a_method_sees_the_new_masters_and_the_number_of_steps_done_after_each_update():
    def after_step(state, live, step):
        return {"seen": state["seen"].at[step - 1].set(step * live["head/out/bias"])}

    live, frozen = split(_params(), frozenset({"head/out/bias"}), jnp.float32)
    optimizer = optax.sgd(0.1)
    state = first_state(live, optimizer, batch_stats={}, method={"seen": jnp.zeros((2, 3))})
    method = _method()._replace(after_step=after_step)
    step, masters = jax.jit(make_step(method, optimizer, compute_dtype=jnp.float32)), []
    for _ in range(2):
        state, _ = step(state, frozen, {"train": _batch()}, KEY)
        masters.append(state.live["head/out/bias"])
    np.testing.assert_array_equal(state.method["seen"], [masters[0], 2 * masters[1]])


def test_combine_receives_one_gradient_for_each_loss():
    only_task, _, _ = _run(ALL, combine=lambda grads, key: (grads["task"], {}))
    summed, _, _ = _run(ALL, combine=lambda grads, key: (jax.tree.map(jnp.add, grads["task"], grads["size"]), {}))
    plain, _, _ = _run(ALL)
    for path in ALL:
        np.testing.assert_allclose(summed.live[path], plain.live[path], rtol=1e-5, atol=1e-6)
    assert not np.allclose(only_task.live[ALL[0]], plain.live[ALL[0]])


def test_combine_and_accumulation_together():
    def combine(grads, key):
        return grads["task"], {"cut": jax.random.uniform(key)}

    one, _, first = _run(ALL, combine=combine)
    two, _, second = _run(ALL, combine=combine, accumulate=2)
    assert (
        first["metrics"]["cut"] == second["metrics"]["cut"] != _run(ALL, combine=combine, steps=2)[2]["metrics"]["cut"]
    )
    for path in ALL:
        np.testing.assert_allclose(two.live[path], one.live[path], rtol=1e-5, atol=1e-6)


def test_the_gradients_of_losses_with_nothing_in_common_cost_one_backward_pass():
    def loss(params, state, batches, rng, step):
        found = {}
        for name in ("one", "two", "three"):
            hidden = jnp.tanh(jnp.tanh(batches[name] @ params["a"]["kernel"]) @ params["a"]["kernel"])
            found[name] = Loss(jnp.sum(hidden**2), jnp.float32(1))
        return found, state, {}

    def cost(combine):
        live, frozen = split({"a": {"kernel": jnp.ones((64, 64))}}, frozenset({"a/kernel"}), jnp.float32)
        step = make_step(Method(loss=loss, combine=combine), optax.sgd(0.1), compute_dtype=jnp.float32)
        state = first_state(live, optax.sgd(0.1), batch_stats={}, method={})
        batches = {name: jnp.ones((256, 64)) for name in ("one", "two", "three")}
        return jax.jit(step).lower(state, frozen, batches, KEY).compile().cost_analysis()["flops"]

    summed = cost(lambda grads, key: (jax.tree.map(lambda *g: sum(g), *grads.values()), {}))
    assert summed < 1.1 * cost(None)


def test_a_batch_of_padding_alone_gives_a_finite_step():
    batch = _batch() | {"weight": np.zeros(8, np.float32)}
    state, _, metrics = _run(ALL, batch=batch)
    assert np.isfinite(metrics["loss"])
    assert all(np.isfinite(leaf).all() for leaf in state.live.values())


def test_live_leaves_are_float32_masters_and_frozen_ones_take_the_compute_dtype():
    params = jax.tree.map(lambda x: x.astype(jnp.float16), _params())
    live, frozen = split(params, frozenset({"head/out/bias"}), jnp.bfloat16)
    assert live["head/out/bias"].dtype == jnp.float32
    assert frozen["head/out/kernel"].dtype == jnp.bfloat16
    assert merge(live, frozen, jnp.bfloat16)["head"]["out"]["bias"].dtype == jnp.bfloat16


def test_randomness_is_a_function_of_key_and_step():
    def loss(params, state, batches, rng, step):
        return {"noise": Loss(jax.random.normal(rng, ()) * params["head"]["b"].sum(), jnp.float32(1))}, state, {}

    live, frozen = split({"head": {"b": jnp.ones(2)}}, frozenset({"head/b"}), jnp.float32)
    optimizer = optax.sgd(0.0)
    step = make_step(Method(loss=loss), optimizer, compute_dtype=jnp.float32)
    state = first_state(live, optimizer, batch_stats={}, method={})
    one, first = step(state, frozen, {"train": {}}, KEY)
    _, second = step(one, frozen, {"train": {}}, KEY)
    _, again = step(state, frozen, {"train": {}}, KEY)
    assert first["loss"] == again["loss"]
    assert first["loss"] != second["loss"]


def _plan_run(steps=1, seed=0, **plan):
    """(state, metrics, the first values) after steps of a run whose leaves were moved away from those."""
    first, frozen = split(_params(), frozenset(ALL), jnp.float32)
    live = {path: leaf + 0.1 for path, leaf in first.items()}
    starts = {f"{START}{path}": leaf for path, leaf in first.items()}
    optimizer = optax.sgd(0.1)
    state = first_state(live, optimizer, batch_stats={}, method={}, average="average" in plan)
    step = jax.jit(make_step(_method(), optimizer, compute_dtype=jnp.float32, **plan))
    for _ in range(steps):
        state, metrics = step(state, {**frozen, **starts}, {"train": _batch()}, jax.random.key(seed))
    return state, metrics, first


def test_a_pull_is_the_gradient_of_its_penalty():
    strengths = {"backbone/block0/kernel": 0.3, "head/out/bias": 0.05}
    pulled, metrics, first = _plan_run(pull=strengths)
    free, _, _ = _plan_run()
    for path in ALL:
        moved = -0.1 * strengths.get(path, 0.0) * ((first[path] + 0.1) - first[path])
        np.testing.assert_allclose(pulled.live[path] - free.live[path], moved, atol=1e-6)
    assert float(metrics["gradient_norm"]) > 0


def test_mixed_leaves_are_the_start_or_the_leaf_and_their_mean_is_the_leaf():
    kernel, chance = "backbone/block0/kernel", 0.4
    first, _ = split(_params(), frozenset(ALL), jnp.float32)
    live = {path: leaf + 0.1 for path, leaf in first.items()}
    frozen = {f"{START}{kernel}": first[kernel]}
    draw = jax.jit(jax.vmap(lambda key: mix_leaves(live, frozen, {kernel: chance}, key)))
    found = draw(jax.random.split(KEY, 4000))
    start, now = first[kernel], live[kernel]
    values = np.stack([(start - chance * start) / (1 - chance), (now - chance * start) / (1 - chance)])
    apart = np.abs(np.asarray(found[kernel])[:, None] - values).min(axis=1)
    np.testing.assert_allclose(apart, 0, atol=1e-5)
    np.testing.assert_allclose(found[kernel].mean(axis=0), now, atol=0.02)
    np.testing.assert_array_equal(found["head/out/kernel"][7], live["head/out/kernel"])
    plain, _, _ = _plan_run()
    same, _, _ = _plan_run(mixed={kernel: 0.0})
    np.testing.assert_array_equal(plain.live[kernel], same.live[kernel])
    other, _, _ = _plan_run(mixed={kernel: 0.5})
    assert not np.allclose(plain.live["head/out/kernel"], other.live["head/out/kernel"])


def test_an_average_follows_and_is_what_is_evaluated():
    states = [_plan_run(steps=n, average=0.6)[0] for n in (1, 2, 3)]
    path = "head/out/kernel"
    expected = split(_params(), frozenset(ALL), jnp.float32)[0][path] + 0.1
    for n, state in enumerate(states, 1):
        keep = min(0.6, n / (n + 1))
        expected = keep * expected + (1 - keep) * state.live[path]
        np.testing.assert_allclose(state.average[path], expected, rtol=1e-6)
        np.testing.assert_array_equal(state.evaluated[path], state.average[path])
    plain, _, _ = _plan_run(steps=3)
    np.testing.assert_array_equal(states[-1].live[path], plain.live[path])
    assert plain.average == {} and plain.evaluated == dict(plain.live)


@pytest.mark.skipif(jax.device_count() < 4, reason="needs four (simulated) devices")
def test_all_devices_work_on_every_part_of_a_batch():
    generator, count = np.random.default_rng(0), 256
    batch = {
        "x": generator.normal(size=(count, 5)).astype(np.float32),
        "y": generator.integers(0, 3, count),
        "weight": generator.uniform(0, 2, count).astype(np.float32),
    }
    live, _ = split(_params(), frozenset(ALL), jnp.float32)
    state, flops, losses = first_state(live, optax.sgd(0.1), batch_stats={}, method={}), [], []
    for devices in (1, 4):
        mesh = make_mesh(data=devices)
        parts = parts_sharding(mesh) if devices > 1 else None
        step = make_step(_method(), optax.sgd(0.1), compute_dtype=jnp.float32, accumulate=4, parts=parts)
        given = jax.device_put(state, replicated(mesh)), {}, {"train": jax.device_put(batch, batch_sharding(mesh))}
        compiled = jax.jit(step).lower(*given, KEY).compile()
        flops.append(compiled.cost_analysis()["flops"])
        losses.append(float(compiled(*given, KEY)[1]["loss"]))
    assert flops[1] < 0.4 * flops[0], "of the program of one device"
    np.testing.assert_allclose(*losses, rtol=1e-6)
