"""Keras' weights in HDF5: `.weights.h5` of Keras 3, and the legacy `.h5` of Keras 1 and 2. Read with h5py alone.

A tensor is named by its layer and its place among that layer's weights. In Keras 3 the file's own paths say both,
`layers/conv2d_3/vars/0`: a layer is its class in snake case, counted in the order of `model.layers`. A legacy file
names layers freely, with slashes too, and lists the names of their weights, which differ from version to version; here
they are `NAME/vars/0`, and the names themselves are an entry of the config, `keras_layers`, so that they can be
written again.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from tljax.base.errors import UserError
from tljax.checkpoints.tensors import Format, Tensor

Skeleton = list[list[Any]]
"""[[name of a layer, [names of its weights]], …] in the order of a legacy file."""

FILES = {"keras": "model.weights.h5", "keras_legacy": "model.h5"}
"""Spelling of a weight table → the file that it is written to."""

AUTOMATIC = re.compile(r"(conv2d|batch_normalization|dense)(?:_(\d+))?")
"""The names that Keras gives to layers that nobody named."""

DAMAGE = (OSError, RuntimeError, KeyError, ValueError, TypeError, AttributeError)
"""What h5py raises on files that are damaged or hold something else."""


def open_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of an `.h5` file; each is read when it is asked for.

    Of a whole legacy model (`model.save`) the weights alone are read, without its optimizer.

    Raises:
      UserError: a damaged file, one that is no weight file of Keras, or one that points into other files.
    """
    path, places = Path(path), {}
    for name, place in _places(path):
        if name in places:
            raise UserError(f"{path} holds the weight {name} twice.")
        places[name] = place
    return {name: _tensor(path, place) for name, place in places.items()}


def describe(path: Path, tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """The entries of config.json that belong to a file: `keras_layers` for a legacy one, none for Keras 3."""
    skeleton = _read(path, _skeleton)
    return {} if skeleton is None else {"keras_layers": skeleton}


def _read(path: Path, function: Any, *arguments: Any) -> Any:
    """`function` of the open file; what h5py raises becomes a `UserError`."""
    import h5py

    try:
        with h5py.File(path, "r") as file:
            return function(file, *arguments)
    except DAMAGE as error:
        raise UserError(f"{path} is damaged or no HDF5 file of Keras: {error}") from error


def _root(file: Any) -> Any:
    return file.get("model_weights", file)


def _names(attributes: Any, key: str) -> list[str]:
    """A list of names in an attribute; a long one is cut into `key0`, `key1` …"""
    parts = (key, *(f"{key}{part}" for part in range(len(attributes))))
    values = [value for name in parts if name in attributes for value in attributes[name]]
    return [value.decode("utf8") if isinstance(value, bytes) else str(value) for value in values]


def _skeleton(file: Any) -> Skeleton | None:
    """The layers of a legacy file; None for a file of Keras 3."""
    root = _root(file)
    if not any(key in root.attrs for key in ("layer_names", "layer_names0")):
        return None
    return [[layer, _names(root[layer].attrs, "weight_names")] for layer in _names(root.attrs, "layer_names")]


def _counted(layers: Sequence[str]) -> dict[str, str]:
    """Name in a legacy file → ours: names that Keras made itself (`conv2d_7`) are counted from `conv2d` on.

    Keras counts on through all models of a session, so that the same network comes with other numbers.
    """
    found: dict[str, list[int]] = {}
    for layer in layers:
        if m := AUTOMATIC.fullmatch(layer):
            found.setdefault(m[1], []).append(int(m[2] or 0))
    names = {layer: layer for layer in layers}
    for kind, numbers in found.items():
        for number in numbers:
            left = number - min(numbers)
            names[f"{kind}_{number}" if number else kind] = f"{kind}_{left}" if left else kind
    return names


def _places(path: Path) -> list[tuple[str, str]]:
    """(our name, path in the file) of every weight."""
    skeleton = _read(path, _skeleton)
    if skeleton is not None:
        root = _read(path, lambda file: _root(file).name.rstrip("/"))
        ours = _counted([layer for layer, _ in skeleton])
        return [
            (f"{ours[layer]}/vars/{number}", f"{root}/{layer}/{weight}")
            for layer, weights in skeleton
            for number, weight in enumerate(weights)
        ]
    names = _read(path, _datasets)
    if not any(name.startswith("layers/") for name in names):
        held = f"It holds {', '.join(names[:3])}." if names else "It holds no weights."
        raise UserError(f"{path} is HDF5, but no weight file of Keras: no `layers` and no `layer_names`. {held}")
    return [(name, name) for name in names]


def _datasets(file: Any) -> list[str]:
    """The paths of all datasets; the file lists them by the alphabet, and the numbers in them count here."""
    import h5py

    names: list[str] = []
    file.visititems(lambda name, item: names.append(name) if isinstance(item, h5py.Dataset) else None)
    return sorted(names, key=lambda name: [(int(p), "") if p.isdigit() else (-1, p) for p in _words(name)])


def _words(name: str) -> Iterator[str]:
    for part in name.split("/"):
        stem, _, number = part.rpartition("_")
        yield from (stem, number) if stem and number.isdigit() else (part, "0") if not part.isdigit() else (part,)


def _tensor(path: Path, place: str) -> Tensor:
    def facts(file: Any) -> tuple[tuple[int, ...], np.dtype]:
        if place not in file:
            raise KeyError(f"{place.removeprefix('/')} is missing")
        dataset = file[place]
        if dataset.file.filename != file.filename or dataset.external:
            raise ValueError(f"{place} points into another file")
        half = dataset.dtype == np.dtype("V2") or dataset.attrs.get("dtype") == "bfloat16"
        return tuple(dataset.shape), np.dtype(ml_dtypes.bfloat16) if half else dataset.dtype

    shape, dtype = _read(path, facts)

    def read() -> np.ndarray:
        array = np.asarray(_read(path, lambda file: file[place][()]))
        return array.view(dtype) if array.dtype == np.dtype("V2") else array.astype(dtype, copy=False)

    return Tensor(shape, dtype, read, str(path))


def write_tensors(path: Path, tensors: Mapping[str, np.ndarray], skeleton: Skeleton | None = None) -> None:
    """Writes a `.weights.h5`, or with `skeleton` a legacy `.h5`.

    Args:
      path: of the new file.
      tensors: by the names of `open_tensors`.
      skeleton: the layers of the file that the model came in. Layers of it that have lost their weights (a head that
        another took the place of) are left out, new ones stand at the end.
    """
    import h5py

    with h5py.File(path, "w") as file:
        if skeleton is None:
            for name, array in tensors.items():
                dataset = file.create_dataset(name, data=_storable(array))
                if array.dtype == ml_dtypes.bfloat16:
                    dataset.attrs["dtype"] = "bfloat16"
            file.require_group("vars")
            return
        layers, ours = _layers(tensors, skeleton)
        file.attrs["layer_names"] = _fixed([layer for layer, _ in layers])
        for layer, weights in layers:
            group = file.require_group(layer)
            group.attrs["weight_names"] = _fixed(weights)
            for number, weight in enumerate(weights):
                group.create_dataset(weight, data=_storable(tensors[f"{ours.get(layer, layer)}/vars/{number}"]))


def _fixed(names: Sequence[str]) -> np.ndarray:
    """Names as Keras stores them: bytes of one length."""
    return np.array([name.encode("utf8") for name in names], dtype=None if names else "S1")


def _storable(array: np.ndarray) -> np.ndarray:
    """HDF5 has no bfloat16: two opaque bytes hold it, as in Keras' own files."""
    return array.view("V2") if array.dtype == ml_dtypes.bfloat16 else array


def _layers(tensors: Mapping[str, np.ndarray], skeleton: Sequence[Sequence[Any]]) -> tuple[Skeleton, dict[str, str]]:
    """(the layers to write, their names in the file → ours)."""
    counts: dict[str, int] = {}
    for name in tensors:
        layer = name.rpartition("/vars/")[0]
        counts[layer] = counts.get(layer, 0) + 1
    ours = _counted([layer for layer, _ in skeleton])
    kept = [[layer, list(weights)] for layer, weights in skeleton if len(weights) == counts.get(ours[layer], 0)]
    known = {ours[layer] for layer, _ in kept}
    new = [[layer, _weight_names(layer, count)] for layer, count in counts.items() if layer not in known]
    return [*kept, *new], ours


def _weight_names(layer: str, count: int) -> list[str]:
    """Keras 2's names of the weights of a layer: of a convolution or a dense layer, else of a batch norm."""
    norm = ("gamma", "beta", "moving_mean", "moving_variance")
    parts = ("kernel", "bias")[:count] if count <= 2 else norm[len(norm) - count :]
    return [f"{layer}/{part}:0" for part in parts]


def write_model(folder: Path, tensors: Mapping[str, np.ndarray], entries: dict[str, Any]) -> None:
    """The weights in the format that their checkpoint came in, which `entries` (config.json) say.

    Takes `keras_layers` out of `entries`: the file that is written says the same.
    """
    skeleton = entries.pop("keras_layers", [])
    form = entries["weights_format"]
    if form == "keras_legacy" and any(array.dtype == ml_dtypes.bfloat16 for array in tensors.values()):
        raise UserError("Keras' legacy .h5 holds no bfloat16: convert the model to float32 first.")
    write_tensors(folder / FILES[form], tensors, None if form == "keras" else skeleton)


FORMAT = Format(open_tensors, describe)
