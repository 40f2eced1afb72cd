"""Keras' own models with random weights, and their files."""

import os
import re
import warnings
from pathlib import Path

import numpy as np

os.environ.setdefault("KERAS_BACKEND", "jax")


def keras_model(name: str, **options):
    """An application of Keras with random weights; those of norms are positive."""
    import keras

    keras.utils.clear_session()
    return randomise(getattr(keras.applications, name)(weights=None, **options))


def randomise(model, *, seed: int = 0):
    """`model` with new random values for every weight."""
    generator = np.random.default_rng(seed)
    for weight in model.weights:
        weight.assign(_random(tuple(weight.shape), generator))
    return model


def save_keras(model, folder: Path) -> Path:
    """Keras 3's own `.weights.h5`."""
    with warnings.catch_warnings(action="ignore"):  # Keras uses NumPy in a way that NumPy deprecates
        model.save_weights(folder / "some.weights.h5")
    return folder / "some.weights.h5"


def save_legacy(model, folder: Path, *, first: int = 0) -> Path:
    """Keras 2's layout, which Keras 3 writes for whole models only; automatic names are counted from `first` on."""
    import h5py

    path = folder / "legacy.h5"
    layers = [(_counted(layer.name, first), layer.weights) for layer in model.layers]
    with h5py.File(path, "w") as file:
        file.attrs["layer_names"] = [name.encode() for name, _ in layers]
        for layer, weights in layers:
            group = file.require_group(layer)
            names = [f"{layer}/{weight.name}:0" for weight in weights]
            group.attrs["weight_names"] = [name.encode() for name in names]
            for name, weight in zip(names, weights, strict=True):
                group.create_dataset(name, data=np.asarray(weight.value))
    return path


def _counted(name: str, first: int) -> str:
    m = re.fullmatch(r"(conv2d|batch_normalization)(?:_(\d+))?", name)
    return f"{m[1]}_{int(m[2] or 0) + first}" if first and m else name


def _random(shape: tuple[int, ...], generator: np.random.Generator) -> np.ndarray:
    if len(shape) == 1:
        return generator.uniform(0.5, 1.5, shape).astype(np.float32)
    return generator.standard_normal(shape, np.float32) * np.float32((2 / np.prod(shape[:-1])) ** 0.5)


def predict(model, pixels: np.ndarray) -> np.ndarray:
    """The outputs in inference mode, compiled as one."""
    import jax

    params = [variable.value for variable in model.trainable_variables]
    fixed = [variable.value for variable in model.non_trainable_variables]
    return np.asarray(jax.jit(lambda p, s, x: model.stateless_call(p, s, x, training=False)[0])(params, fixed, pixels))
