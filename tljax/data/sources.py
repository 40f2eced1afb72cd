"""Opening a source by its name in a config: `tljax:trec`, `tfds:glue:mrpc`, `csv:reviews.csv` …"""

import os
from collections.abc import Mapping, Sequence

from tljax.base.errors import UserError
from tljax.base.tables import lookup, suggest
from tljax.base.types import Source
from tljax.data import SOURCES


def open_source(
    spec: str,
    *,
    split: str = "train",
    data_dir: str | os.PathLike | None = None,
    columns: Mapping[str, str] | None = None,
    classes: Sequence[str] | None = None,
) -> Source:
    """One split of a data set.

    Args:
      spec: what stands before the first colon names the kind, the rest goes to its opener:
        `tfds:NAME[:CONFIG]` any TFDS data set; `tljax:NAME[:CONFIG]` one of ours (`tljax.data.BUILDERS`);
        `image_folder:PATH`, `audio_folder:PATH` one folder a class, in a folder a split where there are such;
        `csv:PATH`, `tsv:PATH`, `jsonl:PATH` tables; `npz:PATH` arrays; `voc:PATH`, `coco:PATH` images with boxes;
        `mask_folder:PATH`, `voc_masks:PATH` images with a class a pixel;
        `package.module:function:REST` an opener of your own.
        In PATH, `{split}` stands for the split, and a folder of tables holds one file a split.
      split: the source's own split.
      data_dir: the folder of raw data, default TLJAX_DATA. Relative paths that lead nowhere from here are tried there.
      columns: our name → the source's: `text`, `text_b`, `image`, `label` (a class), `score` (a number), `id`.
        Default: the columns that are so called.
      classes: the names of the classes in order, for sources that do not say; default: those found, sorted.

    Raises:
      UserError: a source, split, column or file that does not exist, or labels that cannot be used.
    """
    kind, colon, rest = spec.partition(":")
    if colon and kind not in SOURCES and "." in kind:
        function, colon, rest = rest.partition(":")
        kind = f"{kind}:{function}"
    if not colon or not rest:
        raise UserError(f"The source {spec!r} is not of the form KIND:NAME. {suggest(kind, SOURCES)}")
    opener = lookup(SOURCES, kind, what="kind of source")
    return opener(rest, split=split, data_dir=data_dir, columns=columns, classes=classes)
