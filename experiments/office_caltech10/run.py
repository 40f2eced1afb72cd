"""Office-Caltech10 on bags of SURF words: twelve pairs of domains, methods without deep learning.

`OMP_NUM_THREADS=1 python -m experiments.office_caltech10.run`
"""

import io
import itertools
import sys
import time
from collections.abc import Callable
from functools import cache, partial

import numpy as np

from experiments.office_caltech10.methods import alignment, joint_adaptation, nearest, transfer_components
from experiments.study import Case, Column, Study, main

FOLDER = "office_caltech10_surf"
DOMAINS = {
    "C": ("Caltech10", "4f9334c8ced489d5054de97a5fd51a61f017f3bcd1f38c9a85c6d78cb9d7bda5"),
    "A": ("amazon", "df32548b994e18d364c99e1f317e1fae100597259f0423a41b90f4f68187bb1f"),
    "W": ("webcam", "a6a9c78b4b7181dfbb58bcfd351d4ebd737f171c31247b8884948aa156d3f700"),
    "D": ("dslr", "44d673c68e1d07b837893aa74dba3b986e4a6cc3fd66f0dd357683bdef059216"),
}
"""Letter → (the published file is NAME_SURF_L10.mat, its SHA-256)."""
PAIRS = tuple(itertools.permutations(DOMAINS, 2))
STRENGTHS = tuple(10.0**exponent for exponent in range(-4, 3))
"""Among which cross-validation on the source chooses the C of a support vector machine."""


def prepared(counts: np.ndarray) -> np.ndarray:
    """Counts of words (N, D) → shares of each example, z-scored over the examples; a word that none has becomes 0."""
    shares = counts / counts.sum(axis=1, keepdims=True)
    deviations = shares.std(axis=0)
    return (shares - shares.mean(axis=0)) / np.where(deviations > 0, deviations, 1.0)


@cache
def domains() -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Letter → (prepared examples (N, 800), labels (N,) from 1 to 10), from the data folder TLJAX_DATA.

    Raises:
      UserError: the files are absent or not the published ones.
    """
    from scipy.io import loadmat

    from tljax.base.errors import UserError
    from tljax.data.builders.raw import Raw, place_of, read_files
    from tljax.data.prepare import data_folder

    names = {letter: f"{name}_SURF_L10.mat" for letter, (name, _) in DOMAINS.items()}
    digests = {names[letter]: f"sha256:{digest}" for letter, (_, digest) in DOMAINS.items()}
    raw = Raw(folder=FOLDER, wanted=r"(?:.*/)?(\w+_SURF_L10\.mat)", urls={}, digests=digests)
    place = place_of(raw, data_folder(None))
    if place is None:
        raise UserError(
            f"Put {', '.join(digests)}, the SURF features of Gong et al. 2012, into {FOLDER} in the data folder, and "
            "name that folder in TLJAX_DATA."
        )
    files = read_files(raw, [("", place)])
    found = {letter: loadmat(io.BytesIO(files[name])) for letter, name in names.items()}
    return {letter: (prepared(file["fts"].astype(float)), file["labels"].ravel()) for letter, file in found.items()}


def svm(kernel: np.ndarray, labels: np.ndarray, test: np.ndarray) -> np.ndarray:
    """Guesses (M,) of a support vector machine on kernels (N, N) and (M, N); 5-fold cross-validation chooses its C."""
    from sklearn.model_selection import GridSearchCV, StratifiedKFold
    from sklearn.svm import SVC

    folds = StratifiedKFold(5, shuffle=True, random_state=0)
    search = GridSearchCV(SVC(kernel="precomputed"), {"C": STRENGTHS}, cv=folds)
    return search.fit(kernel, labels).predict(test)


def linear_svm(source: np.ndarray, labels: np.ndarray, target: np.ndarray) -> np.ndarray:
    """As `svm`, on inner products."""
    return svm(source @ source.T, labels, target @ source.T)


def gaussian_svm(source: np.ndarray, labels: np.ndarray, target: np.ndarray) -> np.ndarray:
    """Guesses (M,) of a support vector machine with exp(−‖x − y‖² / D) and C = 100."""
    from sklearn.svm import SVC

    return SVC(C=100, gamma=1 / source.shape[1]).fit(source, labels).predict(target)


def coral_nearest(source: np.ndarray, labels: np.ndarray, target: np.ndarray) -> np.ndarray:
    """The nearest neighbour after CORAL."""
    return nearest(source @ alignment(source, target), labels, target)


def coral_svm(source: np.ndarray, labels: np.ndarray, target: np.ndarray) -> np.ndarray:
    """`linear_svm` after CORAL."""
    return linear_svm(source @ alignment(source, target), labels, target)


def coral_similarities(source: np.ndarray, labels: np.ndarray, target: np.ndarray) -> np.ndarray:
    """`svm` whose kernel is xᵀ A y with CORAL's A, x the source's, for training as for the test: as its authors do.

    Sun et al. do not move both examples of a training pair; the matrix is not symmetric.
    """
    matrix = alignment(source, target)
    return svm(source @ matrix @ source.T, labels, (source @ matrix @ target.T).T)


def tca(source: np.ndarray, labels: np.ndarray, target: np.ndarray, **options: object) -> np.ndarray:
    """The nearest neighbour in the space of `transfer_components`."""
    one, two = transfer_components(source, target, **options)
    return nearest(one, labels, two)


def record(method: Callable[..., np.ndarray]) -> dict:
    """A record: accuracy of `method(source, labels, target)` on each pair, their mean, and seconds of the processor."""
    data = domains()
    started = time.process_time()
    found = {}
    for source, target in PAIRS:
        guesses = method(*data[source], data[target][0])
        found[f"{source} → {target}"] = {"accuracy": float(np.mean(guesses == data[target][1]))}
    found["mean"] = {"accuracy": float(np.mean([numbers["accuracy"] for numbers in found.values()]))}
    seconds = round(time.process_time() - started, 1)
    return {"metrics": found, "steps": 0, "seconds": seconds, "live_parameters": 0}


METHODS = {
    "1-NN": nearest,
    "SVM, linear": linear_svm,
    "SVM, Gaussian kernel": gaussian_svm,
    "CORAL, 1-NN": coral_nearest,
    "CORAL, SVM": coral_svm,
    "CORAL, SVM on xᵀAy": coral_similarities,
    "TCA, K = 100, lengths kept": partial(tca, count=100),
    "TCA, K = 30, unit lengths": partial(tca, count=30, lengths=True),
    "JDA, K = 100, unit lengths": partial(joint_adaptation, count=100),
    "JDA, K = 30, unit lengths": partial(joint_adaptation, count=30),
}
"""Row of the table → (source, its labels, target) → guesses."""

STUDY = Study(
    name="office_caltech10",
    config="",
    cases=tuple(Case(name, compute=partial(record, method)) for name, method in METHODS.items()),
    columns=(
        Column("mean", "mean", "accuracy"),
        *(Column(pair, pair, "accuracy") for pair in (f"{source} → {target}" for source, target in PAIRS)),
    ),
)


if __name__ == "__main__":
    sys.exit(main(STUDY))
