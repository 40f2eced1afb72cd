"""Prefixes and prompts as the library peft keeps them: one tensor, `prompt_embeddings`.

Of PREFIX_TUNING its rows are the tokens of the prefix; in a row stand layer after layer the key and the value. Keys are
handed over as if they had been computed for earlier tokens: the text's positions begin after them, and rotary positions
turn them no more. Of PROMPT_TUNING its rows are the vectors before those of the words.
"""

import re
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from tljax.base.errors import raise_faults
from tljax.base.types import Model
from tljax.models import get_family
from tljax.models.adapters import PREFIX, PROMPT
from tljax.models.rotary import frequencies, rotate

KINDS = {PREFIX: "PREFIX_TUNING", PROMPT: "PROMPT_TUNING"}
"""Our branch → peft's name."""

NAME = "prompt_embeddings"

FAMILIES = ("bert", "gpt2", "llama", "mistral", "qwen2", "qwen3")
"""Families of which peft and we compute the same. It gives a DistilBERT no prefix (its reference takes no keys), reads
the first of a prompt where a head reads [CLS], and hands a T5's encoder and decoder one and the same prefix."""

TASKS = (
    (r".*ForSequenceClassification", "SEQ_CLS"),
    (r".*ForTokenClassification", "TOKEN_CLS"),
    (r".*ForQuestionAnswering", "QUESTION_ANS"),
    (r".*(ForCausalLM|LMHeadModel)", "CAUSAL_LM"),
)
"""Class of transformers → peft's name of its task, by which it chooses its own class."""

WORDS = "backbone/embed/words"
POSITIONS = "backbone/embed/positions"


def written(
    model: Model, mine: Mapping[str, Mapping[str, Any]], architecture: str | None
) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """(tensors, entries of the config) of the prefix, or of the prompt, in `mine`: path of a module → its leaves.

    Args:
      model: whose it is.
      mine: adapters of one kind.
      architecture: the class of transformers that has the model's head; None for the model without one.

    Raises:
      UserError: what peft cannot hold or would compute in another way; all at once.
    """
    kind = PREFIX if any(PREFIX in leaves for leaves in mine.values()) else PROMPT
    task = "FEATURE_EXTRACTION" if architecture is None else None
    task = task or next((name for pattern, name in TASKS if re.fullmatch(pattern, architecture)), None)
    faults = [] if task else [f"peft has no task for {architecture}. Save it alone: model._replace(head=None)."]
    faults += _faults(model, kind)
    pairs = _pairs(model)
    if kind == PREFIX and not faults:
        tables = (POSITIONS,) if _has_table(model) else ()
        lacking = [module for module in (*tables, *sum(pairs, ())) if module not in mine]
        faults += [f"{module}/prefix is missing, and peft's is whole: train it with no targets." for module in lacking]
    raise_faults(f"This {kind} cannot be written as peft does:", faults[:6])
    if kind == PROMPT:
        vectors = np.asarray(mine[WORDS][PROMPT]["vectors"], np.float32)
    else:
        found = {module: np.asarray(mine[module][PREFIX]["vectors"], np.float32) for pair in pairs for module in pair}
        count = len(found[pairs[0][0]])
        columns = [x for key, value in pairs for x in (turned(model, found[key], count), found[value])]
        vectors = np.concatenate(columns, axis=1)
    entries = {
        "peft_type": KINDS[kind],
        "task_type": task,
        "num_virtual_tokens": len(vectors),
        "num_layers": len(pairs),
        "num_attention_heads": _heads(model),
        "token_dim": vectors.shape[1] // (2 * len(pairs)) if kind == PREFIX else vectors.shape[1],
        "num_transformer_submodules": 1,
    }
    more = {"prefix_projection": False} if kind == PREFIX else {"prompt_tuning_init": "RANDOM"}
    return {NAME: vectors}, {**entries, **more}


def read(model: Model, config: Mapping[str, Any], tensors: Mapping[str, np.ndarray], flat: Mapping[str, Any]) -> dict:
    """Our leaves from the tensors of a folder. A projected prefix is stored as what the projection made.

    Raises:
      UserError: what we would compute in another way, or does not fit the model.
    """
    kind = next(kind for kind, name in KINDS.items() if name == config["peft_type"])
    faults = [] if NAME in tensors else [f"{NAME} is missing."]
    if config.get("num_transformer_submodules") not in (None, 1):
        faults.append("it is for an encoder and a decoder, which have it twice.")
    faults += _faults(model, kind)
    raise_faults(f"This {kind} of peft cannot be used here:", faults)
    vectors, pairs = tensors[NAME].astype(np.float32), _pairs(model)
    modules = [WORDS] if kind == PROMPT else [module for pair in pairs for module in pair]
    tables = [flat[f"{WORDS}/embedding"]] if kind == PROMPT else [flat[f"{module}/kernel"] for module in modules]
    width = sum(table.shape[-1] for table in tables)
    if vectors.ndim != 2 or vectors.shape[1] != width:
        faults.append(f"{NAME} has the shape {vectors.shape}, and rows of {width} are needed.")
    raise_faults(f"This {kind} of peft does not fit the model:", faults)
    count = len(vectors)
    found = dict(zip(modules, np.split(vectors, len(modules), axis=1), strict=True))
    if kind == PREFIX:
        found |= {key: turned(model, found[key], -count) for key, _ in pairs}
    made = {f"{module}/{kind}/vectors": x for module, x in found.items()}
    places = {f"{POSITIONS}/{PREFIX}/places": np.ones(count, np.float32)}
    return {**made, **places} if kind == PREFIX and _has_table(model) else made


def turned(model: Model, keys: np.ndarray, positions: int) -> np.ndarray:
    """The keys (n, N·K) as they are `positions` further on, where a model has rotary positions.

    peft's text begins at position n and ours at 0. The distances between the tokens are the same; those to the prefix
    are, once it is turned by as much.
    """
    rope = getattr(model.config, "rope_parameters", None)
    if rope is None:
        return keys
    x = jnp.asarray(keys).reshape(1, len(keys), _heads(model), -1)
    _, scale = frequencies(rope, x.shape[-1])
    return np.asarray(rotate(x, jnp.full((1, len(keys)), positions), rope) / scale).reshape(keys.shape)


def _faults(model: Model, kind: str) -> list[str]:
    if model.family not in FAMILIES:
        return [f"the model is of {model.family}; they are exchanged for {', '.join(FAMILIES)}."]
    if kind == PREFIX and any(getattr(model.config, "windows", ())):
        return ["the model sees a window of the last tokens, from which peft's prefix drops out, and ours does not."]
    return []


def _pairs(model: Model) -> list[tuple[str, str]]:
    """Modules of the key and of the value of each layer."""
    blocks = [stage for stage in get_family(model.family).backbone(model.config).stages if stage.startswith("block")]
    return [(f"backbone/{block}/attention/key", f"backbone/{block}/attention/value") for block in blocks]


def _has_table(model: Model) -> bool:
    """Whether positions are a table's rows, which the prefix takes some of."""
    return getattr(model.config, "rope_parameters", None) is None


def _heads(model: Model) -> int:
    """How many heads keys and values have."""
    names = ("num_key_value_heads", "num_attention_heads", "n_head")
    return next(getattr(model.config, name) for name in names if getattr(model.config, name, None))
