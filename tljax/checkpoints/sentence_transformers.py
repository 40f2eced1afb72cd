"""The folder layout of sentence-transformers: a text encoder, then pooling, normalisation and a dense layer.

Reimers and Gurevych 2019. The module names are those that every version since 2.0 reads.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from safetensors.numpy import save_file

from tljax.base.errors import UserError
from tljax.base.weights import AS_IS, LINEAR, Row, row
from tljax.checkpoints.safetensors_format import open_tensors
from tljax.checkpoints.tensors import Tensor
from tljax.models.heads import Classifier

POOLINGS = {"mean": "pooling_mode_mean_tokens", "cls": "pooling_mode_cls_token"}
"""Our poolings → the entries of version 2 to 5; version 6 writes `pooling_mode`, and reads both."""

IDENTITY = "torch.nn.modules.linear.Identity"
DENSE = "sentence_transformers.dense"
"""What stands before the names of the dense layer's tensors in a table."""


class Dense(NamedTuple):
    """A classifier in this layout: our head, its rows, and the tensors that they read."""

    head: Classifier
    rows: tuple[Row, ...]
    tensors: dict[str, Tensor]


def check_layout(head: Any) -> None:
    """Raises `UserError` for a head that the layout cannot express."""
    if head.pool not in POOLINGS:
        raise UserError(
            f"The head {head} cannot be exported: sentence-transformers pools by {', '.join(POOLINGS)}, and "
            "transformers has no class that gives the pooler's output as it is, or normalised to a classifier."
        )


def write_layout(folder: Path, head: Any, params: Mapping[str, Any], *, width: int, max_length: int) -> None:
    """Everything beside the encoder that `SentenceTransformer(folder).encode` needs to give our logits or embedding.

    Args:
      folder: holds config.json and the weights already.
      head: `Embedding` or `Classifier` that `check_layout` accepts.
      params: of the head.
      width: of the encoder.
      max_length: tokens at which texts are cut.
    """
    modules = ["Transformer", "Pooling"]
    pooling = {"word_embedding_dimension": width}
    pooling.update({key: name == head.pool for name, key in POOLINGS.items()})
    _write(folder / "1_Pooling" / "config.json", pooling)
    if head.normalize:
        modules.append("Normalize")
        (folder / f"{len(modules) - 1}_Normalize").mkdir()
    if isinstance(head, Classifier):
        modules.append("Dense")
        dense = folder / f"{len(modules) - 1}_Dense"
        sizes = {"in_features": width, "out_features": head.classes, "bias": True}
        _write(dense / "config.json", {**sizes, "activation_function": IDENTITY})
        kernel, bias = (np.asarray(params["out"][name]) for name in ("kernel", "bias"))
        tensors = {"linear.weight": np.ascontiguousarray(kernel.T), "linear.bias": np.ascontiguousarray(bias)}
        save_file(tensors, dense / "model.safetensors", metadata={"format": "pt"})
    listed = [
        {
            "idx": i,
            "name": str(i),
            "path": f"{i}_{kind}" if i else "",
            "type": f"sentence_transformers.models.{kind}",
        }
        for i, kind in enumerate(modules)
    ]
    _write(folder / "modules.json", listed)
    _write(folder / "sentence_bert_config.json", {"max_seq_length": max_length, "do_lower_case": False})
    _write(folder / "config_sentence_transformers.json", {"similarity_fn_name": "cosine"})


def read_layout(folder: Path) -> Dense | None:
    """The inverse of `write_layout` for a classifier: pooling, perhaps normalisation, and one dense layer.

    None for all else: what an encoder is pooled by is a choice of the task and no head of the checkpoint, and other
    chains of modules are not heads of ours.
    """
    if not (folder / "modules.json").is_file():
        return None
    modules = _read(folder / "modules.json")
    try:
        kinds = [module["type"].rpartition(".")[2] for module in modules]
        places = [folder / module["path"] for module in modules]
        if kinds not in (["Transformer", "Pooling", "Dense"], ["Transformer", "Pooling", "Normalize", "Dense"]):
            return None
        pooling, dense = (_read(places[i] / "config.json") for i in (1, -1))
        modes = [pooling["pooling_mode"]] if "pooling_mode" in pooling else [k for k, v in pooling.items() if v is True]
        pools = [pool for pool, key in POOLINGS.items() if modes in ([pool], [key], [key, "include_prompt"])]
        plain = dense.get("activation_function") == IDENTITY and dense.get("bias", True)
        if not pools or not plain or dense.get("use_residual"):
            return None
        head = Classifier(int(dense["out_features"]), pool=pools[0], normalize="Normalize" in kinds, start="normal")
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise UserError(f"{folder} is not in the layout of sentence-transformers: {error!r}") from error
    tensors = open_tensors(places[-1] / "model.safetensors")
    return Dense(
        head,
        (
            row(f"{DENSE}.linear.weight", "head/out/kernel", LINEAR),
            row(f"{DENSE}.linear.bias", "head/out/bias", AS_IS),
        ),
        {f"{DENSE}.{name}": tensor for name, tensor in tensors.items()},
    )


def _read(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read: {error}") from error


def _write(path: Path, content: Any) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf8")
