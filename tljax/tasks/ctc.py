"""Speech recognition by connectionist temporal classification: a character or a blank for every frame."""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from tljax.base.errors import UserError, raise_faults
from tljax.base.types import Task
from tljax.data.transcripts import Transcripts
from tljax.models.forward import forward
from tljax.models.heads import STARTS, TokenClassifier
from tljax.models.wav2vec2 import frame_count
from tljax.tasks.ctc_decoding import best_path, prefix_search, written
from tljax.tasks.spec import TaskSpec, choose

SAMPLES = 16
"""Rows of the report's table of transcripts."""
PER = ("characters", "clips")


def ctc(
    spec: TaskSpec,
    *,
    case: str = "own",
    unknown: str = "error",
    beams: int = 1,
    per: str = "characters",
    dropout: float | None = None,
    init: str = "normal",
) -> Task:
    """One dense layer on every frame, trained on all alignments of a transcript (Graves et al. 2006).

    The classes are the characters of the checkpoint's tokenizer or of the processor's option `characters`; the blank
    is the tokenizer's padding. A checkpoint of a recogniser keeps its head where its classes are these.

    Args:
      spec: a backbone that reads waveforms, with a processor of sound.
      case: what is done to the transcripts' letters: "own" nothing, "upper" or "lower" changes them.
      unknown: "error" refuses transcripts with other characters, "map" writes the class of the unknown for them.
      beams: 1 writes the likeliest class of every frame; above it, prefixes of the search for the likeliest text.
      per: the loss of a clip is divided by its number of "characters", or not ("clips").
      dropout: rate before the dense layer; None is the checkpoint's `final_dropout`.
      init: "zeros", "normal" or "he", for a new head.

    Returns:
      A `Task` whose predictions are `written` (B, T), see `best_path`, or with several beams `log_probabilities`
      (B, T, Y) and `mask` (B, T). It is chosen by `wer`, the rate of wrong words; `cer` is that of characters. Both
      count substitutions, insertions and deletions against the length of all transcripts.

    Raises:
      UserError: a backbone that does not read waveforms, no alphabet, an option out of range.
    """
    if not hasattr(spec.config, "conv_stride"):
        raise UserError(f"config.task: ctc needs a backbone that reads waveforms, and {spec.family or 'this'} is none.")
    alphabet = getattr(spec.processor, "alphabet", None)
    if alphabet is None:
        raise UserError(
            "config.task: ctc needs to know the characters, and the checkpoint has no tokenizer of characters. Name "
            "them: config.model.processor = dict(characters='abcdefghijklmnopqrstuvwxyz')."
        )
    rate = getattr(spec.config, "final_dropout", 0.0) if dropout is None else dropout
    raise_faults(
        "The section config.task cannot be used:",
        [f"beams is {beams!r}; it must be a whole number from 1."] * (type(beams) is not int or beams < 1)
        + [f"dropout is {rate!r}; it must be from 0 up to, but not including, 1."] * (not 0 <= rate < 1),
    )
    choose("per", per, PER)
    count = len(alphabet.symbols)
    new = TokenClassifier(count, rate, choose("init", init, tuple(STARTS)))
    own = spec.processor.characters is None and isinstance(spec.head, TokenClassifier) and spec.head.classes == count

    def infer(model, variables, batch):
        outputs, _ = forward(model, variables, batch["inputs"])
        if beams == 1:
            return {"written": best_path(outputs["logits"], outputs["mask"], alphabet.blank)}
        logits = outputs["logits"].astype(jnp.float32)
        return {"log_probabilities": jax.nn.log_softmax(logits), "mask": outputs["mask"].astype(jnp.int32)}

    def texts(predictions: Mapping[str, Any]) -> list[str]:
        if beams == 1:
            return [alphabet.decode(written(row)) for row in predictions["written"]]
        rows = zip(predictions["log_probabilities"], np.sum(predictions["mask"] > 0, axis=1), strict=True)
        return [alphabet.decode(prefix_search(x[:frames], alphabet.blank, beams=beams)[0][0]) for x, frames in rows]

    def measure(predictions, targets, records):
        records = [records[i] for i in range(len(records))]
        wanted = [alphabet.normalized(record["target_text"], case) for record in records]
        return error_rates(wanted, texts(predictions), [record["id"] for record in records])

    return Task(
        name="ctc",
        head=spec.head.clone(dropout=rate) if own else new,
        own_head=own,
        uses="hidden",
        inputs=lambda batch: batch["inputs"],
        targets=lambda batch: batch["targets"],
        loss=lambda outputs, targets: losses_of(outputs, targets, alphabet.blank, per=per),
        weights=lambda batch: batch["weight"],
        predict=lambda outputs: {},
        metrics=measure,
        decode=lambda predictions, records: [{"prediction": text} for text in texts(predictions)],
        main=("wer", "min"),
        prepare=lambda source, processor: (
            source,
            Transcripts(processor, alphabet, partial(frame_count, spec.config), case, unknown),
        ),
        infer=infer,
    )


def losses_of(outputs: Mapping[str, Any], targets: jax.Array, blank: int, *, per: str = "characters") -> jax.Array:
    """−log p(transcript) of each clip, (B,), in float32.

    Args:
      outputs: `logits` (B, T, Y) and `mask` (B, T) of the frames.
      targets: (B, N) classes, −100 behind the end of a transcript.
      blank: the class of frames that write nothing.
      per: "characters" divides by the length of the transcript, as torch's mean does.
    """
    logits, padded = outputs["logits"].astype(jnp.float32), targets < 0
    found = optax.ctc_loss(
        logits,
        1.0 - (outputs["mask"] > 0).astype(jnp.float32),
        jnp.where(padded, blank, targets),
        padded.astype(jnp.float32),
        blank_id=blank,
    )
    return found / jnp.maximum(jnp.sum(~padded, axis=1), 1) if per == "characters" else found


def error_rates(wanted: Sequence[str], found: Sequence[str], names: Sequence[Any]) -> dict[str, Any]:
    """`wer` and `cer` over all texts, from 0 on, the share of texts that are wholly right, and samples."""
    import jiwer

    wanted, found = list(wanted), list(found)
    rows = zip(names, wanted, found, strict=True)
    samples = [{"id": str(name), "target": a, "prediction": b} for name, a, b in rows][:SAMPLES]
    return {
        "wer": float(jiwer.wer(wanted, found)),
        "cer": float(jiwer.cer(wanted, found)),
        "exact": float(np.mean([a == b for a, b in zip(wanted, found, strict=True)])),
        "samples": samples,
    }
