"""Adapter folders: what we write loads in peft and computes the same; what peft writes loads here, likewise."""

import json

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from tests.tiny import save_tiny_bert
from tljax.base.errors import UserError
from tljax.base.paths import flatten, sibling, unflatten
from tljax.checkpoints.load import load_pretrained
from tljax.checkpoints.peft_format import load_adapter, save_adapter
from tljax.models.forward import forward
from tljax.strategies.bottleneck import bottleneck
from tljax.strategies.ia3 import ia3
from tljax.strategies.lora import lora

# peft 0.21 asks for what transformers 5.23 calls by another name.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")

IDS = np.array([[2, 7, 9, 11, 3], [2, 5, 6, 3, 0]])
MASK = (IDS > 0).astype(np.int64)
TARGETS = ["query", "value", "words", "backbone/block0/mlp/down/kernel"]
KINDS = {
    "lora": lambda paths: lora((), paths, rank=2, alpha=3.0, targets=TARGETS),
    "rslora": lambda paths: lora((), paths, rank=3, alpha=1.0, targets=TARGETS, rslora=True),
    "dora": lambda paths: lora((), paths, rank=2, alpha=5.0, targets=TARGETS, dora=True),
    "ia3": lambda paths: ia3((), paths),
}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A tiny BERT for sequence classification."""
    from transformers import BertConfig, BertForSequenceClassification

    folder = save_tiny_bert(tmp_path_factory.mktemp("peft") / "bert")
    config = BertConfig.from_pretrained(folder, num_labels=3, initializer_range=0.3)
    BertForSequenceClassification(config).eval().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def peft():
    """The library, which takes seconds to import."""
    import peft

    return peft


@pytest.fixture(scope="module")
def ours(checkpoint):
    return load_pretrained(str(checkpoint))


def with_adapters(variables, plan):
    """The leaves of `plan`, all but the scale moved to random values."""
    flat, generator = flatten(variables["params"]), np.random.default_rng(0)
    made = {}
    for path, adapters in plan.adapters.items():
        for name, leaf in adapters[0].init(jax.random.key(0), flat[path]).items():
            moved = 0 if name == "lora/scale" else generator.normal(0, 0.3, leaf.shape)
            made[sibling(path, name)] = np.asarray(leaf + moved, np.float32)
    return {**variables, "params": unflatten({**flat, **made})}


def run_ours(model, variables):
    inputs = {"input_ids": IDS, "attention_mask": MASK}
    return np.asarray(forward(model, variables, inputs)[0]["logits"])


def run_theirs(model):
    import torch

    with torch.no_grad():
        return model.eval()(torch.tensor(IDS), attention_mask=torch.tensor(MASK)).logits.numpy()


def base_model(checkpoint):
    from transformers import BertForSequenceClassification

    return BertForSequenceClassification.from_pretrained(checkpoint).eval()


@pytest.mark.parametrize("kind", KINDS)
def test_a_folder_of_ours_loads_in_peft_and_comes_back(kind, checkpoint, ours, peft, tmp_path):
    plan = KINDS[kind](tuple(flatten(ours.variables["params"])))
    variables = with_adapters(ours.variables, plan)
    variables["params"]["head"] = jax.tree.map(lambda leaf: leaf + 0.1, variables["params"]["head"])
    folder = save_adapter(tmp_path / "adapter", ours.model, variables, base=str(checkpoint), rslora=kind == "rslora")
    entries = json.loads((folder / "adapter_config.json").read_text())
    if kind != "ia3":
        assert (entries["r"], entries["use_rslora"], entries["use_dora"]) == (
            3 if kind == "rslora" else 2,
            kind == "rslora",
            kind == "dora",
        )
        assert entries["lora_alpha"] == {"lora": 3.0, "rslora": 1.0, "dora": 5.0}[kind]
    theirs = peft.PeftModel.from_pretrained(base_model(checkpoint), folder)
    found = run_ours(ours.model, variables)
    assert np.abs(found - run_ours(ours.model, ours.variables)).max() > 0.1
    np.testing.assert_allclose(found, run_theirs(theirs), atol=1e-5)
    back = flatten(load_adapter(folder, ours.model, ours.variables)["params"])
    expected = flatten(variables["params"])
    assert back.keys() == expected.keys()
    for path, leaf in expected.items():
        np.testing.assert_allclose(back[path], leaf, rtol=1e-6, err_msg=path)


@pytest.mark.parametrize("kind", ["lora", "dora", "ia3"])
def test_a_folder_of_peft_loads_here(kind, checkpoint, ours, peft, tmp_path):
    import torch

    torch.manual_seed(1)
    if kind == "ia3":
        config = peft.IA3Config(target_modules=["key", "value", "intermediate.dense"], feedforward_modules=["key"])
    else:
        config = peft.LoraConfig(
            r=4,
            lora_alpha=6,
            target_modules=["query", "output.dense", "pooler.dense"],
            rank_pattern={"query": 2},
            alpha_pattern={"layer.1.attention.self.query": 5},
            use_rslora=True,
            use_dora=kind == "dora",
            modules_to_save=["classifier"],
        )
    theirs = peft.get_peft_model(base_model(checkpoint), config)
    with torch.no_grad():
        for leaf in theirs.parameters():
            if leaf.requires_grad:
                leaf.add_(torch.randn_like(leaf) * 0.3)
    theirs.save_pretrained(tmp_path)
    variables = load_adapter(tmp_path, ours.model, ours.variables)
    found = run_ours(ours.model, variables)
    assert np.abs(found - run_ours(ours.model, ours.variables)).max() > 0.1
    np.testing.assert_allclose(found, run_theirs(theirs), atol=1e-5)


def test_what_peft_cannot_hold_is_refused_by_name(ours, tmp_path):
    paths = tuple(flatten(ours.variables["params"]))
    faults = {
        "no adapters": ours.variables,
        "peft has no bottleneck": with_adapters(ours.variables, bottleneck((), paths)),
        "lora and ia3 together": with_adapters(
            with_adapters(ours.variables, lora((), paths)), ia3((), paths, targets="key", inputs=())
        ),
        "factors on inputs and outputs": with_adapters(ours.variables, ia3((), paths, targets="up", inputs="up")),
    }
    for message, variables in faults.items():
        with pytest.raises(UserError, match=message):
            save_adapter(tmp_path / "out", ours.model, variables)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match="holds no adapter"):
        save_adapter(tmp_path / "other", ours.model, with_adapters(ours.variables, lora((), paths)))


def test_a_fused_module_is_refused_by_name():
    from tljax.checkpoints.peft_format import spots
    from tljax.models import get_family

    family = get_family("gpt2")
    found = spots(family, family.configure({"n_layer": 1, "n_embd": 8, "n_head": 2}), "")
    assert found["h.0.mlp.c_proj"].turned and "h.0.attn.c_attn" not in found


def test_folders_that_do_not_fit_are_refused_by_name(ours, tmp_path):
    paths = tuple(flatten(ours.variables["params"]))
    variables = with_adapters(ours.variables, lora((), paths, rank=2))
    headless = ours.model._replace(head=None)
    folder = save_adapter(tmp_path / "adapter", ours.model, variables)
    with pytest.raises(UserError, match=r"classifier.bias is of no part of the model; head=False"):
        load_adapter(folder, headless, ours.variables)
    load_adapter(folder, headless, ours.variables, head=False)
    config = json.loads((folder / "adapter_config.json").read_text())
    for entry, message in (
        ({"peft_type": "LOHA"}, "peft_type is 'LOHA'"),
        ({"init_lora_weights": "pissa"}, "changes the kernels of the base"),
    ):
        (folder / "adapter_config.json").write_text(json.dumps({**config, **entry}))
        with pytest.raises(UserError, match=message):
            load_adapter(folder, ours.model, ours.variables)
    (folder / "adapter_config.json").write_text(json.dumps(config))
    tensors = load_file(folder / "adapter_model.safetensors")
    name = "base_model.model.bert.encoder.layer.0.attention.self.query.lora_A.weight"
    for changed, message in (
        ({name: tensors[name][:, :5]}, r"query/lora/a has the shape \(5, 2\), and \(16, 2\) is needed"),
        ({name.replace("query", "qury"): tensors[name]}, "bert has no such kernel. Did you mean .*self.query"),
    ):
        save_file({**tensors, **changed}, folder / "adapter_model.safetensors")
        with pytest.raises(UserError, match=message):
            load_adapter(folder, ours.model, ours.variables)
    with pytest.raises(UserError, match="holds no adapter of peft"):
        load_adapter(tmp_path, ours.model, ours.variables)
