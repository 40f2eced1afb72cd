"""dann, cdan, dan, deep_coral, mcc: losses and gradients against PyTorch on the same numbers, and what they do."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch

from tests.tiny import save_csv, save_tiny_bert, train_steps
from tljax import domains
from tljax.base.errors import UserError
from tljax.base.paths import flatten
from tljax.base.tables import lookup
from tljax.methods import TABLE
from tljax.methods.cdan import joint
from tljax.methods.supervised import supervised
from tljax.tasks.classification import classification
from tljax.tasks.regression import regression
from tljax.tasks.similarity import similarity
from tljax.tasks.spec import TaskSpec

NAMES = ("cdan", "dan", "dann", "deep_coral", "mcc")
SPEC = TaskSpec(classes=("a", "b", "c"), own_pool="mean", pools=("mean",))
TASK = classification(SPEC)
KEY = jax.random.key(3)
RNG = np.random.default_rng(0)
EARLY, WIDTH, CLASSES = 4, 5, 3
SHAPES = {
    "hidden": jax.ShapeDtypeStruct((1, 2, 2, WIDTH), jnp.float32),
    "feature": jax.ShapeDtypeStruct((1, WIDTH), jnp.float32),
    "logits": jax.ShapeDtypeStruct((1, CLASSES), jnp.float32),
}


def normal(*shape):
    return RNG.normal(size=shape).astype(np.float32)


PARAMS = {
    "backbone": {"early": normal(3, EARLY), "late": normal(EARLY, WIDTH)},
    "head": {"kernel": normal(WIDTH, CLASSES)},
}
SOURCE = {
    "inputs": {"pixel_values": normal(8, 2, 2, 3)},
    "targets": RNG.integers(0, CLASSES, 8).astype(np.int32),
    "weight": np.array([1, 1, 1, 1, 1, 1, 0, 0], np.float32),
}
TARGET = {
    "inputs": {"pixel_values": 0.5 * normal(9, 2, 2, 3) + 1},
    "weight": np.array([1, 1, 1, 1, 1, 1, 1, 1, 0], np.float32),
}
BATCHES = {"train": SOURCE, "target": TARGET}
STEP, LAMBDA = 3, 2 / (1 + np.exp(-3.0)) - 1  # of a ramp of 10 steps


def forward(params, state, inputs, rng, *, train=True, hidden_states=False):
    early = jnp.tanh(inputs["pixel_values"] @ params["backbone"]["early"])
    hidden = jnp.tanh(early @ params["backbone"]["late"])
    outputs = {"hidden": hidden, "logits": hidden.mean((1, 2)) @ params["head"]["kernel"]}
    return outputs | ({"hidden_states": (early, hidden)} if hidden_states else {}), state


def made(name, task=TASK, **options):
    """(method, all parameters, its state)."""
    method = lookup(TABLE, name, what="method")(forward, task, **options)
    wing, state = method.init(jax.random.key(1), SHAPES)
    return method, {**PARAMS, "method": wing}, {"method": state}


def run(method, params, state, batches, step=STEP):
    """(value of each loss, metrics, flat gradient of their sum)."""

    def total(params, batches):
        found, _, metrics = method.loss(params, state, batches, KEY, step)
        shares = {name: x.sum / jnp.maximum(x.weight, 1e-9) for name, x in found.items()}
        return sum(shares.values()), (shares, metrics)

    (_, (shares, metrics)), gradient = jax.jit(jax.value_and_grad(total, has_aux=True))(params, batches)
    return shares, metrics, flatten(gradient)


# --- the formulas of the papers, by PyTorch, on the real rows only


def reversed_gradient(x, scale):
    return x.detach() * (1 + scale) - x * scale


def domain_entropy(wing, source, target, weights=(None, None)):
    """Binary cross-entropy of the discriminator's two layers on each domain, and its accuracy."""
    parts, right = [], []
    for x, label, weight in zip((source, target), (1.0, 0.0), weights, strict=True):
        inner = torch.relu(x @ wing["discriminator/layer0/kernel"] + wing["discriminator/layer0/bias"])
        scores = (inner @ wing["discriminator/layer1/kernel"] + wing["discriminator/layer1/bias"])[:, 0]
        weight = torch.ones(len(x)) if weight is None else weight
        each = torch.nn.functional.binary_cross_entropy_with_logits(
            scores, torch.full_like(scores, label), reduction="none"
        )
        parts.append((each * weight).sum() / weight.sum() / 2)
        right.append((scores > 0 if label else scores < 0).float().mean())
    return parts, (right[0] + right[1]) / 2


def torch_dann(wing, state, source, target):
    parts, right = domain_entropy(wing, *(reversed_gradient(x["feature"], LAMBDA) for x in (source, target)))
    return {"domain_source": parts[0], "domain_target": parts[1]}, {"domain_accuracy": right, "reversal": LAMBDA}


def torch_cdan(wing, state, source, target, entropy=False):
    seen, weights = [], []
    for x in (source, target):
        shares = x["logits"].softmax(1).detach()
        if "maps" in state:
            maps = {name: torch.tensor(np.asarray(m)) for name, m in state["maps"].items()}
            both = (x["feature"] @ maps["feature"]) * (shares @ maps["classes"]) / np.sqrt(7)
        else:
            both = torch.bmm(x["feature"].unsqueeze(2), shares.unsqueeze(1)).flatten(1)
        seen.append(reversed_gradient(both, LAMBDA))
        weights.append(1 + torch.exp(-torch.distributions.Categorical(shares).entropy()) if entropy else None)
    parts, _ = domain_entropy(wing, *seen, weights)
    return {"domain_source": parts[0], "domain_target": parts[1]}, {}


def kernels_of(distances, bandwidth):
    return sum(torch.exp(-distances / (bandwidth.detach() * 2.0**p)) for p in range(-2, 3)) / 5


def torch_mmd(x, y, biased=False):
    both = torch.cat([x, y])
    distances = (both[:, None] - both[None]).pow(2).sum(-1)
    k = kernels_of(distances, distances.sum() / (len(both) * (len(both) - 1)))
    n, m = len(x), len(y)
    within, other, across = k[:n, :n], k[n:, n:], k[:n, n:].mean()
    if biased:
        return within.mean() + other.mean() - 2 * across
    within = (within.sum() - within.trace()) / (n * (n - 1))
    return within + (other.sum() - other.trace()) / (m * (m - 1)) - 2 * across


def torch_linear_mmd(x, y):
    fours = [(x[i], x[i + 1], y[i], y[i + 1]) for i in range(0, min(len(x), len(y)) - 1, 2)]
    gaps = torch.stack([torch.stack([a - b, c - d, a - d, b - c]).pow(2).sum(-1) for a, b, c, d in fours])
    k = kernels_of(gaps, gaps.mean())
    return (k[:, 0] + k[:, 1] - k[:, 2] - k[:, 3]).mean()


def torch_dan(wing, state, source, target, depths=("feature", "logits"), mmd=torch_mmd):
    return {"mmd": 0.7 * sum(mmd(source[depth], target[depth]) for depth in depths)}, {}


def torch_coral(wing, state, source, target, place="feature"):
    gap = torch.cov(source[place].T) - torch.cov(target[place].T)
    return {"coral": 0.7 * gap.pow(2).sum() / (4 * len(gap) ** 2)}, {}


def torch_mcc(wing, state, source, target):
    shares = (target["logits"] / 2.5).softmax(1)
    sure = 1 + torch.exp(-torch.distributions.Categorical(shares.detach()).entropy())
    confusion = shares.T @ torch.diag(len(shares) * sure / sure.sum()) @ shares
    confusion = confusion / confusion.sum(1, keepdim=True)
    return {"confusion": 0.7 * (confusion.sum() - confusion.trace()) / CLASSES}, {}


ADVERSARY = {"ramp": 10, "widths": (6,)}
CASES = {
    "dann": ("dann", ADVERSARY, torch_dann),
    "cdan": ("cdan", ADVERSARY, torch_cdan),
    "cdan, entropy": ("cdan", {**ADVERSARY, "entropy": True}, functools.partial(torch_cdan, entropy=True)),
    "cdan, random": ("cdan", {**ADVERSARY, "limit": 14, "random_width": 7}, torch_cdan),
    "dan": ("dan", {"weight": 0.7}, torch_dan),
    "dan, two stages": (
        "dan",
        {"weight": 0.7, "stages": 2, "estimator": "biased"},
        functools.partial(
            torch_dan, depths=("early", "feature", "logits"), mmd=functools.partial(torch_mmd, biased=True)
        ),
    ),
    "dan, linear": (
        "dan",
        {"weight": 0.7, "stages": 0, "estimator": "linear"},
        functools.partial(torch_dan, depths=("logits",), mmd=torch_linear_mmd),
    ),
    "deep_coral": ("deep_coral", {"weight": 0.7}, torch_coral),
    "deep_coral, logits": (
        "deep_coral",
        {"weight": 0.7, "place": "logits"},
        functools.partial(torch_coral, place="logits"),
    ),
    "mcc": ("mcc", {"weight": 0.7}, torch_mcc),
}


@pytest.mark.parametrize("case", CASES)
def test_losses_and_gradients_equal_torch(case):
    name, options, formula = CASES[case]
    method, params, state = made(name, **options)
    assert method.streams == {"train": "labelled", "target": "unlabelled"} and method.domains == ("train", "target")
    ours, metrics, gradient = run(method, params, state, BATCHES)

    leaves = {path: torch.tensor(np.asarray(leaf), requires_grad=True) for path, leaf in flatten(params).items()}
    outputs = []
    for batch in (SOURCE, TARGET):
        pixels = torch.tensor(batch["inputs"]["pixel_values"][batch["weight"] > 0])
        early = torch.tanh(pixels @ leaves["backbone/early"])
        feature = torch.tanh(early @ leaves["backbone/late"]).mean((1, 2))
        logits = feature @ leaves["head/kernel"]
        outputs.append({"early": early.mean((1, 2)), "feature": feature, "logits": logits})
    wing = {path.removeprefix("method/"): leaf for path, leaf in leaves.items() if path.startswith("method/")}
    theirs, expected = formula(wing, state["method"], *outputs)
    labels = torch.tensor(SOURCE["targets"][:6]).long()
    theirs = {"task": torch.nn.functional.cross_entropy(outputs[0]["logits"], labels), **theirs}
    sum(theirs.values()).backward()

    assert set(ours) == set(theirs)
    for loss, value in theirs.items():
        np.testing.assert_allclose(ours[loss], value.item(), rtol=1e-5, atol=1e-7, err_msg=loss)
    for metric, value in expected.items():
        np.testing.assert_allclose(metrics[metric], float(value), rtol=1e-5, err_msg=metric)
    for path, leaf in leaves.items():
        np.testing.assert_allclose(gradient[path], leaf.grad.numpy(), rtol=1e-4, atol=2e-6, err_msg=path)


@pytest.mark.parametrize("name", NAMES)
def test_weight_zero_is_supervised_learning_and_padding_has_no_part(name):
    options = ADVERSARY if name in ("cdan", "dann") else {}
    _, _, wanted = run(supervised(forward, TASK), PARAMS, {}, {"train": SOURCE})
    method, params, state = made(name, weight=0.0, **options)
    _, _, gradient = run(method, params, state, BATCHES)
    for path, leaf in wanted.items():
        np.testing.assert_allclose(gradient[path], leaf, rtol=1e-5, atol=1e-7)
    # The discriminator learns at the full rate whatever comes through it.
    method, params, state = made(name, weight=1.0, **options)
    whole = run(method, params, state, BATCHES)
    for path in set(gradient) - set(wanted):
        np.testing.assert_allclose(gradient[path], whole[2][path], rtol=1e-5, atol=1e-7)

    other = jax.tree.map(np.copy, BATCHES)
    for batch in other.values():
        batch["inputs"]["pixel_values"][batch["weight"] == 0] = -77.0
    jax.tree.map(np.testing.assert_array_equal, whole, run(method, params, state, other))


def test_the_reversal_grows_along_the_ramp():
    method, params, state = made("dann", weight=0.5, ramp=100, widths=(2,))
    scales = jax.jit(jax.vmap(lambda step: method.loss(params, state, BATCHES, KEY, step)[2]["reversal"]))
    np.testing.assert_allclose(scales(jnp.array([0, 20, 100, 500])), [0, 0.5 * np.tanh(1), 0.49995, 0.49995], rtol=1e-4)
    method, params, state = made("dann", weight=0.5, ramp=0, widths=(2,))
    assert method.loss(params, state, BATCHES, KEY, 0)[2]["reversal"] == 0.5


def test_random_maps_keep_the_inner_products_of_the_outer_products():
    feature, shares = normal(4, 6), np.asarray(jax.nn.softmax(normal(4, 3)))
    maps = {"feature": normal(6, 40_000), "classes": normal(3, 40_000)}
    mapped, whole = joint(jnp.asarray(feature), shares, maps), joint(jnp.asarray(feature), shares)
    assert whole.shape == (4, 18)
    np.testing.assert_allclose(whole @ whole.T, (feature @ feature.T) * (shares @ shares.T), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(mapped @ mapped.T, whole @ whole.T, atol=0.05 * np.abs(whole @ whole.T).max())


# --- statistics of samples


def test_estimators_of_the_discrepancy_agree_where_they_should():
    x, y = normal(400, 12, 3), normal(400, 10, 3)
    same, apart = (
        [np.asarray(jax.jit(jax.vmap(f))(x, z)) for f in (domains.mmd, BIASED, domains.linear_mmd)] for z in (y, y + 1)
    )
    deviations = [values.std() / 20 for values in (*same, *apart)]
    assert abs(same[0].mean()) < 3 * deviations[0] and abs(same[2].mean()) < 3 * deviations[2]
    assert (same[1] > 0).all() and (same[0] < 0).any() and same[1].mean() > 0.05
    assert apart[0].mean() > 20 * deviations[3]
    assert apart[2].std() > 1.5 * apart[0].std()  # the price of linear time


BIASED = functools.partial(domains.mmd, unbiased=False)


def test_a_weight_of_two_is_a_row_twice():
    x, y, weight = normal(5, 3), normal(6, 3), np.array([1, 2, 1, 0, 1], np.float32)
    twice, ones = x[[0, 1, 1, 2, 4]], np.ones(6, np.float32)
    np.testing.assert_allclose(
        jax.jit(domains.covariance)(x, weight), np.cov(x.T, aweights=weight), rtol=1e-4, atol=1e-6
    )
    biased = jax.jit(BIASED)
    # The bandwidth leaves out a row's pair with itself, and a copy is another row.
    np.testing.assert_allclose(biased(x, y, weight, ones), biased(twice, y, ones[:5], ones), rtol=0.02)
    for statistic in (domains.mmd, BIASED, domains.linear_mmd, domains.coral):
        both = jax.jit(jax.value_and_grad(statistic))
        value, gradient = both(np.ones((5, 3), np.float32), np.ones((6, 3), np.float32), weight, ones)
        assert abs(value) < 1e-6 and np.all(np.abs(gradient) < 1e-6)  # all alike: rounding makes no distance
        if statistic is not domains.coral:
            assert both(x, y, 0 * weight, ones)[0] == 0


def trained(method, params, state, batches):
    """(parameters after 300 steps, the task's loss of each step)."""
    optimizer = optax.adam(1e-2)

    def step(carry, number):
        def total(leaves):
            shares = {name: x.sum / x.weight for name, x in method.loss(leaves, state, batches, KEY, number)[0].items()}
            return sum(shares.values()), shares["task"]

        gradient, task = jax.grad(total, has_aux=True)(carry[0])
        updates, moments = optimizer.update(gradient, carry[1])
        return (optax.apply_updates(carry[0], updates), moments), task

    (params, _), task = jax.jit(lambda p: jax.lax.scan(step, (p, optimizer.init(p)), jnp.arange(300)))(params)
    return params, task


@pytest.mark.parametrize("name", NAMES)
def test_it_does_what_it_is_for(name):
    """Trained with weight 0 and with weight: the domains can be told less, or what is minimised is much less."""
    options = {"ramp": 100, "widths": (16,)} if name in ("cdan", "dann") else {}
    pixels = TARGET["inputs"]["pixel_values"] - 0.6
    batches = {**BATCHES, "target": {**TARGET, "inputs": {"pixel_values": pixels}}}
    measured, found = made(name, **options)[0], []
    for weight in (0.0, {"dan": 10.0, "deep_coral": 1000.0, "mcc": 10.0}.get(name, 1.0)):
        method, params, state = made(name, **options, weight=weight)
        params, task = trained(method, params, state, batches)
        assert task[-1] < task[0]
        shares, metrics, _ = run(measured, params, state, batches)
        found.append((sum(value for key, value in shares.items() if key != "task"), metrics))
    (plain, told), (adapted, told_less) = found
    if name in ("cdan", "dann"):
        assert adapted > plain + 0.1 and told_less["domain_accuracy"] < told["domain_accuracy"]
    else:
        assert adapted < 0.5 * plain


# --- whole runs on tiny data


@pytest.mark.parametrize("name", NAMES)
def test_a_run_trains_on_images_of_two_domains(name, tmp_path):
    for domain in ("source", "target"):
        images = RNG.integers(0, 256, (12, 8, 8, 3), np.uint8)
        np.savez(tmp_path / f"{domain}.npz", image=images, label=np.arange(12) % 2)
    entry = {d: {"source": f"npz:{tmp_path / d}.npz", "processor": {"size": 8}} for d in ("source", "target")}
    options = {"dan": {"stages": 2}, "dann": {"ramp": 4, "widths": (4,)}, "cdan": {"ramp": 4, "limit": 4}}
    config = {
        "model": {"family": "cifar_resnet", "variant": {"blocks": 1, "widths": [4, 8]}},
        "method": {"name": name, **options.get(name, {})},
        "optim": {"name": "sgd", "learning_rate": 0.1},
        "data": {"train": entry["source"], "target": entry["target"]},
        "train": {"batch_size": 8, "steps": 3, "accumulate": 2 if name == "dann" else 1},
        "mesh": {"data": 1},
    }
    experiment, losses = train_steps(config, 3)
    assert np.all(np.isfinite(losses))
    wing = experiment.variables["params"].get("method", {})
    assert ("discriminator" in wing) == (name in ("dann", "cdan"))
    assert ("maps" in experiment.method_state) == (name == "cdan")


def test_texts_of_two_lengths_are_aligned_at_several_depths(tmp_path):
    columns = dict(text="review", label="mood")
    entries = {
        name: {
            "source": f"csv:{save_csv(tmp_path / f'{name}.csv', 16, seed=seed)}",
            "columns": columns,
            "processor": {"max_length": length, "lengths": (length,)},
        }
        for seed, (name, length) in enumerate({"train": 12, "target": 8}.items())
    }
    config = {
        "model": {"source": str(save_tiny_bert(tmp_path / "bert"))},
        "method": {"name": "dan", "stages": 3},
        "optim": {"name": "adamw", "learning_rate": 3e-3},
        "data": entries,
        "train": {"batch_size": 8, "steps": 3},
        "mesh": {"data": 1},
    }
    _, losses = train_steps(config, 3)
    assert np.all(np.isfinite(losses))
    config["method"]["stages"] = 4
    with pytest.raises(UserError, match=r"stages is 4, and the backbone gives out 3 hidden states. Set it to 3"):
        train_steps(config, 1)


# --- what does not fit


def test_options_out_of_range_are_refused_together():
    cases = {
        "dann": (dict(weight=-1, ramp=1.5, widths=(0,)), r"weight is -1(.|\n)*ramp is 1.5(.|\n)*widths is \(0,\)"),
        "cdan": (dict(limit=-1, random_width=0, ramp=-1), r"ramp is -1(.|\n)*limit is -1(.|\n)*random_width is 0"),
        "dan": (dict(stages=-1, estimator="u"), r"stages is -1(.|\n)*estimator is 'u'. Accepted: unbiased"),
        "deep_coral": (dict(weight=-1, place="head"), r"weight is -1(.|\n)*place is 'head'"),
        "mcc": (dict(weight=-1, temperature=0), r"weight is -1(.|\n)*temperature is 0"),
    }
    for name, (options, message) in cases.items():
        with pytest.raises(UserError, match=message):
            made(name, **options)


def test_tasks_and_models_that_do_not_fit_are_refused_by_name():
    for name in ("cdan", "mcc"):
        with pytest.raises(UserError, match=rf"The method {name} needs a task that gives each example one class"):
            made(name, regression(SPEC))
    for name in ("dann", "cdan", "dan", "deep_coral"):
        method, _, _ = made(name)
        with pytest.raises(UserError, match=f"The method {name} needs one vector"):
            method.init(KEY, {**SHAPES, "feature": None})
    for logits, found in ((None, "has none"), (jax.ShapeDtypeStruct((1, 7, 9), jnp.float32), r"shape \(B, 7, 9\)")):
        with pytest.raises(UserError, match=f"dan needs one row of logits.*{found}"):
            made("dan")[0].init(KEY, {**SHAPES, "logits": logits})
    pairs = {k: {**b, "inputs": {"pixel_values": np.ones((len(b["weight"]), 2, 2, 2, 3))}} for k, b in BATCHES.items()}
    method, params, state = made("dann", similarity(SPEC))
    with pytest.raises(UserError, match="the task similarity has several inputs"):
        method.loss(params, state, pairs, KEY, 0)


def test_the_discriminator_may_see_the_whole_map():
    """As if the task's vector were the flattened map."""
    flat = TASK._replace(feature=lambda outputs: outputs["hidden"].reshape(len(outputs["hidden"]), -1))
    other = {**SHAPES, "feature": jax.ShapeDtypeStruct((1, 4 * WIDTH), jnp.float32)}
    as_feature = lookup(TABLE, "dann", what="method")(forward, flat, ramp=10, widths=(6,))
    wing, state = as_feature.init(jax.random.key(1), other)
    expected = run(as_feature, {**PARAMS, "method": wing}, {"method": state}, BATCHES)
    method, params, state = made("dann", ramp=10, widths=(6,), place="map")
    found = run(method, params, state, BATCHES)
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-6), found, expected)
    with pytest.raises(UserError, match=r"place is 'maps'. Did you mean 'map'"):
        made("dann", place="maps")
    with pytest.raises(UserError, match="gives no feature map"):
        method.init(jax.random.key(1), {**SHAPES, "hidden": jax.ShapeDtypeStruct((1, 7, WIDTH), jnp.float32)})


def test_a_map_has_the_size_of_the_images(tmp_path):
    for name in ("train", "target"):
        np.savez(
            tmp_path / f"{name}.npz", image=RNG.integers(0, 256, (12, 20, 20, 3), np.uint8), label=np.arange(12) % 2
        )
    config = {
        "model": {"family": "vgg", "variant": dict(widths=(4, 6), depths=(1, 1), hidden_size=5, grid=2)},
        "task": {"name": "classification"},
        "method": {"name": "dann", "place": "map", "widths": (3,)},
        "optim": {"learning_rate": 1e-2},
        "train": {"batch_size": 6, "steps": 2},
        "mesh": {"data": 1},
        "data": {
            name: {"source": f"npz:{tmp_path / name}.npz", "processor": {"size": 12}} for name in ("train", "target")
        },
    }
    experiment, losses = train_steps(config, 1)
    shapes = {leaf.shape for leaf in flatten(experiment.variables["params"]["method"]).values()}
    assert (3 * 3 * 6, 3) in shapes
    assert np.isfinite(losses).all()
