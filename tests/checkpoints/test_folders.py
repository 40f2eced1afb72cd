"""What an exported folder says about itself, what it takes the place of, and how odd folders are read."""

import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers
from safetensors.numpy import load_file

from tests.models.test_families import TINY
from tests.tiny import TINY_BERT, save_tiny_bert
from tljax.base.errors import UserError
from tljax.base.types import Model
from tljax.checkpoints.load import load_pretrained
from tljax.checkpoints.save import save_pretrained
from tljax.models import FAMILIES, get_family
from tljax.models.forward import forward, init_variables
from tljax.models.heads import Classifier, Embedding

IDS = np.array([[2, 5, 6, 7, 3], [2, 8, 3, 9, 1]])


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_tiny_bert(tmp_path_factory.mktemp("tiny") / "bert")


def _with_head(pretrained, head):
    model = pretrained.model._replace(head=head)
    params = {"backbone": pretrained.variables["params"]["backbone"]}
    made = init_variables(model, jax.random.key(3))["params"].get("head")
    return model, {**pretrained.variables, "params": {**params, **({"head": made} if made else {})}}


def _config(folder):
    return json.loads((folder / "config.json").read_text())


def _equal(one, two):
    assert jax.tree.structure(one) == jax.tree.structure(two)
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(two), strict=True):
        np.testing.assert_array_equal(a, b)


LEFT_OUT = {"clip": {"logit_scale"}}
"""What belongs to a head, which the class of the bare model in the reference has all the same."""

KNOWN = tuple(name for name in FAMILIES if name in transformers.models.auto.configuration_auto.CONFIG_MAPPING)


@pytest.mark.parametrize("name", (*KNOWN, "cifar_resnet"))
def test_a_model_without_a_checkpoint_goes_out_with_its_whole_config(name, tmp_path):
    family = get_family(name)
    config = family.configure(TINY[name])
    model = Model(family=name, config=config, backbone=family.backbone(config))
    variables = {**jax.jit(init_variables, static_argnums=0)(model, jax.random.key(0)), "extras": {}}
    save_pretrained(model, variables, tmp_path / "out")
    again = load_pretrained(tmp_path / "out")
    assert again.model.config == config
    _equal(again.variables["params"], variables["params"])
    _equal(again.variables["batch_stats"], variables["batch_stats"])
    if name in KNOWN:
        cls = getattr(transformers, _config(tmp_path / "out")["architectures"][0])
        _, info = cls.from_pretrained(tmp_path / "out", output_loading_info=True)
        assert set(info["missing_keys"]) <= LEFT_OUT.get(name, set())
        assert not info["unexpected_keys"] and not info["mismatched_keys"]


def test_names_of_labels_survive_and_can_be_given(tmp_path):
    torch.manual_seed(0)
    names = {0: "sad", 1: "glad"}
    config = transformers.BertConfig(**TINY_BERT, id2label=names, label2id={v: k for k, v in names.items()})
    transformers.BertForSequenceClassification(config).save_pretrained(tmp_path / "in")
    pretrained = load_pretrained(tmp_path / "in")
    save_pretrained(pretrained.model, pretrained.variables, tmp_path / "out")
    assert _config(tmp_path / "out")["id2label"] == {"0": "sad", "1": "glad"}
    save_pretrained(pretrained.model, pretrained.variables, tmp_path / "out", classes=("no", "yes"))
    assert _config(tmp_path / "out")["label2id"] == {"no": 0, "yes": 1}


def test_a_head_of_ours_replaces_the_checkpoints_and_takes_its_leftovers_away(tmp_path):
    torch.manual_seed(0)
    transformers.BertForPreTraining(transformers.BertConfig(**TINY_BERT)).save_pretrained(tmp_path / "in")
    pretrained = load_pretrained(tmp_path / "in")
    save_pretrained(*_with_head(pretrained, Classifier(2, pool="pooled")), tmp_path / "out")
    assert not any(name.startswith("cls.") for name in load_file(tmp_path / "out" / "model.safetensors"))
    save_pretrained(*_with_head(pretrained, None), tmp_path / "bare")
    assert _config(tmp_path / "bare")["architectures"] == ["BertForPreTraining"]


def test_a_dropped_head_leaves_the_bare_class(tmp_path):
    torch.manual_seed(0)
    transformers.BertForSequenceClassification(transformers.BertConfig(**TINY_BERT)).save_pretrained(tmp_path / "in")
    pretrained = load_pretrained(tmp_path / "in")
    save_pretrained(*_with_head(pretrained, None), tmp_path / "out")
    assert _config(tmp_path / "out")["architectures"] == ["BertModel"]
    _, info = transformers.AutoModel.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    assert load_pretrained(tmp_path / "out").model.head is None


def test_leaves_that_training_widened_are_loaded_wide(folder, tmp_path):
    pretrained = load_pretrained(folder, dtype="bfloat16")
    save_pretrained(pretrained.model, pretrained.variables, tmp_path / "narrow")
    assert transformers.AutoModel.from_pretrained(tmp_path / "narrow").dtype == torch.bfloat16
    model, variables = _with_head(pretrained, Classifier(2, pool="pooled", start="normal"))
    variables["params"]["head"] = jax.tree.map(lambda x: x.astype(jnp.float32), variables["params"]["head"])
    save_pretrained(model, variables, tmp_path / "out")
    reference = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "out")
    kernel = variables["params"]["head"]["out"]["kernel"]
    np.testing.assert_array_equal(reference.classifier.weight.detach().numpy().T, kernel)


def test_extras_in_another_order_keep_their_values(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "in")
    tensors = {name: torch.tensor(x) for name, x in load_file(folder / "model.safetensors").items()}
    tensors["cls.predictions.weight"] = torch.arange(12.0).reshape(3, 4).t()
    torch.save(tensors, tmp_path / "in" / "pytorch_model.bin")
    (tmp_path / "in" / "model.safetensors").unlink()
    pretrained = load_pretrained(tmp_path / "in")
    save_pretrained(pretrained.model, pretrained.variables, tmp_path / "out")
    found = load_file(tmp_path / "out" / "model.safetensors")["cls.predictions.weight"]
    np.testing.assert_array_equal(found, tensors["cls.predictions.weight"])


@pytest.mark.parametrize("normalize", [False, True])
def test_a_mean_pooled_classifier_comes_back_as_it_went(folder, tmp_path, normalize):
    pretrained = load_pretrained(folder)
    model, variables = _with_head(pretrained, Classifier(3, pool="mean", normalize=normalize, start="normal"))
    processor = pretrained.processor.replace(max_length=7)
    save_pretrained(model, variables, tmp_path / "out", processor=processor, classes=("a", "b", "c"))
    assert json.loads((tmp_path / "out" / "sentence_bert_config.json").read_text())["max_seq_length"] == 7
    assert _config(tmp_path / "out")["id2label"] == {"0": "a", "1": "b", "2": "c"}
    again = load_pretrained(tmp_path / "out")
    assert again.model.head == model.head and again.processor.max_length == 7
    one, two = (forward(m, v, {"input_ids": IDS})[0]["logits"] for m, v, *_ in ((model, variables), again))
    np.testing.assert_array_equal(one, two)


def test_texts_longer_than_the_processor_takes_are_cut_alike(folder, tmp_path):
    from sentence_transformers import SentenceTransformer

    pretrained = load_pretrained(folder)
    model, variables = _with_head(pretrained, Embedding())
    processor = pretrained.processor.replace(max_length=5)
    save_pretrained(model, variables, tmp_path / "out", processor=processor)
    text = "red warm green cold sharp new blue old"
    theirs = SentenceTransformer(str(tmp_path / "out"), device="cpu").encode([text])
    inputs = processor.collate([processor.example({"text": text, "id": 0})])
    ours = np.asarray(forward(model, variables, inputs)[0]["embedding"])
    assert np.abs(ours - theirs).max() / np.abs(theirs).max() < 1e-5


def test_an_export_replaces_a_model_and_nothing_else(folder, tmp_path):
    pretrained = load_pretrained(folder)
    out = tmp_path / "out"
    save_pretrained(*_with_head(pretrained, Classifier(3, pool="mean")), out, processor=pretrained.processor)
    (out / "README.md").write_text("mine")
    save_pretrained(pretrained.model, pretrained.variables, out)
    assert (out / "README.md").read_text() == "mine" and (out / "tokenizer.json").is_file()
    assert not (out / "modules.json").exists() and not list(out.glob("*_Dense"))
    assert [p.name for p in tmp_path.iterdir()] == ["out"]
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.png").write_bytes(b"")
    with pytest.raises(UserError, match="holds no model"):
        save_pretrained(pretrained.model, pretrained.variables, tmp_path / "photos")
    assert (tmp_path / "photos" / "a.png").is_file()


def test_a_file_is_read_with_the_config_beside_it(folder):
    whole, file = load_pretrained(folder), load_pretrained(folder / "model.safetensors")
    assert file.model == whole.model and file.processor is not None
    _equal(file.variables, whole.variables)


def test_a_head_that_is_half_there_is_a_fault(tmp_path):
    torch.manual_seed(0)
    model = transformers.BertForSequenceClassification(transformers.BertConfig(**TINY_BERT))
    model.save_pretrained(tmp_path / "in")
    tensors = load_file(tmp_path / "in" / "model.safetensors")
    del tensors["classifier.bias"], tensors["bert.pooler.dense.bias"]
    np.savez(tmp_path / "in" / "model.npz", **tensors)
    (tmp_path / "in" / "model.safetensors").unlink()
    with pytest.raises(UserError) as caught:
        load_pretrained(tmp_path / "in")
    for name in ("classifier.bias", "bert.pooler.dense.bias"):
        assert f"{name} is missing" in str(caught.value)


def test_wide_floats_are_never_narrowed_silently(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "in")
    tensors = {n: torch.tensor(x).double() for n, x in load_file(folder / "model.safetensors").items()}
    torch.save(tensors, tmp_path / "in" / "pytorch_model.bin")
    (tmp_path / "in" / "model.safetensors").unlink()
    with pytest.raises(UserError, match=r"stored as float64.*(.|\n)*word_embeddings"):
        load_pretrained(tmp_path / "in")
    _equal(load_pretrained(tmp_path / "in", dtype="float32").variables, load_pretrained(folder).variables)


def test_values_that_the_asked_dtype_cannot_hold_are_an_error(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "in")
    tensors = {n: torch.tensor(x) for n, x in load_file(folder / "model.safetensors").items()}
    tensors["pooler.dense.bias"][0] = 1e6
    torch.save(tensors, tmp_path / "in" / "pytorch_model.bin")
    (tmp_path / "in" / "model.safetensors").unlink()
    with pytest.raises(UserError, match="backbone/pooler/dense/bias holds values that float16 cannot hold"):
        load_pretrained(tmp_path / "in", dtype="float16")


@pytest.mark.parametrize(("dtype", "message"), [("bloat16", "Did you mean 'bfloat16'"), ("int8", "are floating")])
def test_a_dtype_that_is_none_is_said_to_be_none(folder, dtype, message):
    with pytest.raises(UserError, match=message):
        load_pretrained(folder, dtype=dtype)


def test_a_digest_of_an_index_says_nothing_about_shards(folder, tmp_path, monkeypatch):
    from tljax.checkpoints import save

    monkeypatch.setattr(save, "SHARD_BYTES", 4000)
    pretrained = load_pretrained(folder)
    save_pretrained(pretrained.model, pretrained.variables, tmp_path / "out")
    with pytest.raises(UserError, match="sha256 speaks of one file"):
        load_pretrained(tmp_path / "out", sha256="00")


@pytest.mark.parametrize("offset", [0, 16])
@pytest.mark.parametrize("transposed", [False, True])
def test_a_leaf_shares_no_memory_with_the_file(tmp_path, offset, transposed):
    from tljax.checkpoints.load import _placer

    (tmp_path / "file").write_bytes(bytes(4096 + offset))
    array = np.memmap(tmp_path / "file", np.float32, "r", offset, (16, 64))
    array = array.T if transposed else array
    leaf = _placer(get_family("bert"), {}, None, None, False)("backbone/a", np.asarray(array))
    assert leaf.shape == array.shape and not np.shares_memory(np.asarray(leaf), array)
    with (tmp_path / "file").open("r+b") as file:
        file.write(b"\x01" * (4096 + offset))
    assert array.any() and not np.asarray(leaf).any()
