"""Optimizers equal torch or their formula over several steps; schedules their formulas; and the measured traps."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
import transformers

from tljax.base.errors import UserError
from tljax.optim import OPTIMIZERS, decays, make_optimizer, make_schedule

RNG = np.random.default_rng(0)
STEPS = 5
SHAPES = {
    "backbone/embed/table": (9, 8),
    "backbone/block0/kernel": (8, 10),
    "backbone/block0/bias": (10,),
    "backbone/block0/query/bias": (2, 5),
    "head/out/kernel": (10, 3),
    "head/out/bias": (3,),
}
PARAMS = {path: RNG.normal(size=shape).astype(np.float32) for path, shape in SHAPES.items()}
GRADS = [{path: RNG.normal(size=s).astype(np.float32) for path, s in SHAPES.items()} for _ in range(STEPS)]
RATE = 0.05


def run(params=PARAMS, grads=GRADS, **options):
    """The leaves after all steps, from a constant learning rate unless `options` say otherwise."""
    options = {"learning_rate": RATE, "total_steps": 100, "schedule": "constant", **options}
    optimizer, _ = make_optimizer(params, **options)
    live = {path: jnp.asarray(x) for path, x in params.items()}
    state = optimizer.init(live)
    for grad in grads:
        updates, state = optimizer.update({path: grad[path] for path in live}, state, live)
        live = optax.apply_updates(live, updates)
    return live


def run_torch(make):
    """The same in torch; `make(groups)` returns its optimizer, decaying the first group alone."""
    leaves = {path: torch.nn.Parameter(torch.tensor(x)) for path, x in PARAMS.items()}
    groups = [[leaf for path, leaf in leaves.items() if decays(path, SHAPES[path]) == wanted] for wanted in (1, 0)]
    optimizer = make(groups)
    for grad in GRADS:
        for path, leaf in leaves.items():
            leaf.grad = torch.tensor(grad[path])
        optimizer.step()
    return {path: leaf.detach().numpy() for path, leaf in leaves.items()}


def assert_equal(ours, theirs, rtol=1e-5):
    for path in ours:
        np.testing.assert_allclose(ours[path], theirs[path], rtol=rtol, atol=1e-6, err_msg=path)


def test_adamw_equals_torch():
    def make(groups):
        decay = ({"params": groups[0], "weight_decay": 0.1}, {"params": groups[1], "weight_decay": 0.0})
        return torch.optim.AdamW(decay, lr=RATE, betas=(0.8, 0.95), eps=1e-6)

    ours = run(name="adamw", weight_decay=0.1, b1=0.8, b2=0.95, eps=1e-6)
    assert_equal(ours, run_torch(make))


@pytest.mark.parametrize(("momentum", "nesterov"), [(0.0, False), (0.9, False), (0.9, True)])
def test_sgd_equals_torch(momentum, nesterov):
    def make(groups):
        decay = ({"params": groups[0], "weight_decay": 0.1}, {"params": groups[1], "weight_decay": 0.0})
        return torch.optim.SGD(decay, lr=RATE, momentum=momentum, nesterov=nesterov)

    assert_equal(run(name="sgd", weight_decay=0.1, momentum=momentum, nesterov=nesterov), run_torch(make))


def test_lion_equals_its_formula():
    def formula(path):
        p, m, decay = PARAMS[path], np.zeros(SHAPES[path]), 0.1 * decays(path, SHAPES[path])
        for grad in GRADS:
            p = p - RATE * (np.sign(0.9 * m + 0.1 * grad[path]) + decay * p)
            m = 0.98 * m + 0.02 * grad[path]
        return p

    assert_equal(run(name="lion", weight_decay=0.1, b2=0.98), {path: formula(path) for path in PARAMS})


@pytest.mark.parametrize("momentum", [None, 0.9])
def test_adafactor_equals_its_formula(momentum):
    """Shazeer and Stern 2018, algorithms 4 and 5, the second moment of matrices factored."""

    def rms(x):
        return np.sqrt(np.mean(x * x))

    def formula(path):
        p, v, m = PARAMS[path].astype(np.float64), 0.0, 0.0
        decay = 0.1 * decays(path, SHAPES[path])
        for step, grad in enumerate(GRADS):
            g = grad[path].astype(np.float64)
            memory = 1 - (step + 1) ** -0.8
            v = memory * v + (1 - memory) * (g * g + 1e-30)
            matrix = g.ndim == 2 and min(g.shape) >= 3
            second = np.outer(v.mean(1), v.mean(0)) / v.mean() if matrix else v
            u = g / np.sqrt(second)
            u = u / max(1, rms(u)) * max(1e-3, rms(p))
            if momentum is not None:
                u = m = momentum * m + (1 - momentum) * u
            p = p - RATE * (u + decay * p)
        return p

    ours = run(name="adafactor", weight_decay=0.1, min_size_to_factor=3, momentum=momentum)
    assert_equal(ours, {path: formula(path) for path in PARAMS}, rtol=1e-4)


def test_adafactor_keeps_rows_and_columns_only():
    leaf = {"backbone/kernel": jax.ShapeDtypeStruct((256, 512), jnp.float32)}
    optimizer, _ = make_optimizer(leaf, name="adafactor", learning_rate=RATE, total_steps=9)
    assert state_bytes(optimizer, leaf) < 4 * (256 + 512) + 64


def test_decay_pulls_only_where_it_should():
    zeros = [jax.tree.map(np.zeros_like, PARAMS)]
    for name in OPTIMIZERS:
        moved = {path for path, x in run(grads=zeros, name=name, weight_decay=0.1).items() if (x != PARAMS[path]).any()}
        assert moved == {"backbone/embed/table", "backbone/block0/kernel", "head/out/kernel"}, name


def test_decay_follows_the_users_rules():
    zeros = [jax.tree.map(np.zeros_like, PARAMS)]
    after = run(grads=zeros, weight_decay=0.1, no_decay=(".*/table", "head/.*"))
    assert {path for path, x in after.items() if (x == PARAMS[path]).all()} == {
        "backbone/embed/table",
        "head/out/kernel",
        "head/out/bias",
    }
    with pytest.raises(UserError, match=r"'\.\*/tabel' matches no path"):
        run(no_decay=(".*/tabel",))


def test_rates_multiply_the_step_of_each_leaf():
    one = run(name="sgd", momentum=0.0)
    rates = {"backbone/embed/table": 0.5, "head/out/bias": 0.25, "backbone/frozen": 7.0}
    slow = run(name="sgd", momentum=0.0, rates=rates, head_rate=10.0)
    for path in PARAMS:
        factor = rates.get(path, 1.0) * (10 if path.startswith("head/") else 1)
        expected = factor * (one[path] - PARAMS[path])
        np.testing.assert_allclose(slow[path] - PARAMS[path], expected, rtol=1e-4, atol=1e-6)


def test_leaves_with_the_same_rate_and_decay_share_a_group():
    def groups(**options):
        optimizer, _ = make_optimizer(PARAMS, learning_rate=RATE, total_steps=9, **options)
        return set(optimizer.init(PARAMS).inner_states)

    assert groups() == {"rate=1.0"}
    assert groups(weight_decay=0.1, head_rate=2.0) == {"rate=1.0,decay", "rate=1.0", "rate=2.0,decay", "rate=2.0"}


def test_clipping_is_by_the_norm_of_all_live_leaves():
    grad, norm = GRADS[0], np.sqrt(sum(np.sum(g * g) for g in GRADS[0].values()))
    after = run(grads=[grad], name="sgd", momentum=0.0, clip=1.0, head_rate=2.0)
    np.testing.assert_allclose(
        after["head/out/bias"], PARAMS["head/out/bias"] - 2 * RATE * grad["head/out/bias"] / norm, rtol=1e-5
    )


def test_the_optimizer_runs_jitted_and_twice_alike():
    optimizer, _ = make_optimizer(PARAMS, learning_rate=RATE, total_steps=9, warmup=2, clip=1.0)
    update = jax.jit(optimizer.update)
    results = [update(GRADS[0], optimizer.init(PARAMS), PARAMS)[0] for _ in range(2)]
    jax.tree.map(np.testing.assert_array_equal, *results)


# --- schedules


def hf(name, total, warmup, **options):
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=RATE)
    scheduler = getattr(transformers, f"get_{name}_schedule_with_warmup")(optimizer, warmup, **options)
    found = []
    for _ in range(total + 1):
        found.append(scheduler.get_last_lr()[0])
        optimizer.step()
        scheduler.step()
    return found


@pytest.mark.parametrize("warmup", [0, 7])
@pytest.mark.parametrize("name", ["linear", "cosine", "constant"])
def test_schedules_equal_transformers(name, warmup):
    ours = make_schedule(RATE, 50, schedule=name, warmup=warmup)
    options = {} if name == "constant" else {"num_training_steps": 50}
    np.testing.assert_allclose([ours(step) for step in range(51)], hf(name, 50, warmup, **options), atol=1e-8)


def test_a_warmup_below_one_is_a_fraction_rounded_up():
    ours = make_schedule(1.0, 35, schedule="linear", warmup=0.1)
    np.testing.assert_allclose([ours(0), ours(2), ours(4), ours(35)], [0, 0.5, 1, 0], atol=1e-7)


@pytest.mark.parametrize("name", ["linear", "cosine"])
def test_the_end_factor_is_reached_and_kept(name):
    ours = make_schedule(2.0, 10, schedule=name, warmup=2, end=0.1)
    np.testing.assert_allclose([ours(2), ours(6), ours(10), ours(99)], [2, 1.1, 0.2, 0.2], rtol=1e-6)


def test_the_optimizer_uses_the_schedule_that_it_returns():
    options = {"learning_rate": 1.0, "total_steps": 5, "schedule": "linear", "warmup": 2}
    _, schedule = make_optimizer(PARAMS, **options)
    ones = [jax.tree.map(np.ones_like, PARAMS)] * STEPS
    after = run(grads=ones, name="sgd", momentum=0.0, **options)
    moved = sum(float(schedule(step)) for step in range(STEPS))
    np.testing.assert_allclose(PARAMS["head/out/bias"] - after["head/out/bias"], moved, rtol=1e-5)


# --- wrong input


def test_unknown_names_are_answered_with_the_nearest():
    with pytest.raises(UserError, match=r"no optimizer called 'adam'\. Did you mean 'adamw'"):
        run(name="adam")
    with pytest.raises(UserError, match=r"no schedule called 'cosin'\. Did you mean 'cosine'"):
        run(schedule="cosin")


def test_all_faulty_options_are_named_at_once():
    with pytest.raises(UserError) as caught:
        make_optimizer(PARAMS, total_steps=9, learning_rat=1e-3, momentum=0.9)
    message = str(caught.value)
    assert "config.optim.learning_rat is not an option of adamw. Did you mean 'learning_rate'?" in message
    assert "config.optim.momentum is not an option of adamw" in message
    assert "learning_rate is required" in message


@pytest.mark.parametrize(
    "options",
    [
        {"learning_rate": 0.0},
        {"learning_rate": "1e-3"},
        {"learning_rate": math.nan},
        {"clip": 0.0},
        {"weight_decay": -1.0},
        {"warmup": -1},
        {"warmup": 100},
        {"end": 2.0},
        {"total_steps": 0},
    ],
)
def test_numbers_out_of_range_are_refused(options):
    with pytest.raises(UserError, match=next(iter(options))):
        run(**options)


# --- traps of optax that the flat tree of live leaves avoids

LIVE = {path: PARAMS[path] for path in ("head/out/kernel", "head/out/bias")}
MASK = {path: path in LIVE for path in PARAMS}
NAMES = {path: "live" if live else "frozen" for path, live in MASK.items()}


def state_bytes(optimizer, params):
    state = jax.eval_shape(optimizer.init, params)
    return sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(state))


def test_trap_state_for_frozen_leaves():
    """Adam before the mask holds moments of every leaf; ours of the live ones, and some counters."""
    whole, live = (sum(x.nbytes for x in tree.values()) for tree in (PARAMS, LIVE))
    trap = optax.chain(optax.adam(RATE), optax.masked(optax.set_to_zero(), jax.tree.map(lambda m: not m, MASK)))
    ours, _ = make_optimizer(LIVE, learning_rate=RATE, total_steps=9, weight_decay=0.1)
    assert state_bytes(trap, PARAMS) >= 2 * whole
    assert 2 * live <= state_bytes(ours, LIVE) <= 2 * live + 32


def test_trap_decay_after_multi_transform():
    """There it moves frozen leaves; the optimizer of live leaves never sees them."""
    trap = optax.chain(
        optax.multi_transform({"live": optax.sgd(RATE), "frozen": optax.set_to_zero()}, NAMES),
        optax.add_decayed_weights(-RATE * 0.1),
    )
    updates, _ = trap.update(GRADS[0], trap.init(PARAMS), PARAMS)
    assert any(updates[path].any() for path in PARAMS if path not in LIVE)
    assert set(run(LIVE, weight_decay=0.1)) == set(LIVE)


def test_trap_clipping_by_frozen_gradients():
    """The gradients of frozen leaves shrink the head's update there; here they are not in the norm."""
    plain = {"name": "sgd", "momentum": 0.0, "clip": 1.0}
    trap = optax.chain(
        optax.clip_by_global_norm(1.0),
        optax.multi_transform({"live": optax.sgd(RATE), "frozen": optax.set_to_zero()}, NAMES),
    )
    updates, _ = trap.update(GRADS[0], trap.init(PARAMS), PARAMS)
    ours = run(LIVE, [GRADS[0]], **plain)
    moved = {path: ours[path] - LIVE[path] for path in LIVE}
    assert optax.tree.norm(moved) == pytest.approx(RATE, rel=1e-4)
    assert optax.tree.norm({path: updates[path] for path in LIVE}) < 0.6 * RATE
