"""How large the digits of both sets are at 16 × 16 pixels, by the first 3000 training images; reads no label.

`python -m experiments.digits_usps.extent --data_dir=DATA`
"""

import argparse
import sys
from collections.abc import Sequence

import numpy as np

from configs.digits_usps import MNIST, USPS, get_config
from experiments.digits_usps.run import MIDDLE
from tljax.data.images import ImageProcessor
from tljax.data.sources import open_source

LIT = 40 / 255
"""What counts as ink, of a scale from 0 to 1."""
COUNT = 3000


def main(argv: Sequence[str] | None = None) -> int:
    """Prints a row for each way of reading; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data_dir", help="as of launch.py; default: TLJAX_DATA")
    data_dir = parser.parse_args(argv).data_dir
    plain = ImageProcessor(**get_config().model.processor.to_dict())
    for name, source, options in (("MNIST, whole", MNIST, {}), ("MNIST, cut", MNIST, MIDDLE), ("USPS", USPS, {})):
        records = open_source(source, split="train", data_dir=data_dir).records
        processor = plain.replace(mean=(0.0,), std=(1.0,), **options)
        pixels = np.stack([processor.example(records[i])["pixel_values"][..., 0] for i in range(COUNT)])
        height, width = (np.mean([length(lit) for lit in (pixels > LIT).any(axis=axis)]) for axis in (2, 1))
        print(f"{name}: {height:.1f} pixels high, {width:.1f} wide, mean grey {pixels.mean():.2f}")
    return 0


def length(lit: np.ndarray) -> int:
    """From the first lit line to the last, (L,) of booleans."""
    places = np.flatnonzero(lit)
    return int(places[-1] - places[0] + 1) if len(places) else 0


if __name__ == "__main__":
    sys.exit(main())
