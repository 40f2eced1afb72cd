"""A tiny classifier of images that was trained and exported, for methods that go on with one."""

import numpy as np
import pytest

from tests.tiny import train_steps


@pytest.fixture(scope="session")
def adapted(tmp_path_factory):
    """A config that goes on with it on darker, redder images (`train`, `test`); the method is missing."""
    from tljax.checkpoints.save import save_pretrained

    folder, generator = tmp_path_factory.mktemp("adapted"), np.random.default_rng(0)
    for name, scale, cast in (("source", 1.0, 0), ("target", 0.6, 70)):
        label = np.arange(96) % 3
        images = generator.integers(0, 120, (96, 8, 8, 3)).astype(float)
        images[np.arange(96), :, :, label] += 90  # the classes are colours
        images = scale * images + [cast, 0, 0]
        np.savez(folder / f"{name}.npz", image=images.astype(np.uint8), label=label)
    entry = {name: {"source": f"npz:{folder}/{name}.npz", "processor": {"size": 8}} for name in ("source", "target")}
    config = {
        "model": {"family": "cifar_resnet", "variant": {"blocks": 1, "widths": [4, 4, 8]}},
        "task": {"name": "classification", "init": "normal"},
        "optim": {"name": "adamw", "learning_rate": 1e-2},
        "data": {"train": entry["source"]},
        "train": {"batch_size": 32, "steps": 30},
        "mesh": {"data": 1},
    }
    experiment, losses = train_steps(config, 30)
    assert losses[-1] < 0.7 * losses[0]
    save_pretrained(experiment.model, experiment.variables, folder / "source", classes=experiment.classes)
    return {
        **config,
        "model": {"source": str(folder / "source")},
        "task": {"name": "classification", "head": "own"},
        "data": {"train": entry["target"], "test": entry["target"]},
    }
