"""Which SciPy module does this docstring describe? The first paragraphs of the installed SciPy's public docstrings."""

import importlib
import inspect
import re
import types
import warnings
from collections.abc import Iterator

import tensorflow_datasets as tfds

from tljax.data.builders.raw import make_info

CLASSES = ("stats", "signal", "linalg", "optimize", "special", "interpolate", "ndimage", "sparse")
SIGNATURE = re.compile(r"[\w.\[\], =]*\(.*\)(\s*->.*)?", re.DOTALL)
NAMES_A_MODULE = re.compile(rf"\bscipy\.({'|'.join(CLASSES)})\b")


def first_paragraph(docstring: str) -> str:
    """The first paragraph that is not a signature, on one line; "" where there is none."""
    for paragraph in re.split(r"\n\s*\n", inspect.cleandoc(docstring)):
        text = " ".join(paragraph.split())
        if text and not SIGNATURE.fullmatch(text):
            return text
    return ""


def public_objects(module: types.ModuleType, seen: set[str]) -> Iterator[tuple[str, object]]:
    """(qualified name, callable) of everything public in `module` and in its public submodules, by name."""
    for name in sorted(n for n in dir(module) if not n.startswith("_")):
        with warnings.catch_warnings(action="ignore"):  # names that SciPy has deprecated
            thing = getattr(module, name, None)
        if inspect.ismodule(thing):
            if thing.__name__.startswith(f"{module.__name__}.") and thing.__name__ not in seen:
                seen.add(thing.__name__)
                yield from public_objects(thing, seen)
        elif callable(thing) and isinstance(thing.__doc__, str):
            yield f"{module.__name__}.{name}", thing


def paragraphs() -> dict[str, tuple[str, str]]:
    """text → (module, qualified name of the first object that has it).

    Equal texts are kept once. A text that two modules share has no answer, and one that names a module gives it
    away: both are left out.
    """
    found: dict[str, tuple[str, str]] = {}
    shared = set()
    for label in CLASSES:
        module = importlib.import_module(f"scipy.{label}")
        for name, thing in public_objects(module, {module.__name__}):
            text = first_paragraph(thing.__doc__)
            if text and not NAMES_A_MODULE.search(text) and found.setdefault(text, (label, name))[0] != label:
                shared.add(text)
    return {text: where for text, where in found.items() if text not in shared}


class ScipyDocs(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """About 2080 short texts, 8 classes; four in ten are linalg, the wrappers of BLAS and LAPACK.

    One split, `train` (in TFDS `all` is every split).
    """

    name = "scipy_docs"
    VERSION = tfds.core.Version("1.0.0")
    PACKAGE = "scipy"

    def _info(self) -> tfds.core.DatasetInfo:
        return make_info(
            self,
            features={
                "text": tfds.features.Text(),
                "label": tfds.features.ClassLabel(names=CLASSES),
                "id": tfds.features.Text(),
            },
            description=__doc__,
            homepage="https://docs.scipy.org/doc/scipy/reference/",
            licence="BSD-3-Clause",
            citation="P. Virtanen et al. SciPy 1.0: fundamental algorithms for scientific computing. 2020.",
        )

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples()}

    def _generate_examples(self):
        for i, (text, (label, name)) in enumerate(paragraphs().items()):
            yield i, {"text": text, "label": label, "id": name}
