"""Omniglot: handwritten characters of many alphabets, and its one-shot classification task (Lake et al. 2015)."""

from collections.abc import Mapping

import numpy as np
import tensorflow_datasets as tfds

from tljax.base.errors import UserError
from tljax.data.builders.raw import Raw, fetch, make_info

URL = "https://github.com/brendenlake/omniglot/raw/master/python"
SETS = ("background_small1", "background_small2")
COUNTS = {"background_small1": 136, "background_small2": 156}
"""Characters of a set, each drawn by 20 people."""
DRAWERS, RUNS, WAYS = 20, 20, 20
RAW = Raw(
    folder="omniglot",
    wanted=r"(?:.*/)?(images_background_small[12]/.+\.png|run\d\d/(?:training/|test/)?\w+\.(?:png|txt))",
    urls={
        **{f"images_{name}.zip": f"{URL}/images_{name}.zip" for name in SETS},
        "all_runs.zip": f"{URL}/one-shot-classification/all_runs.zip",
    },
)
CONFIGS = [tfds.core.BuilderConfig(name=name) for name in ("background", "runs")]


def characters(files: Mapping[str, bytes], name: str) -> list[tuple[str, str, bytes]]:
    """(character, id, image) of every image of a background set, in the publisher's order."""
    folder = f"images_{name}/"
    found = []
    for path in sorted(path for path in files if path.startswith(folder)):
        alphabet, character, image = path.removeprefix(folder).split("/")
        found.append((f"{alphabet}/{character}", f"{alphabet}/{character}/{image.removesuffix('.png')}", files[path]))
    if len(found) != COUNTS[name] * DRAWERS:
        raise UserError(f"Omniglot's {name} has {COUNTS[name] * DRAWERS} images; found {len(found)}.")
    return found


def run_images(files: Mapping[str, bytes], run: int) -> list[tuple[str, str, int, bytes]]:
    """(id, role, label, image) of a run: its 20 training images, class01 first, and its 20 test images."""
    lines = files.get(f"run{run:02}/class_labels.txt", b"").decode().split("\n")
    answers = dict(line.split() for line in lines if line.strip())
    roles = {**dict.fromkeys(sorted(answers.values()), "support"), **dict.fromkeys(sorted(answers), "query")}
    found = []
    for path, role in roles.items():
        if path not in files:
            raise UserError(f"Omniglot's run {run} names {path}, which is not there.")
        label = int(answers.get(path, path).removesuffix(".png")[-2:]) - 1
        found.append((path.removesuffix(".png"), role, label, files[path]))
    if len(found) != 2 * WAYS or {label for _, _, label, _ in found} != set(range(WAYS)):
        raise UserError(f"Omniglot's run {run} has {WAYS} classes with a training and a test image each; it does not.")
    return found


class Omniglot(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """The two minimal sets to learn from (config `background`) and the 20 official runs to test on (config `runs`).

    Images are 105 × 105, black on white. A minimal set is a split: five alphabets, of 136 and 156 characters (Greek and
    Latin are in both), 20 drawings of each. A run is a one-shot classification among 20 characters of a new alphabet:
    a training image (`role` support) and a test image (query) of each, labelled within the run (`episode`).
    """

    name = "omniglot"
    VERSION = tfds.core.Version("1.0.0")
    BUILDER_CONFIGS = CONFIGS
    MANUAL_DOWNLOAD_INSTRUCTIONS = f"Put {', '.join(RAW.urls)} into {RAW.folder}."
    RAW = RAW

    def _info(self) -> tfds.core.DatasetInfo:
        features = {
            "image": tfds.features.Image(shape=(105, 105, 1), encoding_format="png"),
            "id": tfds.features.Text(),
        }
        if self.builder_config.name == "runs":
            features.update(label=tfds.features.Scalar(np.int64), episode=tfds.features.Scalar(np.int64))
            features["role"] = tfds.features.Text()
        else:
            features["label"] = tfds.features.ClassLabel()
        return make_info(
            self,
            features=features,
            description=__doc__,
            homepage="https://github.com/brendenlake/omniglot",
            licence="MIT",
            citation="B. M. Lake, R. Salakhutdinov, J. B. Tenenbaum. Human-level concept learning through "
            "probabilistic program induction. Science 2015.",
        )

    def _split_generators(self, dl_manager):
        files = fetch(RAW, dl_manager)
        if self.builder_config.name == "runs":
            return {"runs": self._generate_runs({run: run_images(files, run) for run in range(1, RUNS + 1)})}
        sets = {name: characters(files, name) for name in SETS}
        self.info.features["label"].names = sorted({character for found in sets.values() for character, _, _ in found})
        return {name: self._generate_examples(found) for name, found in sets.items()}

    def _generate_examples(self, found: list[tuple[str, str, bytes]]):
        for character, key, image in found:
            yield key, {"image": image, "label": character, "id": key}

    def _generate_runs(self, runs: Mapping[int, list[tuple[str, str, int, bytes]]]):
        for run, images in runs.items():
            for key, role, label, image in images:
                yield key, {"image": image, "label": label, "episode": run, "role": role, "id": key}
