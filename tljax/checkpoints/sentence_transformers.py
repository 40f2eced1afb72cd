"""The folder layout of sentence-transformers: a text encoder, then pooling, normalisation and a dense layer.

Reimers and Gurevych 2019. The module names are those that every version since 2.0 reads.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from tljax.base.errors import UserError
from tljax.models.heads import Classifier

POOLINGS = {"mean": "pooling_mode_mean_tokens", "cls": "pooling_mode_cls_token"}


def write_layout(folder: Path, head: Any, params: Mapping[str, Any], config: Any) -> None:
    """Everything beside the encoder that `SentenceTransformer(folder).encode` needs to give our logits or embedding.

    Args:
      folder: holds config.json and the weights already.
      head: `Embedding` or `Classifier`.
      params: of the head.
      config: of the family: `hidden_size`, `max_position_embeddings`.

    Raises:
      UserError: the head reads the checkpoint's pooler and normalises, which no class does.
    """
    if head.pool not in POOLINGS:
        raise UserError(
            f"The head {head} cannot be exported: sentence-transformers pools by {', '.join(POOLINGS)}, and "
            "transformers does not normalise what its classifiers read."
        )
    modules = ["Transformer", "Pooling"]
    pooling = {"word_embedding_dimension": config.hidden_size}
    pooling.update({key: name == head.pool for name, key in POOLINGS.items()})
    _write(folder / "1_Pooling" / "config.json", pooling)
    if head.normalize:
        modules.append("Normalize")
        (folder / f"{len(modules) - 1}_Normalize").mkdir()
    if isinstance(head, Classifier):
        modules.append("Dense")
        dense = folder / f"{len(modules) - 1}_Dense"
        _write(
            dense / "config.json",
            {
                "in_features": config.hidden_size,
                "out_features": head.classes,
                "bias": True,
                "activation_function": "torch.nn.modules.linear.Identity",
            },
        )
        kernel, bias = (np.asarray(params["out"][name]) for name in ("kernel", "bias"))
        tensors = {"linear.weight": np.ascontiguousarray(kernel.T), "linear.bias": bias}
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
    _write(folder / "sentence_bert_config.json", {"max_seq_length": config.max_position_embeddings})
    _write(folder / "config_sentence_transformers.json", {"similarity_fn_name": "cosine"})


def _write(path: Path, content: Any) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf8")
