"""BYOL: loss, gradient, target and spread against torch; padding, devices; and a run whose backbone is exported."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

import tljax
from tests.methods.test_simclr import BATCH, KERNEL, KEY, PADDED, SHAPES, TASK, B, D, falls, forward, pretrain
from tljax.base.errors import UserError
from tljax.base.paths import flatten
from tljax.base.tables import lookup
from tljax.methods import TABLE
from tljax.methods.byol import byol, decay_at, network, spread

SIZES = dict(hidden=7, width=4)
METHOD = byol(forward, TASK, **SIZES, decay=0.9, steps=10)


def state_and_params() -> tuple[dict, dict]:
    """A target that is not the online network, and norms that are not the first ones."""
    generator = np.random.default_rng(5)
    shake = lambda x: x + jnp.asarray(0.3 * generator.normal(size=x.shape), jnp.float32)  # noqa: E731
    params = jax.tree.map(shake, {"backbone": {"kernel": KERNEL}, "method": METHOD.init(KEY, SHAPES)[0]})
    state = METHOD.start({}, flatten(params), {"train": B})
    return {"method": {**state, "target": jax.tree.map(shake, state["target"])}}, params


def total(params, state, batch):
    losses, state, metrics = METHOD.loss(params, state, {"train": batch}, KEY, 0)
    return losses["prediction"].sum / losses["prediction"].weight, (state, metrics)


COMPILED = jax.jit(jax.value_and_grad(total, argnums=(0, 1), has_aux=True))


def torch_network(leaves: dict, x: torch.Tensor) -> torch.Tensor:
    x = x @ leaves["layer0/kernel"] + leaves["layer0/bias"]
    x = torch.nn.functional.batch_norm(x, None, None, leaves["norm/scale"], leaves["norm/bias"], training=True)
    return torch.relu(x) @ leaves["layer1/kernel"] + leaves["layer1/bias"]


def test_loss_and_gradient_are_those_of_torch():
    state, params = state_and_params()
    (value, (_, metrics)), (gradient, of_state) = COMPILED(params, state, BATCH)
    x = {path: torch.tensor(np.asarray(leaf), requires_grad=True) for path, leaf in flatten(params).items()}
    slow = {path: torch.tensor(np.asarray(leaf)) for path, leaf in state["method"]["target"].items()}
    part = lambda leaves, name: {p.removeprefix(name): leaf for p, leaf in leaves.items() if p.startswith(name)}  # noqa: E731

    def project(leaves, view):
        features = torch.tanh(torch.tensor(BATCH["views"][view]["pixel_values"]) @ leaves["backbone/kernel"])
        return torch_network(part(leaves, "method/projector/"), features.mean(dim=(1, 2)))

    online = {view: project(x, view) for view in "ab"}
    wanted = {view: project(slow, view) for view in "ab"}
    unit = lambda v: torch.nn.functional.normalize(v, dim=1)  # noqa: E731
    foretold = {view: torch_network(part(x, "method/predictor/"), online[view]) for view in "ab"}
    gaps = ((unit(foretold[one]) - unit(wanted[other])).square().sum(1) for one, other in ("ab", "ba"))
    theirs = sum(gaps).mean()
    theirs.backward()
    np.testing.assert_allclose(value, theirs.item(), rtol=1e-5)
    for path, leaf in flatten(gradient).items():
        np.testing.assert_allclose(leaf, x[path].grad.numpy(), atol=2e-5, err_msg=path)
    assert set(state["method"]["target"]) == {p for p in x if not p.startswith("method/predictor/")}
    assert not any(np.any(leaf) for leaf in of_state["method"]["target"].values()), "the target has a gradient"
    deviation = unit(online["a"]).std(dim=0, correction=0).mean().item()
    np.testing.assert_allclose(metrics["spread"], 2 * deviation, rtol=1e-5)


def test_the_target_is_a_moving_average_whose_decay_grows_to_one():
    state, params = state_and_params()
    live, method = flatten(params), state["method"]
    decays = [0.9, 1 - 0.1 * (np.cos(np.pi / 10) + 1) / 2]
    target = dict(method["target"])
    renew = jax.jit(METHOD.after_step)
    for step, decay in enumerate(decays, start=1):
        method = renew(method, live, step)
        target = {path: decay * leaf + (1 - decay) * live[path] for path, leaf in target.items()}
    for path, leaf in target.items():
        np.testing.assert_allclose(method["target"][path], leaf, rtol=1e-6, atol=1e-7)
    assert decay_at(10, 0.9, 10) == decay_at(50, 0.9, 10) == 1 and decay_at(5, 0.9, None) == 0.9


def test_the_target_has_only_leaves_of_its_own_and_only_live_ones_move():
    state, params = state_and_params()
    live, target = flatten(params), state["method"]["target"]
    partly = {path: leaf for path, leaf in live.items() if not path.startswith("backbone/")}
    renewed = jax.jit(METHOD.after_step)(state["method"], partly, 1)["target"]
    assert renewed.keys() == target.keys() == {p for p in live if not p.startswith("method/predictor/")}
    for path, leaf in renewed.items():
        wanted = target[path] if path.startswith("backbone/") else 0.9 * target[path] + 0.1 * live[path]
        np.testing.assert_allclose(leaf, wanted, rtol=1e-6, atol=1e-7, err_msg=path)


def test_padding_changes_no_statistic():
    state, params = state_and_params()
    shorter = jax.tree.map(lambda x: x[:6], BATCH)
    padded = {**jax.tree.map(np.copy, BATCH), "weight": PADDED}
    for view in padded["views"].values():
        view["pixel_values"][6:] = 30.0
    (one, (_, first)), (small, _) = COMPILED(params, state, shorter)
    (two, (_, second)), (large, _) = COMPILED(params, state, padded)
    np.testing.assert_allclose([one, first["spread"]], [two, second["spread"]], rtol=1e-5)
    for x, y in zip(jax.tree.leaves(small), jax.tree.leaves(large), strict=True):
        np.testing.assert_allclose(x, y, atol=1e-5)


def test_statistics_are_those_of_all_devices():
    state, params = state_and_params()
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:4]), ("data",))
    parts = jax.device_put(BATCH, jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data")))
    whole, sharded = (COMPILED(params, state, batch) for batch in (BATCH, parts))
    np.testing.assert_allclose(whole[0][0], sharded[0][0], rtol=1e-5)
    for x, y in zip(jax.tree.leaves(whole[1][0]), jax.tree.leaves(sharded[1][0]), strict=True):
        np.testing.assert_allclose(x, y, atol=1e-5)


def test_a_collapse_shows():
    weight = jnp.ones(400)
    points = jax.random.normal(KEY, (400, 64))
    apart, together = jax.jit(lambda x: (spread(x, weight), spread(jnp.tile(x[:1], (400, 1)), weight)))(points)
    assert 0.95 < apart < 1.05 and together < 1e-3
    leaves = METHOD.init(KEY, SHAPES)[0]["projector"]
    assert np.all(np.isfinite(jax.jit(network)(leaves, jnp.ones((3, D)), jnp.zeros(3))))  # padding alone


def test_a_run_learns_and_leaves_the_online_backbone(tmp_path):
    model = dict(family="cifar_resnet", variant=dict(blocks=1, widths=(4, 8, 8)))
    records = pretrain(tmp_path, model, dict(name="byol", hidden=32, width=16, decay=0.9, steps=40), 40)
    assert falls(records, 0.7)
    assert records[0]["metrics"]["decay"] == pytest.approx(0.9) and records[-1]["metrics"]["decay"] > 0.99
    assert records[-1]["metrics"]["spread"] > 0.3
    found = tljax.load_pretrained(tmp_path / "run" / "export", family="cifar_resnet")
    assert set(found.variables["params"]) == {"backbone"}


def test_what_does_not_fit_is_refused():
    assert lookup(TABLE, "byol", what="method") is byol
    with pytest.raises(UserError, match=r"hidden is 0; (.|\n)*steps is 0; (.|\n)*decay is 1.5"):
        byol(forward, TASK, hidden=0, steps=0, decay=1.5)
    with pytest.raises(UserError, match="byol needs one vector an example"):
        METHOD.init(KEY, {"feature": None})
