"""A tiny SSD as a folder: torchvision's names, and the same bits back."""

import json

import jax
import numpy as np
from safetensors.numpy import load_file

from tests.models.reference import make_model
from tests.models.test_families import TINY_SSD
from tests.models.test_ssd import LABELS, Reference
from tljax.base.paths import flatten
from tljax.checkpoints.load import load_pretrained
from tljax.checkpoints.save import save_pretrained
from tljax.models.forward import init_variables
from tljax.models.ssd import ARCHITECTURE, configure


def test_a_folder_has_torchvision_s_names_and_comes_back(tmp_path):
    model = make_model("ssd", {**TINY_SSD, "num_labels": LABELS}, ARCHITECTURE)
    shapes = jax.eval_shape(lambda: init_variables(model, jax.random.key(0)))
    generator = np.random.default_rng(0)
    variables = jax.tree.map(lambda x: generator.normal(size=x.shape).astype(x.dtype), shapes)
    model = model._replace(source=json.dumps({**TINY_SSD, "model_type": "ssd"}))
    save_pretrained(model, {**variables, "extras": {}}, tmp_path)
    expected = {name: tuple(x.shape) for name, x in Reference(configure(TINY_SSD)).state_dict().items()}
    assert {name: x.shape for name, x in load_file(tmp_path / "model.safetensors").items()} == expected
    back = load_pretrained(tmp_path)
    assert back.model.head.classes == LABELS and back.model.config == model.config
    ours, theirs = flatten(variables["params"]), flatten(back.variables["params"])
    assert set(ours) == set(theirs) and all(np.array_equal(ours[path], theirs[path]) for path in ours)
