"""Segmentation of squares and circles on noise: learning, measuring as scikit-learn does, decoding, refusing."""

import base64
import io

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.metrics import accuracy_score, confusion_matrix, jaccard_score
from transformers import ResNetConfig, ResNetModel

from tljax.assembly.experiment import build
from tljax.assembly.running import evaluate_as_is, predict_records
from tljax.assembly.training import make_job, with_leaves
from tljax.base.errors import UserError
from tljax.data.segmentation import IGNORED
from tljax.tasks.segmentation import count_pairs, pixel_cross_entropy, scores

NAMES = ("ground", "square", "circle")
SIDE, STEPS = 32, 150
TINY = dict(embedding_size=8, hidden_sizes=[12, 20], depths=[1, 1], layer_type="basic")


def scene(generator: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """A red square and a blue circle on noise, and their mask, in which the border of the image is ignored."""
    image = generator.integers(60, 190, (SIDE, SIDE, 3)).astype(np.uint8)
    mask = np.zeros((SIDE, SIDE), np.uint8)
    rows, columns = np.mgrid[:SIDE, :SIDE]
    for number, colour in ((1, (230, 30, 30)), (2, (30, 30, 230))):
        (y, x), r = generator.integers(7, SIDE - 7, 2), generator.integers(5, 9)
        far = np.maximum(abs(rows - y), abs(columns - x)) if number == 1 else np.hypot(rows - y, columns - x)
        image[far < r], mask[far < r] = colour, number
    mask[0] = IGNORED
    return image, mask


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    root, generator = tmp_path_factory.mktemp("shapes"), np.random.default_rng(0)
    for split, count in (("train", 48), ("test", 10)):
        for kind in ("images", "masks"):
            (root / split / kind).mkdir(parents=True)
        for i in range(count):
            for kind, array in zip(("images", "masks"), scene(generator), strict=True):
                Image.fromarray(array).save(root / split / kind / f"{i:02}.png")
    (root / "classes.txt").write_text("\n".join(NAMES))
    torch.manual_seed(0)
    ResNetModel(ResNetConfig(**TINY)).save_pretrained(root / "resnet")
    entry = dict(source=f"mask_folder:{root}")
    return dict(
        seed=0,
        model=dict(source=str(root / "resnet"), processor=dict(size=SIDE)),
        task=dict(name="segmentation", width=24),
        strategy=dict(fine_tune={}),
        optim=dict(name="adamw", learning_rate=1e-2),
        train=dict(batch_size=12, steps=STEPS),
        mesh=dict(data=1),
        data=dict(train=dict(**entry, split="train", augment=dict(scale=(0.8, 1.2))), test=dict(**entry, split="test")),
    )


@pytest.fixture(scope="module")
def trained(config):
    experiment = build(config)
    job = make_job(experiment)
    state, batches = job.state, job.batches(0)
    before = jax.tree.map(np.asarray, state.batch_stats)
    for _ in range(STEPS):
        state, _ = job.step(state, next(batches))
    moved = jax.tree.map(lambda a, b: not np.array_equal(a, b), before, state.batch_stats)
    assert all(jax.tree.leaves(moved)), "every batch norm sees the images"
    return experiment._replace(variables=with_leaves(experiment, state.live, state.batch_stats))


def test_it_learns_to_segment(trained):
    numbers, tables, predictions = evaluate_as_is(trained, "test")
    assert numbers["mean_iou"] > 0.7 and numbers["pixel_accuracy"] > 0.85
    assert [row["class"] for row in tables["per_class"]] == list(NAMES)
    # What an evaluation keeps of an image: counts, and a small map.
    assert {k: (x.shape, x.dtype.name) for k, x in predictions.items()} == {
        "confusion": ((10, 3, 3), "int32"),
        "label": ((10, SIDE, SIDE), "uint8"),
    }
    assert np.all(predictions["confusion"].sum((1, 2)) == SIDE * (SIDE - 1))
    assert len(tables["pictures"]) == 6
    picture = np.asarray(Image.open(io.BytesIO(tables["pictures"][0]["png"])))
    assert picture.shape == (256, 3 * 256 + 8, 3)
    truth, found = picture[:, 260:516].astype(float), picture[:, 520:].astype(float)
    same = np.all(truth == found, axis=-1)
    assert 0.6 < same.mean() < 1  # the line that is ignored is white in the truth alone


def test_predictions_have_the_size_of_their_image(trained):
    image, mask = scene(np.random.default_rng(7))
    wide = np.asarray(Image.fromarray(image).resize((80, 48)))
    record = {"id": 3, "image": wide, "mask": "is not read"}
    (line,) = predict_records(trained, [record])
    found = np.asarray(Image.open(io.BytesIO(base64.b64decode(line["mask"]))))
    assert line["id"] == 3 and found.shape == (48, 80) and found.dtype == np.uint8
    assert line["shares"] == {NAMES[n]: round(float(np.mean(found == n)), 6) for n in np.unique(found)}
    assert sum(line["shares"].values()) == pytest.approx(1, abs=1e-5)
    small = np.asarray(Image.fromarray(found).resize((SIDE, SIDE), Image.Resampling.NEAREST))
    assert np.mean(small[1:] == mask[1:]) > 0.8


def test_scores_equal_scikit_learn_s():
    generator = np.random.default_rng(0)
    true, found = generator.integers(0, 4, (2, 3, 9, 7)).astype(np.uint8)
    found[true == 2] = 2
    true[generator.random(true.shape) < 0.2] = IGNORED
    counts = np.asarray(jax.jit(count_pairs, static_argnums=2)(true, found, 5))
    for a, b, mine in zip(true, found, counts, strict=True):
        known = a != IGNORED
        assert np.array_equal(mine, confusion_matrix(a[known], b[known], labels=range(5)))
    numbers = scores(counts.sum(0), "abcde")
    a, b = true[true != IGNORED], found[true != IGNORED]
    # The fifth class never occurs, and is left out of the means.
    assert numbers["mean_iou"] == pytest.approx(jaccard_score(a, b, average="macro"))
    each = jaccard_score(a, b, average=None)
    assert [row["iou"] for row in numbers["per_class"]] == pytest.approx([*each, 0])
    assert numbers["pixel_accuracy"] == pytest.approx(accuracy_score(a, b))
    assert scores(np.zeros((2, 2), int), "ab")["mean_iou"] == 0


def test_the_loss_equals_torch_s():
    generator = np.random.default_rng(0)
    logits = generator.normal(size=(3, 4, 5, 6)).astype(np.float32)
    mask = generator.integers(0, 6, (3, 16, 15)).astype(np.uint8)
    mask[generator.random(mask.shape) < 0.3] = IGNORED
    mask[2] = IGNORED
    ours, gradient = jax.jit(jax.value_and_grad(lambda z: (pixel_cross_entropy(z, mask) * jnp.arange(1, 4)).sum()))(
        logits
    )
    theirs = torch.tensor(logits.transpose(0, 3, 1, 2), requires_grad=True)
    large = torch.nn.functional.interpolate(theirs, (16, 15), mode="bilinear", align_corners=False)
    labels = torch.tensor(mask).long()
    losses = [torch.nn.functional.cross_entropy(large[i : i + 1], labels[i : i + 1], ignore_index=255) for i in (0, 1)]
    total = losses[0] + 2 * losses[1]
    total.backward()
    assert float(ours) == pytest.approx(total.item(), rel=1e-5)
    np.testing.assert_allclose(gradient, theirs.grad.numpy().transpose(0, 2, 3, 1), atol=1e-6)
    assert not np.any(gradient[2]), "an image without pixels that count has no gradient"


def test_a_batch_weighs_every_pixel_alike(trained):
    maker, records = trained.processors["train"], trained.sources["train"].records
    batch = {**maker.collate([maker.example(records[i]) for i in range(2)]), "weight": np.array([1, 0], np.float32)}
    assert trained.task.weights(batch).tolist() == [SIDE * (SIDE - 1), 0]


def test_what_does_not_fit_is_refused(config):
    def task(**options):
        return {**config, "task": {"name": "segmentation", **options}}

    with pytest.raises(UserError, match=r"width is 0"):
        build(task(width=0))
    with pytest.raises(UserError, match=r"classes is \['a'\], and the data name"):
        build(task(classes=["a"]))
    with pytest.raises(UserError, match=r"place is 'letterbx'\. Did you mean 'letterbox'"):
        build(task(place="letterbx"))
    mixed = build({**config, "method": dict(name="supervised", mixup=0.3)})
    maker, record = mixed.processors["train"], mixed.sources["train"].records[0]
    with pytest.raises(UserError, match=r"mixup averages targets"):
        mixed.method.loss(None, None, {"train": maker.collate([maker.example(record)])}, None, 0)
    text = dict(family="word_vectors", variant=dict(vocab_size=9, hidden_size=4), processor=dict(name="image"))
    with pytest.raises(UserError, match=r"word_vectors has none"):
        build({**config, "model": text})


def test_data_without_names_or_masks(config, tmp_path):
    np.savez(tmp_path / "data.npz", image=np.zeros((4, 8, 8, 3), np.uint8), mask=np.zeros((4, 8, 8), np.uint8))
    entry = dict(source=f"npz:{tmp_path / 'data.npz'}")
    unnamed = {**config, "data": dict(train=entry)}
    with pytest.raises(UserError, match=r"no classes\.txt"):
        build(unnamed)
    experiment = build({**unnamed, "task": {**config["task"], "classes": NAMES}})
    assert experiment.classes == NAMES
    predictions = {"label": np.zeros((4, 8, 8), np.uint8)}
    with pytest.raises(UserError, match="the records have no masks"):
        experiment.task.metrics(predictions, None, experiment.sources["train"].records)
