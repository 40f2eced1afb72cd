"""The fine-tuning of configs/minilm_wnut17.py in PyTorch: transformers' BertForTokenClassification, a plain loop.

It reads the same batches, in the same order, and is measured by the same code; dropout and the new head draw other
random numbers.
"""

import time

import numpy as np

from experiments.study import HERE


def fine_tune(seed: int = 0) -> dict:
    """A record as of a run, of the checkpoint with the best validation F1."""
    import jax
    import torch
    from transformers import BertForTokenClassification, get_linear_schedule_with_warmup

    from tljax.assembly.experiment import build
    from tljax.assembly.running import evaluation_batches
    from tljax.assembly.training import training_batches
    from tljax.checkpoints.locate import locate
    from tljax.cli.config import load_config
    from tljax.train.evaluate import collect, measure

    started = time.monotonic()
    config = {**load_config(HERE.parent / "configs" / "minilm_wnut17.py"), "seed": seed}
    experiment = build(config)
    torch.manual_seed(seed)
    folder = locate(config["model"]["source"])
    model = BertForTokenClassification.from_pretrained(
        folder, num_labels=experiment.task.head.classes, classifier_dropout=config["task"]["dropout"]
    )
    steps = experiment.settings.total_steps(len(experiment.sources["train"].records))
    interval = experiment.settings.evaluation_interval(len(experiment.sources["train"].records))
    optim = config["optim"]
    leaves = list(model.parameters())
    groups = [
        {"params": [leaf for leaf in leaves if leaf.ndim >= 2], "weight_decay": optim["weight_decay"]},
        {"params": [leaf for leaf in leaves if leaf.ndim < 2], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=optim["learning_rate"])
    schedule = get_linear_schedule_with_warmup(optimizer, round(optim["warmup"] * steps), steps)

    def logits(batch):
        return model(**{name: torch.tensor(np.asarray(x)).long() for name, x in batch["inputs"].items()}).logits

    def evaluate(name: str) -> dict[str, float]:
        model.eval()
        sharding = jax.sharding.SingleDeviceSharding(jax.devices()[0])

        def predict(batch):
            with torch.no_grad():
                return {"label": logits(batch).argmax(-1).numpy(), "words": batch["words"]}

        predictions, targets, _ = collect(predict, evaluation_batches(experiment, name), sharding)
        return measure(experiment.task, predictions, targets, experiment.sources[name].records)[0]

    best, found, batches = -1.0, {}, training_batches(experiment, 0)
    for step in range(1, steps + 1):
        model.train()
        batch = next(batches)["train"]
        wanted = torch.tensor(np.asarray(batch["targets"])).long()
        loss = torch.nn.functional.cross_entropy(logits(batch).flatten(0, 1), wanted.flatten(), ignore_index=-100)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), optim["clip"])
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        if step % interval == 0 or step == steps:
            validation = evaluate("validation")
            if validation["f1"] > best:
                best, found = validation["f1"], {"validation": validation, "test": evaluate("test")}
    return {
        "metrics": found,
        "steps": steps,
        "seconds": round(time.monotonic() - started, 1),
        "live_parameters": sum(leaf.numel() for leaf in model.parameters()),
    }
