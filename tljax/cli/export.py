"""`export`: the trained model in the format that its checkpoint came in, with its model card."""

from pathlib import Path

from tljax.cli.common import build_experiment, chosen_variables, need_workdir
from tljax.cli.main import Arguments


def run(arguments: Arguments) -> int:
    """Writes the run's best checkpoint as a folder that the reference library loads; of `--adapter`, peft."""
    workdir = need_workdir(arguments)
    experiment = build_experiment(arguments)
    from tljax.checkpoints.save import save_pretrained
    from tljax.tasks.several import with_one_head
    from tljax.train.display import Display

    display = Display()
    variables, step = chosen_variables(experiment, workdir, display.say)
    alone = arguments.options.adapter
    folder = Path(arguments.options.output or workdir / ("adapter" if alone else "export"))
    model, classes, processor = experiment.model, experiment.classes, next(iter(experiment.readers.values()), None)
    parts = tuple(experiment.task.parts)
    if kept := arguments.options.head or (parts[0] if len(parts) == 1 else None):
        model, variables = with_one_head(model, variables, kept)
        name = next(name for name, entry in experiment.entries.items() if entry.task == kept)
        classes, processor = experiment.sources[name].classes, experiment.readers[name]
    origin = "as loaded" if step is None else f"of step {step}"
    if held := experiment.plan.quantized:
        kind = next(iter(held.values())).kind
        display.say(
            f"the run held kernels in {kind}: the adapter is made for these, and nearly fits the checkpoint's own"
            if alone
            else f"the run held kernels in {kind}: they are exported as the run used them, not as they were loaded"
        )
    if alone:
        whole = _save_adapter(model, variables, folder, experiment.config)
        _write_card(folder, workdir, experiment.config, f"the adapter {origin}")
        display.say(
            f"exported the adapter {origin} to {folder}{'' if whole else ', without the head, which has no class'}"
        )
        return 0
    save_pretrained(model, variables, folder, processor=processor, classes=classes)
    _write_card(folder, workdir, experiment.config, f"the checkpoint {origin}")
    display.say(f"exported the model {origin} to {folder}")
    return 0


def _write_card(folder: Path, workdir: Path, config: dict, origin: str) -> None:
    from tljax.checkpoints.locate import locate
    from tljax.reports.card import write_card

    source = (config.get("model") or {}).get("source")
    write_card(folder, workdir, config, base=locate(source) if source else None, origin=origin)


def _save_adapter(model, variables, folder: Path, config: dict) -> bool:
    """Whether the head is in it, too: one that no class of transformers computes cannot be."""
    from tljax.checkpoints.peft_format import save_adapter
    from tljax.checkpoints.save import format_of

    whole = format_of(model) is not None
    rslora = bool(((config.get("strategy") or {}).get("lora") or {}).get("rslora"))
    base = str((config.get("model") or {}).get("source") or "")
    save_adapter(folder, model if whole else model._replace(head=None), variables, base=base, rslora=rslora)
    return whole
