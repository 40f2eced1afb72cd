"""Masked autoencoders against transformers, in value and gradient; the choice of patches; an exported run."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from transformers import ViTMAEConfig, ViTMAEForPreTraining, ViTModel

from tests.methods.test_simclr import TINY_VIT, falls, pretrain
from tests.models.reference import import_weights, make_model, random_norms
from tljax.base.errors import UserError
from tljax.base.paths import flatten
from tljax.base.tables import lookup
from tljax.checkpoints.adapt import output_shapes
from tljax.methods import TABLE, mae
from tljax.methods.mae import decode, sample_visible, sine_positions, visible_count
from tljax.methods.mae import mae as method_of
from tljax.models.forward import forward, init_variables
from tljax.tasks.pretraining import pretraining
from tljax.tasks.spec import TaskSpec

TASK = pretraining(TaskSpec(classes=None, own_pool="mean", pools=("mean",)))
KEY = jax.random.key(0)
DECODER = dict(width=12, depth=2, heads=3)
ENTRIES = {**TINY_VIT, "layer_norm_eps": 1e-6, "initializer_range": 0.3}
MODEL = make_model("vit", {**ENTRIES, "add_pooling_layer": False})
PIXELS = np.random.default_rng(0).normal(size=(3, 8, 8, 3)).astype(np.float32)
BATCH = {"inputs": {"pixel_values": PIXELS}, "weight": np.ones(3, np.float32), "index": np.arange(3)}


def run(params, state, inputs, rng, *, train=True, hidden_states=False):
    return forward(MODEL, {"params": params}, inputs)[0], state


def wing_of(tensors: dict) -> dict:
    """The parameters under `method/` from those of transformers' decoder."""
    x = {name: jnp.asarray(tensor.numpy()) for name, tensor in tensors.items()}
    dense = lambda name: {"kernel": x[f"{name}.weight"].T, "bias": x[f"{name}.bias"]}  # noqa: E731
    norm = lambda name: {"scale": x[f"{name}.weight"], "bias": x[f"{name}.bias"]}  # noqa: E731

    def block(at):
        parts = {"query": "attention.q_proj", "key": "attention.k_proj", "value": "attention.v_proj"}
        parts |= {"output": "attention.o_proj", "up": "mlp.fc1", "down": "mlp.fc2"}
        norms = {"norm1": norm(f"{at}.layernorm_before"), "norm2": norm(f"{at}.layernorm_after")}
        return {**{ours: dense(f"{at}.{theirs}") for ours, theirs in parts.items()}, **norms}

    return {
        "embed": dense("decoder.decoder_embed"),
        "hidden_patch": x["decoder.mask_token"][0, 0],
        **{f"block{i}": block(f"decoder.decoder_layers.{i}") for i in range(DECODER["depth"])},
        "norm": norm("decoder.decoder_norm"),
        "paint": dense("decoder.decoder_pred"),
    }


@pytest.mark.parametrize("norm_pix", [True, False])
def test_loss_and_gradient_equal_the_reference(norm_pix, monkeypatch):
    """transformers' whole model, encoder and decoder, from the same noise."""
    torch.manual_seed(0)
    sizes = dict(decoder_hidden_size=12, decoder_num_hidden_layers=2, decoder_num_attention_heads=3)
    config = ViTMAEConfig(**ENTRIES, **sizes, decoder_intermediate_size=48, norm_pix_loss=norm_pix)
    theirs = ViTMAEForPreTraining(config).eval()
    random_norms(theirs)
    with torch.no_grad():
        theirs.decoder.mask_token.normal_(0, 0.5)
        positions = torch.from_numpy(sine_positions((4, 4), 12))
        theirs.decoder.decoder_pos_embed[:, 1:] = positions  # `post_init` leaves zeros there
    noise = np.random.default_rng(1).random((3, 16)).astype(np.float32)
    wanted = theirs(torch.from_numpy(PIXELS.transpose(0, 3, 1, 2).copy()), noise=torch.from_numpy(noise))
    wanted.loss.backward()

    tensors = {name: tensor.detach() for name, tensor in theirs.state_dict().items()}
    tower = {name.removeprefix("vit."): x for name, x in tensors.items() if name.startswith("vit.")}
    params = {**import_weights(MODEL, tower)["params"], "method": wing_of(tensors)}
    monkeypatch.setattr(mae.jax.random, "uniform", lambda key, shape: jnp.asarray(noise))

    def total(params):
        losses, _, _ = method_of(run, TASK, **DECODER, norm_pix=norm_pix).loss(params, {}, {"train": BATCH}, KEY, 0)
        return losses["reconstruction"].sum / losses["reconstruction"].weight, losses["reconstruction"].weight

    (value, weight), gradient = jax.jit(jax.value_and_grad(total, has_aux=True))(params)
    np.testing.assert_allclose(value, wanted.loss.item(), rtol=1e-5)
    assert weight == 3 * 12
    slopes = {name: leaf.grad for name, leaf in theirs.named_parameters() if leaf.grad is not None}
    zeros = {name: torch.zeros_like(x) for name, x in tensors.items() if name not in slopes}  # fixed positions
    slopes = {**slopes, **zeros}
    tower = {name.removeprefix("vit."): x for name, x in slopes.items() if name.startswith("vit.")}
    expected = flatten({**import_weights(MODEL, tower)["params"], "method": wing_of(slopes)})
    found = flatten(gradient)
    assert found.keys() == expected.keys()
    for path in found.keys() - {"backbone/embed/position"}:
        # The gradient of a key's bias is 0 but for rounding.
        limit = 1e-6 if path.endswith("key/bias") else 1e-4 * np.abs(expected[path]).max()
        assert np.abs(found[path] - expected[path]).max() <= limit, path


def test_positions_are_those_of_the_reference_on_oblong_grids_too():
    from transformers.models.vit_mae.modeling_vit_mae import build_2d_sinusoidal_position_embedding

    theirs = build_2d_sinusoidal_position_embedding(2, 5, 24)
    np.testing.assert_allclose(sine_positions((2, 5), 24), torch.roll(theirs, 12, dims=1), atol=1e-6)


def test_each_image_shows_as_many_patches_evenly():
    visible, hidden = jax.jit(lambda key: sample_visible(key, (4000, 9), 0.6))(KEY)
    assert visible.shape == (4000, 3) and np.all(hidden.sum(axis=1) == 6)
    assert not np.any(np.take_along_axis(np.asarray(hidden), np.asarray(visible), axis=1))
    assert np.abs(hidden.mean(axis=0) - 2 / 3).max() < 0.03
    assert visible_count(10, 0.9) == 1  # and 1 − 0.9 is a little less than 0.1


def test_hidden_pixels_reach_nothing_but_the_loss():
    """What is painted is a function of the visible patches; and an image of weight 0 has no part in the gradient."""
    wing = method_of(run, TASK, **DECODER).init(KEY, output_shapes(MODEL))[0]
    params = {**jax.jit(lambda: init_variables(MODEL, KEY))()["params"], "method": wing}
    visible = jnp.asarray([[0, 5, 10, 15]] * 3)

    @jax.jit
    @jax.grad
    def slopes_of(pixels):
        outputs, _ = run(params, {}, {"pixel_values": pixels, "visible": visible}, KEY)
        return decode(params["method"], outputs["hidden"], visible, (4, 4), heads=3)[0].sum()

    slopes = slopes_of(PIXELS)
    assert not np.any(slopes[1:])
    seen = np.abs(slopes[0]).sum(axis=-1).reshape(4, 2, 4, 2).sum(axis=(1, 3)) > 0
    np.testing.assert_array_equal(seen, np.eye(4, dtype=bool))

    @jax.jit
    @jax.grad
    def gradient(params, pixels):
        batch = {**BATCH, "inputs": {"pixel_values": pixels}, "weight": jnp.asarray([1.0, 1.0, 0.0])}
        losses, _, _ = method_of(run, TASK, **DECODER).loss(params, {}, {"train": batch}, KEY, 0)
        return losses["reconstruction"].sum / losses["reconstruction"].weight

    one, two = gradient(params, PIXELS), gradient(params, PIXELS * np.array([1, 1, 7.0]).reshape(3, 1, 1, 1))
    assert all(map(np.array_equal, jax.tree.leaves(one), jax.tree.leaves(two)))


def test_a_run_learns_and_leaves_a_backbone_for_transformers(tmp_path):
    method = dict(name="mae", width=16, depth=1, heads=2, ratio=0.5)
    records = pretrain(tmp_path, dict(family="vit", variant=TINY_VIT), method, 60)
    assert falls(records, 0.9)
    _, info = ViTModel.from_pretrained(tmp_path / "run" / "export", output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]


def test_what_does_not_fit_is_refused():
    assert lookup(TABLE, "mae", what="method") is method_of
    with pytest.raises(UserError, match=r"depth is 0; (.|\n)*ratio is 1.0; "):
        method_of(run, TASK, depth=0, ratio=1.0)
    with pytest.raises(UserError, match="width is 10; it must be a multiple of 4 and of heads, 5"):
        method_of(run, TASK, width=10, heads=5)
    shapes = output_shapes(make_model("cifar_resnet", {"blocks": 1}))
    with pytest.raises(UserError, match=r"gives out none \(`patches`\), but hidden, .*vit or deit"):
        method_of(run, TASK).init(KEY, shapes)
    with pytest.raises(UserError, match="of 16 patches 0 would be visible"):
        method_of(run, TASK, ratio=0.95).init(KEY, output_shapes(MODEL))
    dots = output_shapes(make_model("vit", {**ENTRIES, "patch_size": 1, "num_channels": 1}))
    with pytest.raises(UserError, match="a patch is one number"):
        method_of(run, TASK).init(KEY, dots)
