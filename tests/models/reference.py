"""Models of the reference libraries, their weights in our trees, and the comparison of their results."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np

from tljax.base.paths import flatten, unflatten
from tljax.base.types import Model
from tljax.models import get_family
from tljax.models.forward import forward, init_variables


def distance(ours, theirs) -> float:
    """max|a − b| / max|b|; our maps are NHWC, torch's NCHW."""
    ours, theirs = np.asarray(ours, np.float64), np.asarray(theirs.detach().numpy(), np.float64)
    theirs = theirs.transpose(0, 2, 3, 1) if theirs.ndim == 4 else theirs
    assert ours.shape == theirs.shape
    return float(np.abs(ours - theirs).max() / np.abs(theirs).max())


def make_model(family_name: str, entries: dict, architecture: str | None = None) -> Model:
    family = get_family(family_name)
    config = family.configure(entries)
    head = family.heads[architecture].head(config, entries) if architecture else None
    return Model(family.name, config, family.backbone(config), head)


@functools.cache
def leaf_shapes(model: Model) -> dict[str, tuple[int, ...]]:
    """Every leaf of the model, by the paths of weight tables."""
    tree = jax.eval_shape(lambda: init_variables(model, jax.random.key(0)))
    params = {path: leaf.shape for path, leaf in flatten(tree["params"]).items()}
    stats = {f"batch_stats:{path}": leaf.shape for path, leaf in flatten(tree["batch_stats"]).items()}
    return {**params, **stats}


def import_weights(model: Model, tensors: dict, *, prefix: str = "", architecture: str | None = None) -> dict:
    """`variables` from torch tensors, through the weight tables; checks that they are a bijection."""
    family = get_family(model.family)
    table = family.table(model.config, prefix)
    rows = (*table.rows, *(family.heads[architecture].rows(model.config) if architecture else ()))
    names = {}
    for name in tensors:
        renamed = name
        for pattern, replacement in table.renames:
            renamed = re.sub(pattern, replacement, renamed)
        names[renamed] = name
    expected = leaf_shapes(model)
    leaves, read = {}, set()
    for entry in rows:
        values = entry.layout.ours(*(tensors[names[t]].detach().numpy() for t in entry.theirs))
        for path, value in zip(entry.ours, values, strict=True):
            assert path not in leaves, f"{path} is filled twice"
            assert value.shape == expected[path], path
            leaves[path] = jnp.asarray(value)
        assert not read & set(entry.theirs), f"{entry.theirs} is read twice"
        read |= set(entry.theirs)
    assert set(leaves) == set(expected)
    for name in set(names) - read:
        assert any(re.fullmatch(pattern, name) for pattern in table.extras), f"{name} is not read"
    params = {path: leaf for path, leaf in leaves.items() if ":" not in path}
    stats = {path.split(":")[1]: leaf for path, leaf in leaves.items() if ":" in path}
    return {"params": unflatten(params), "batch_stats": unflatten(stats)}


def run(model: Model, variables: dict, inputs: dict, **options) -> dict:
    """The outputs with hidden states, compiled as one."""
    function = jax.jit(lambda v, x: forward(model, v, x, hidden_states=True, **options)[0])
    return function(variables, jax.tree.map(jnp.asarray, dict(inputs)))


def random_norms(module) -> None:
    """Gives every norm scales, biases and running statistics that are not the initial ones."""
    import torch

    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for m in module.modules():
            if isinstance(m, torch.nn.LayerNorm | torch.nn.BatchNorm2d):
                m.weight.uniform_(0.5, 1.5, generator=generator)
                m.bias.uniform_(-0.5, 0.5, generator=generator)
            if isinstance(m, torch.nn.BatchNorm2d):
                m.running_mean.uniform_(-0.5, 0.5, generator=generator)
                m.running_var.uniform_(0.5, 2.0, generator=generator)
            if isinstance(m, torch.nn.Linear) and m.bias is not None:
                m.bias.uniform_(-0.2, 0.2, generator=generator)
