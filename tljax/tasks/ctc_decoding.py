"""From the frames of a recogniser to its classes: the best path, and the best text by a search over prefixes."""

from collections.abc import Iterable

import jax
import jax.numpy as jnp
import numpy as np

SILENT = -np.inf


def best_path(logits: jax.Array, mask: jax.Array, blank: int) -> jax.Array:
    """The likeliest class of each frame, repetitions and blanks taken out (Graves et al. 2006).

    Args:
      logits: (B, T, Y).
      mask: (B, T), 1 for frames and 0 for padding behind them.
      blank: the class of frames that write nothing.

    Returns:
      (B, T) int32: a class + 1 where a frame writes one, 0 elsewhere.
    """
    classes = jnp.argmax(logits, axis=-1)
    before = jnp.pad(classes, ((0, 0), (1, 0)), constant_values=blank)[:, :-1]
    written = (mask > 0) & (classes != blank) & (classes != before)
    return jnp.where(written, classes + 1, 0).astype(jnp.int32)


def prefix_search(
    log_probabilities: np.ndarray, blank: int, *, beams: int, least: float = -12.0
) -> list[tuple[tuple[int, ...], float]]:
    """The likeliest texts of one clip: each sums up its alignments (Graves 2012, section 7.5; Hannun et al. 2014).

    Args:
      log_probabilities: (T, Y), of the clip's own frames.
      blank: the class of frames that write nothing.
      beams: prefixes kept after each frame. Enough of them make the search exact.
      least: classes with a smaller log probability at a frame are not tried there; −inf tries all.

    Returns:
      (classes, log probability) of up to `beams` texts, the likeliest first.
    """
    # Prefix → log probability of its alignments that end in a blank, and of those that end in its last class.
    kept: dict[tuple[int, ...], tuple[float, float]] = {(): (0.0, SILENT)}
    for frame in np.asarray(log_probabilities, np.float64):
        classes = np.flatnonzero(frame >= least)
        found: dict[tuple[int, ...], list[float]] = {}

        def add(prefix, ending, score, found=found):
            if score == SILENT:
                return
            scores = found.setdefault(prefix, [SILENT, SILENT])
            scores[ending] = np.logaddexp(scores[ending], score)

        for prefix, (blanked, spoken) in kept.items():
            either = np.logaddexp(blanked, spoken)
            add(prefix, 0, either + frame[blank])
            if prefix:
                add(prefix, 1, spoken + frame[prefix[-1]])
            for i in classes.tolist():
                if i != blank:
                    # After a blank, the same class is written again; without one it only goes on.
                    add((*prefix, i), 1, (blanked if prefix[-1:] == (i,) else either) + frame[i])
        best = sorted(found.items(), key=lambda item: -np.logaddexp(*item[1]))[:beams]
        kept = {prefix: (scores[0], scores[1]) for prefix, scores in best}
    return [(prefix, float(np.logaddexp(*scores))) for prefix, scores in kept.items()]


def written(row: Iterable[int]) -> list[int]:
    """The classes of a row of `best_path`."""
    return [int(i) - 1 for i in row if i > 0]
