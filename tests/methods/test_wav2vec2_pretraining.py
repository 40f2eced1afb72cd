"""Contrastive learning of speech: its losses and gradients against transformers, its draws, and that it learns."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
from transformers import Wav2Vec2Config, Wav2Vec2ForPreTraining

from tests.models.reference import import_weights, make_model
from tests.models.test_wav2vec2 import TINY, batch
from tljax.base.errors import UserError
from tljax.base.paths import flatten
from tljax.base.tables import lookup
from tljax.methods import TABLE
from tljax.methods.wav2vec2_pretraining import (
    gumbel_temperature,
    objective,
    perplexity,
    sample_mask,
    sample_negatives,
    wav2vec2,
)
from tljax.models.forward import forward, init_variables
from tljax.tasks.pretraining import pretraining
from tljax.tasks.spec import TaskSpec

STILL = dict.fromkeys(
    ("hidden_dropout", "activation_dropout", "attention_dropout", "feat_proj_dropout", "layerdrop"), 0.0
)
ENTRIES = {**TINY, **STILL, "num_negatives": 4, "num_codevector_groups": 2, "num_hidden_layers": 1}
MODEL = make_model("wav2vec2", ENTRIES)
KEY = jax.random.key(0)
FRAMES = 9
MASKED = np.zeros((3, FRAMES), bool)
MASKED[0, [0, 1, 2, 5, 6]] = MASKED[1, [1, 2, 3]] = True
OPTIONS = dict(mask_length=2, negatives=4, codes=5, code_width=8, width=8)


def wing_of(tensors: dict) -> dict:
    """The parameters under `method/` from those of transformers."""
    x = {name: jnp.asarray(tensor.detach().numpy()) for name, tensor in tensors.items()}
    dense = lambda name: {"kernel": x[f"{name}.weight"].T, "bias": x[f"{name}.bias"]}  # noqa: E731
    return {
        "quantizer": {
            "projection": dense("quantizer.weight_proj"),
            "codes": x["quantizer.codevectors"].reshape(2, 5, 4),
        },
        "project_q": dense("project_q"),
        "project_hid": dense("project_hid"),
    }


@functools.cache
def reference():
    torch.manual_seed(0)
    theirs = Wav2Vec2ForPreTraining(Wav2Vec2Config(**ENTRIES))
    theirs.set_gumbel_temperature(1.3)
    tensors = theirs.state_dict()
    backbone = {name.removeprefix("wav2vec2."): x for name, x in tensors.items() if name.startswith("wav2vec2.")}
    return theirs, {**import_weights(MODEL, backbone)["params"], "method": wing_of(tensors)}


@pytest.mark.parametrize("training", [False, True])
def test_losses_and_gradients_equal_the_reference(training, monkeypatch):
    """Hard codes in evaluation; in training the same Gumbel noise, and the gradients too."""
    theirs, params = reference()
    theirs.train(training)
    theirs.zero_grad()
    generator = np.random.default_rng(0)
    negatives = np.asarray(sample_negatives(KEY, jnp.asarray(MASKED), 4))
    noise = generator.gumbel(size=(3, FRAMES, 2, 5)).astype(np.float32)

    def gumbel_softmax(logits, tau, hard):
        soft = torch.softmax((logits + torch.from_numpy(noise.reshape(logits.shape))) / tau, dim=-1)
        chosen = torch.nn.functional.one_hot(soft.argmax(-1), soft.shape[-1]).float()
        return chosen + (soft - soft.detach())

    monkeypatch.setattr(torch.nn.functional, "gumbel_softmax", gumbel_softmax)
    wanted = theirs(
        **{name: torch.from_numpy(x) for name, x in batch().items()},
        mask_time_indices=torch.from_numpy(MASKED),
        sampled_negative_indices=torch.from_numpy(negatives + FRAMES * np.arange(3)[:, None, None]),
    )
    wanted.loss.backward()

    def loss(params):
        inputs = {**batch(), "mask_time_indices": MASKED}
        outputs, _ = forward(MODEL, {"params": params}, inputs)
        losses, metrics = objective(
            params["method"],
            outputs,
            jnp.asarray(MASKED),
            jnp.asarray(negatives),
            noise=jnp.asarray(noise) if training else None,
            temperature=1.3,
            contrast_temperature=0.1,
            diversity=0.1,
            weight=jnp.ones(3),
        )
        return losses["contrastive"].sum + losses["diversity"].sum, (losses, metrics)

    compute = jax.jit(jax.value_and_grad(loss, has_aux=True) if training else loss)
    result = compute(params)
    losses, metrics = result[0][1] if training else result[1]
    np.testing.assert_allclose(losses["contrastive"].sum, wanted.contrastive_loss.item(), rtol=1e-5)
    np.testing.assert_allclose(losses["diversity"].sum, 0.1 * wanted.diversity_loss.item(), rtol=1e-5)
    np.testing.assert_allclose(metrics["perplexity"], wanted.codevector_perplexity.item(), rtol=1e-5)
    assert losses["contrastive"].weight == losses["diversity"].weight == MASKED.sum()
    if not training:
        return
    found, tower, quantizer = flatten(result[1]), theirs.wav2vec2, theirs.quantizer
    gradients = {
        "backbone/conv0/conv/kernel": tower.feature_extractor.conv_layers[0].conv.weight.grad.permute(2, 1, 0),
        "backbone/projection/mask_embedding": tower.masked_spec_embed.grad,
        "backbone/block0/mlp/up/kernel": tower.encoder.layers[0].feed_forward.intermediate_dense.weight.grad.T,
        "method/project_q/kernel": theirs.project_q.weight.grad.T,
        "method/quantizer/projection/kernel": quantizer.weight_proj.weight.grad.T,
        "method/quantizer/codes": quantizer.codevectors.grad.reshape(2, 5, 4),
    }
    for path, theirs_is in gradients.items():
        theirs_is = theirs_is.numpy()
        assert np.abs(found[path] - theirs_is).max() <= 2e-4 * np.abs(theirs_is).max(), path


def test_masks_are_spans_of_real_frames():
    real = jnp.arange(40) < jnp.array([40, 25, 11, 4, 3, 0])[:, None]
    draw = jax.jit(jax.vmap(lambda key: sample_mask(key, real, probability=0.65, length=4, least=2)))
    masks = np.asarray(draw(jax.random.split(KEY, 300)))
    assert not np.any(masks & ~np.asarray(real))
    assert not np.any(masks[:, 4:]) and np.all(masks[:, 3, :4])  # shorter than a span: none; one place: that
    lengths = {n for row in masks[:, :3].reshape(-1, 40) for n in runs(row)}
    assert min(lengths) == 4
    # Of s distinct starts among n places, a frame in the middle is hidden unless all four that reach it are left out.
    share = masks[:, 0, 10:30].mean()
    spans = 0.65 * 40 / 4
    expected = np.mean([1 - np.prod([(37 - s - i) / (37 - i) for i in range(4)]) for s in (6, 7)])
    assert int(spans) == 6 and abs(share - expected) < 0.03
    assert len(np.unique(masks[:, 0], axis=0)) > 290


def runs(row: np.ndarray) -> list[int]:
    """The lengths of the stretches of true values."""
    edges = np.flatnonzero(np.diff(np.pad(row.astype(int), 1)))
    return (edges[1::2] - edges[::2]).tolist()


def test_negatives_are_other_hidden_frames_of_the_row_evenly():
    masked = np.zeros((3, 12), bool)
    masked[0, [1, 4, 5, 11]] = masked[1, [0, 2]] = masked[2, 7] = True
    drawn = np.asarray(sample_negatives(KEY, jnp.asarray(masked), 3000))
    for row, hidden in ((0, {1, 4, 5, 11}), (1, {0, 2})):
        for place in hidden:
            values, counts = np.unique(drawn[row, place], return_counts=True)
            assert set(values) == hidden - {place}
            assert np.all(np.abs(counts * len(values) / 3000 - 1) < 0.1)
    assert drawn.min() >= 0 and drawn.max() < 12


def test_the_temperature_falls_to_its_least():
    values = [float(gumbel_temperature(step, 2.0, 0.5, 0.999995)) for step in (0, 100_000, 277_258, 400_000)]
    np.testing.assert_allclose(values, [2.0, 2.0 * 0.999995**100_000, 0.5, 0.5], rtol=1e-5)


TASK = pretraining(TaskSpec(classes=None, own_pool="mean", pools=("mean",)))


def shapes_on(model=MODEL):
    """The shapes that the assembly gives."""
    shapes = jax.eval_shape(lambda: init_variables(model, KEY))
    return jax.eval_shape(lambda v: forward(model, v, batch())[0], shapes)


def run(params, state, inputs, rng, *, train=True):
    stages = MODEL.backbone.stages if train else ()
    return forward(MODEL, {"params": params}, inputs, rngs={"dropout": rng}, train=stages)[0], state


def method_on(**options):
    return wav2vec2(run, TASK, **{**OPTIONS, **options})


@functools.cache
def compiled():
    """(params, inputs, weight, step) → ((loss, (losses, metrics)), gradient) of the method."""
    method = method_on()

    def total(params, inputs, weight, step):
        given = {"train": {"inputs": inputs, "weight": weight}}
        losses, _, metrics = method.loss(params, {}, given, jax.random.fold_in(KEY, step), step)
        shares = {name: x.sum / jnp.maximum(x.weight, 1e-9) for name, x in losses.items()}
        return sum(shares.values()), (shares, metrics)

    return jax.jit(jax.value_and_grad(total, has_aux=True))


@functools.cache
def first_params():
    backbone = jax.jit(lambda: init_variables(MODEL, KEY))()["params"]["backbone"]
    return {"backbone": backbone, "method": method_on().init(jax.random.key(1), shapes_on())[0]}


def utterances() -> tuple[dict, np.ndarray]:
    """Six sounds of unlike lengths, each of which repeats four tones of its own."""
    generator = np.random.default_rng(0)
    lengths = np.array([480, 480, 400, 360, 480, 300])
    tones = np.tile(generator.permuted(np.tile([0.05, 0.3, 0.7, 1.2], (6, 1)), axis=1), (1, 5))
    mask = (np.arange(480) < lengths[:, None]).astype(np.int32)
    values = (np.sin(np.cumsum(np.repeat(tones, 24, axis=1), axis=1)) * mask).astype(np.float32)
    return {"input_values": values, "attention_mask": mask}, np.ones(6, np.float32)


@pytest.mark.long
def test_it_learns_what_is_hidden():
    """The loss falls; and hidden frames are told by what was heard, not because the codes collapse."""
    optimizer = optax.adam(5e-3)
    (inputs, weight), params, history = utterances(), first_params(), []
    moments = optimizer.init(params)

    @jax.jit
    def update(params, gradient, moments):
        updates, moments = optimizer.update(gradient, moments)
        return optax.apply_updates(params, updates), moments

    for step in range(200):
        (_, (losses, metrics)), gradient = compiled()(params, inputs, weight, step)
        if step == 0:
            dead = [path for path, g in flatten(gradient).items() if not np.any(g) and not path.endswith("key/bias")]
            assert dead == [] and set(losses) == {"contrastive", "diversity"}
            assert 0.3 < metrics["masked"] < 0.7 and metrics["temperature"] == 2.0
        params, moments = update(params, gradient, moments)
        history.append((losses["contrastive"], metrics["accuracy"], metrics["perplexity"]))
    first, last = np.mean(history[:20], axis=0), np.mean(history[-20:], axis=0)
    assert last[0] < 0.85 * first[0] and last[1] > 0.4 > first[1] and last[2] > 8
    masked = sample_mask(KEY, jnp.ones((6, 38), bool), probability=0.65, length=2, least=2)
    outputs, _ = jax.jit(lambda p, x: forward(MODEL, {"params": p}, x))(params, {**inputs, "mask_time_indices": masked})
    heard = contrast(params["method"], outputs, masked)
    other = contrast(params["method"], {**outputs, "hidden": jnp.roll(outputs["hidden"], 1, axis=0)}, masked)
    assert heard < 0.8 * other


def contrast(wing, outputs, masked) -> float:
    losses, _ = objective_without_noise(wing, outputs, masked)
    return float(losses["contrastive"].sum / losses["contrastive"].weight)


@jax.jit
def objective_without_noise(wing, outputs, masked):
    return objective(
        wing,
        outputs,
        masked,
        sample_negatives(KEY, masked, 4),
        noise=None,
        temperature=1.0,
        contrast_temperature=0.1,
        diversity=0.1,
        weight=jnp.ones(len(masked)),
    )


def test_codes_that_are_never_likely_have_finite_gradients():
    """Shares that are 0 in float32."""
    scores = jnp.asarray([0.0, -300.0, -5.0]).reshape(1, 1, 1, 3)
    value, slope = jax.value_and_grad(lambda x: perplexity(jax.nn.softmax(x), jnp.ones((1, 1))))(scores)
    assert 1 < value < 1.1 and np.all(np.isfinite(slope)) and np.any(slope)


def test_padding_and_rows_without_weight_have_no_part():
    inputs, weight = utterances()
    weight[4:] = 0
    other = {name: x.copy() for name, x in inputs.items()}
    other["input_values"][4:] = np.random.default_rng(3).normal(size=(2, 480))
    one, two = (compiled()(first_params(), x, weight, 0) for x in (inputs, other))
    assert all(map(np.array_equal, jax.tree.leaves(one), jax.tree.leaves(two)))
    nothing = compiled()(first_params(), inputs, 0 * weight, 0)
    assert all(not np.any(leaf) for leaf in jax.tree.leaves((nothing[0][0], nothing[1])))


def test_what_leaves_no_choice_costs_nothing():
    """One hidden frame alone; and negatives that have the codes of the frame itself, which are none."""
    wing = first_params()["method"]
    outputs = {"hidden": jnp.ones((1, 5, 24)), "features": jnp.ones((1, 5, 6))}
    losses, _ = objective_without_noise(wing, outputs, jnp.zeros((1, 5), bool).at[0, 2].set(True))
    assert losses["contrastive"].weight == 0 and losses["contrastive"].sum == 0
    losses, metrics = objective_without_noise(wing, outputs, jnp.ones((1, 5), bool))
    assert losses["contrastive"].weight == 5 and losses["contrastive"].sum == 0
    np.testing.assert_allclose(metrics["perplexity"], 2, rtol=1e-6)


def test_the_table_leads_here_and_bad_options_are_refused_together():
    assert lookup(TABLE, "wav2vec2", what="method") is wav2vec2
    with pytest.raises(UserError) as error:
        method_on(mask_probability=0, mask_length=0, negatives=1.5, temperature=(0.5, 2.0, 1.0), diversity=-1)
    for part in (
        "mask_probability is 0",
        "mask_length is 0",
        "negatives is 1.5",
        "temperature is (0.5",
        "diversity is -1",
    ):
        assert part in str(error.value)
    with pytest.raises(UserError, match="multiple of groups, 3"):
        method_on(groups=3)


def test_a_backbone_without_features_is_refused():
    shapes = {"hidden": jax.ShapeDtypeStruct((1, 4, 8), jnp.float32)}
    with pytest.raises(UserError, match=r"needs a speech model.*gives out hidden"):
        wav2vec2(None, TASK).init(KEY, shapes)
