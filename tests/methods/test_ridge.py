"""Ridge regression as a differentiable head, against torch and scikit-learn, and a short real run."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from tests.methods.test_prototypes import (
    BATCH,
    PARAMS,
    SHAPE,
    TASK,
    B,
    D,
    E,
    Q,
    S,
    W,
    config_for,
    forward,
    run,
    save_folder,
)
from tests.tiny import train_steps
from tljax.assembly.running import evaluate_as_is
from tljax.base.errors import UserError
from tljax.base.tables import lookup
from tljax.data.episodes import Episodes
from tljax.methods import TABLE
from tljax.methods.prototypes import cut
from tljax.methods.ridge import regression, ridge

WING = {"log_regularization": jnp.float32(-0.7), "scale": jnp.float32(3.0), "bias": jnp.float32(0.4)}
WHOLE = {**PARAMS, "method": WING}


def test_value_and_gradient_equal_torch():
    """By the primal solution, (XᵀX + λI)⁻¹ XᵀY, so that the identity is tested too."""
    assert lookup(TABLE, "ridge", what="method") is ridge
    leaves = {"kernel": PARAMS["kernel"], **WING}
    leaves = {name: torch.tensor(np.asarray(x), requires_grad=True, dtype=torch.float64) for name, x in leaves.items()}
    features = torch.tensor(BATCH["inputs"]["pixel_values"]).double() @ leaves["kernel"]
    total, right = 0.0, 0
    for episode in features.mean(dim=(1, 2)).reshape(E, W, S + Q, D):
        x, y = episode[:, :S].reshape(W * S, D), torch.eye(W).double().repeat_interleave(S, dim=0)
        solution = torch.linalg.solve(x.T @ x + leaves["log_regularization"].exp() * torch.eye(D), x.T @ y)
        logits = leaves["scale"] * episode[:, S:].reshape(W * Q, D) @ solution + leaves["bias"]
        answers = torch.arange(W).repeat_interleave(Q)
        total = total + torch.nn.functional.cross_entropy(logits, answers, reduction="sum")
        right += int((logits.argmax(dim=1) == answers).sum())
    total.backward()

    loss, metrics, gradient = run(ridge(forward, TASK, **SHAPE), params=WHOLE)
    np.testing.assert_allclose(loss.sum, total.item(), rtol=1e-5)
    assert loss.weight == E * W * Q
    np.testing.assert_allclose(metrics["accuracy"], right / (E * W * Q), rtol=1e-6)
    np.testing.assert_allclose(metrics["regularization"], np.exp(-0.7), rtol=1e-6)
    found = {"kernel": gradient["kernel"], **gradient["method"]}
    for name, leaf in leaves.items():
        np.testing.assert_allclose(found[name], leaf.grad.numpy(), rtol=1e-4, atol=1e-5, err_msg=name)
    assert abs(found["log_regularization"]) > 0.1 and abs(found["bias"]) < 1e-5


def test_weights_weigh_the_squared_errors():
    from sklearn.linear_model import Ridge

    generator = np.random.default_rng(1)
    features = generator.normal(size=(B, D)).astype(np.float32)
    weight = generator.choice([0, 0.5, 1, 2], size=B).astype(np.float32)
    parts = cut(jnp.asarray(features), weight, Episodes(**SHAPE))
    found = jax.jit(regression)(parts, 0.3)
    for episode in range(E):
        x = features.reshape(E, W, S + Q, D)[episode]
        w = weight.reshape(E, W, S + Q)[episode, :, :S].ravel()
        model = Ridge(alpha=0.3, fit_intercept=False)
        model.fit(x[:, :S].reshape(-1, D), np.repeat(np.eye(W), S, axis=0), sample_weight=w)
        np.testing.assert_allclose(found[episode], model.predict(x[:, S:].reshape(-1, D)), atol=1e-4)


def test_rows_of_weight_0_have_no_part():
    weight = BATCH["weight"].reshape(E, W, S + Q).copy()
    weight[0, 1, 0] = weight[0, 2, S] = 0
    weight[1, 0, :S] = 0
    batch = {**BATCH, "weight": weight.ravel()}
    pixels = batch["inputs"]["pixel_values"].copy()
    pixels[weight.ravel() == 0] = 50.0
    method = ridge(forward, TASK, **SHAPE)
    loss, _, gradient = run(method, batch, WHOLE)
    again, _, equal = run(method, {**batch, "inputs": {"pixel_values": pixels}}, WHOLE)
    assert loss.weight == E * W * Q - 1 - Q
    np.testing.assert_allclose(loss.sum, again.sum, rtol=1e-6)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), gradient, equal)


def test_the_wing_starts_as_the_options_say_and_others_are_refused():
    feature = {"feature": jax.ShapeDtypeStruct((1, D), jnp.float32)}
    wing, state = ridge(forward, TASK, **SHAPE, regularization=0.5, scale=4.0).init(jax.random.key(0), feature)
    assert state == {} and {name: (leaf.shape, leaf.dtype) for name, leaf in wing.items()} == dict.fromkeys(
        ("log_regularization", "scale", "bias"), ((), jnp.float32)
    )
    np.testing.assert_allclose([np.exp(wing["log_regularization"]), wing["scale"], wing["bias"]], [0.5, 4, 0])
    with pytest.raises(UserError, match=r"shots is 0(.|\n)*regularization is 0(.|\n)*scale is -1"):
        ridge(forward, TASK, ways=2, shots=0, queries=1, regularization=0, scale=-1)
    with pytest.raises(UserError, match="The method ridge learns from episodes"):
        run(ridge(forward, TASK, **SHAPE), {k: v for k, v in BATCH.items() if k != "episode"}, WHOLE)


def test_it_learns(tmp_path):
    task = dict(name="few_shot", classifier="ridge", episodes=dict(ways=4, shots=1, queries=2, count=50))
    config = config_for(save_folder(tmp_path), "ridge", task=task)
    experiment, losses = train_steps(config, 40)
    wing = experiment.variables["params"]["method"]
    assert np.mean(losses[-5:]) < 0.6 * np.mean(losses[:5])
    assert evaluate_as_is(experiment, "validation")[0]["accuracy"] > 0.8
    assert wing["scale"] != 10.0 and wing["log_regularization"] != 0.0
