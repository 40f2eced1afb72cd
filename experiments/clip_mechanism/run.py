"""CLIP's mechanism on handwritten digits. `python -m experiments.clip_mechanism.run`

Each seed trains two towers, exports them, and evaluates prompts on the export: see README.md.
"""

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from configs.clip_mechanism import NAMES, TEMPLATES, captions
from experiments.study import HERE, Case, Column, Study, folder_of, keep, measured, read, record_of, write_table

WORDS = {str(digit): name for digit, name in enumerate(NAMES)}
NEW = ("an image showing {}.", "this is {}.", "{}")
TRAINING = "two towers, contrastive"
RANDOM = "two towers, not trained, all 5 templates"
IMAGES = "image tower, supervised"
SPLITS = ("test", "usps")


def written(templates: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """Digit → its prompts by these templates."""
    return {digit: tuple(t.format(word) for t in templates) for digit, word in WORDS.items()}


PROMPTS = {
    "zero-shot, 1 template seen with the digit": {digit: texts[:1] for digit, texts in captions().items()},
    "zero-shot, 4 templates seen with the digit": captions(),
    "zero-shot, the template withheld from the digit": captions(withheld=True),
    "zero-shot, all 5 templates": written(TEMPLATES),
    "zero-shot, 1 template never seen": written(NEW[:1]),
    "zero-shot, 3 templates never seen": written(NEW),
}
"""Row of the table → digit → its prompts."""

STUDY = Study(
    name="clip_mechanism",
    config="configs/clip_mechanism.py",
    cases=(Case(TRAINING), *map(Case, PROMPTS), Case(RANDOM), Case(IMAGES)),
    columns=(
        Column("MNIST test accuracy", "test", "accuracy"),
        Column("USPS test accuracy", "usps", "accuracy"),
        Column("caption for the image, recall@1", "test", "image_to_text_recall_at_1"),
        Column("image for the caption, recall@1", "test", "text_to_image_recall_at_1"),
        Column("reciprocal rank of the caption", "test", "image_to_text_mean_reciprocal_rank", percent=False, digits=3),
    ),
)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs all cases, writes records.json and the table; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=STUDY.seeds)
    parser.add_argument("--workdir", type=Path, default=Path("runs") / STUDY.name)
    parser.add_argument("--table", action="store_true", help="only write the table of the committed records")
    options = parser.parse_args(argv)
    for seed in range(0 if options.table else options.seeds):
        folder = folder_of(options.workdir, TRAINING, seed)
        code = launch("train", folder, {"seed": seed})
        if not code and not (folder / "export").is_dir():
            code = launch("export", folder)
        if code:
            return code
        keep(STUDY, record_of(Case(TRAINING), seed, folder))
        zero_shot(seed, {"source": str(folder / "export")}, PROMPTS)
        zero_shot(seed, None, {RANDOM: written(TEMPLATES)})
    for seed in range(0 if options.table else options.seeds):
        folder = folder_of(options.workdir, IMAGES, seed)
        if code := launch("train", folder, {"seed": seed, "task": {"name": "classification", "pool": "pooled"}}):
            return code
        keep(STUDY, record_of(Case(IMAGES), seed, folder))
    table = measured(STUDY, read(STUDY))
    write_table(HERE / STUDY.name / "README.md", table)
    print(table)
    return 0


def launch(verb: str, folder: Path, values: Mapping[str, Any] | None = None) -> int:
    """`launch.py`, in this process."""
    from tljax.cli.main import main as start

    config = [f"--config={STUDY.config}"] if values is not None else []
    given = [f"--config.{key}={value!r}" for key, value in (values or {}).items()]
    return start([verb, *config, f"--workdir={folder}", *given])


def zero_shot(seed: int, model: Mapping[str, Any] | None, cases: Mapping[str, Mapping[str, Sequence[str]]]) -> None:
    """Measures each case's prompts; the images run through their tower once for all cases.

    Args:
      seed: of the records, and of the weights where `model` is None.
      model: the section of the config that loads the towers; None leaves them as they start.
      cases: name → digit → prompts.
    """
    import jax

    from tljax import metrics
    from tljax.assembly.experiment import build
    from tljax.assembly.running import evaluation_batches, placed
    from tljax.cli.config import load_config
    from tljax.models.forward import forward
    from tljax.sharding import batch_sharding
    from tljax.tasks.zero_shot import class_vectors
    from tljax.train.evaluate import collect

    config = {**load_config(Path(STUDY.config)), "seed": seed, "task": {"name": "zero_shot", "prompts": captions()}}
    if model is not None:
        config |= {"model": dict(model), "strategy": {"fine_tune": {}}}
    experiment = build(config)
    bare = experiment.model._replace(head=None)

    @jax.jit
    def embed(params, batch_stats, batch):
        outputs, _ = forward(bare, {"params": params, "batch_stats": batch_stats}, batch["inputs"])
        return {"image_embeds": outputs["image_embeds"]}

    state = placed(experiment)
    images = {
        split: collect(
            lambda batch: embed(*state, batch), evaluation_batches(experiment, split), batch_sharding(experiment.mesh)
        )
        for split in SPLITS
    }
    for name, prompts in cases.items():
        texts = [prompts[digit] for digit in experiment.sources["test"].classes]
        vectors = class_vectors(bare, experiment.variables, experiment.readers["test"], texts)
        found = {}
        for split, (predictions, labels, _) in images.items():
            guesses = (predictions["image_embeds"] @ vectors.T).argmax(axis=1)
            numbers = metrics.classification(labels, guesses, None, list(WORDS))
            found[split] = {key: numbers[key] for key in ("accuracy", "macro_f1")}
        nothing = {"steps": 0, "seconds": 0.0, "live_parameters": 0}
        keep(STUDY, {"case": name, "seed": seed, "metrics": found, **nothing})


if __name__ == "__main__":
    sys.exit(main())
