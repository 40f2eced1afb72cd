"""Adapters as folders of the library peft: adapter_config.json and adapter_model.safetensors, in both directions.

Names there are those of the modules of transformers, which are a family's weight table without `.weight`:
`base_model.model.bert.encoder.layer.0.attention.self.query.lora_A.weight` is our
`backbone/block0/attention/query/lora/a`, transposed. Prefixes and prompts are one tensor: `peft_prompts`.
"""

import json
import os
import re
import shutil
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from safetensors.numpy import save_file

from tljax.base.errors import RunError, UserError, raise_faults
from tljax.base.paths import flatten, unflatten
from tljax.base.tables import suggest
from tljax.base.types import Family, HeadFormat, Model
from tljax.base.weights import AS_IS, CONV, LINEAR, Row, Table, their_shapes
from tljax.checkpoints import peft_prompts
from tljax.checkpoints.convert import export_leaves
from tljax.checkpoints.safetensors_format import open_tensors
from tljax.checkpoints.save import format_of
from tljax.models import get_family
from tljax.models.adapters import BOTTLENECK, IA3, LORA, NAMES, PARALLEL, VISUAL, adapters_of

OURS = (BOTTLENECK, PARALLEL, VISUAL)
"""Kinds that peft has not."""
ROOT = "base_model.model."
"""Before the name of a module of transformers."""
PROMPT_ROOT = "base_model."
"""The same beside a prefix or prompt, where peft has no wrapper of its own around the model."""
NAME = re.compile(
    re.escape(ROOT) + r"(.+)\.(lora_A|lora_B|lora_embedding_A|lora_embedding_B|lora_magnitude_vector|ia3_l)(\.weight)?"
)
PLAIN_STARTS = (True, False, "gaussian", "orthogonal", "eva", None)
"""Ways to start LoRA in peft that leave the base as it is; the others (PiSSA, OLoRA …) change its kernels."""


class Spot(NamedTuple):
    """A kernel of ours that has a module of its own in transformers.

    Attributes:
      path: of our kernel.
      convolution: whether it is one.
      turned: whether the module keeps (in, out), as GPT-2's `Conv1D`.
    """

    path: str
    convolution: bool
    turned: bool

    @property
    def module(self) -> str:
        """Our module's path."""
        return self.path.rpartition("/")[0]

    @property
    def table(self) -> bool:
        """Whether it is one of vectors."""
        return self.path.endswith("/embedding")


def spots(family: Family, config: Any, prefix: str) -> dict[str, Spot]:
    """Module of transformers → our kernel, for all kernels that are one module's weight."""
    found = {}
    for entry in family.table(config, prefix).rows:
        single = len(entry.theirs) == len(entry.ours) == 1 and entry.theirs[0].endswith(".weight")
        kernel = entry.ours[0].endswith(("/kernel", "/embedding")) and entry.layout in (LINEAR, CONV, AS_IS)
        if single and kernel:
            turned = entry.layout == AS_IS and entry.ours[0].endswith("/kernel")
            found[entry.theirs[0].removesuffix(".weight")] = Spot(entry.ours[0], entry.layout == CONV, turned)
    return found


def save_adapter(
    folder: str | os.PathLike,
    model: Model,
    variables: Mapping[str, Any],
    *,
    base: str = "",
    rslora: bool = False,
) -> Path:
    """Writes the adapters of `variables`, and the head, as peft does: `PeftModel.from_pretrained(model, folder)`.

    Args:
      folder: made anew, or one that holds an adapter, which is replaced.
      model: with the head that a class of transformers computes, or None to leave the head out.
      variables: with LoRA (DoRA), IA³, a prefix or a prompt, one kind of them.
      base: name or path of the base model, for the config.
      rslora: whether the config says that the scale is alpha / √rank; the scale is the same.

    Raises:
      UserError: no adapters or such as peft cannot hold; all at once. A head without a class; a folder of another kind.
      RunError: the folder cannot be written.
    """
    folder, family = Path(folder).absolute(), get_family(model.family)
    if folder.exists() and not ((folder / "adapter_config.json").is_file() or not any(folder.iterdir())):
        raise UserError(f"{folder} exists and holds no adapter (no adapter_config.json). Name another one.")
    chosen = format_of(model)
    if model.head is not None and chosen is None:
        raise UserError(
            f"The head {model.head} is of no class of transformers, so no adapter can hold it. Save the adapter alone: "
            "model._replace(head=None)."
        )
    named = spots(family, model.config, chosen.prefix if chosen else family.prefixes[-1])
    flat = flatten(variables["params"])
    mine = {module: leaves for module, leaves in adapters_of(flat).items() if module.startswith("backbone/")}
    where = {spot.module: (name, spot) for name, spot in named.items()}
    kinds = {kind for leaves in mine.values() for kind in leaves}
    learned = kinds & peft_prompts.KINDS.keys()
    faults = [] if mine else ["there are no adapters: train with the strategy lora, ia3, prefix or prompt."]
    faults += [f"peft has no {kind} adapters." for kind in OURS if kind in kinds]
    if len(kinds - {*OURS}) > 1:
        together = " and ".join(kind for kind in NAMES if kind in kinds)
        faults.append(f"there are {together} together, and a folder of peft has one kind.")
    faults += [] if learned else _kernel_faults(mine, where, flat)
    raise_faults("These adapters cannot be written as peft does:", faults)
    if learned:
        tensors, entries = peft_prompts.written(model, mine, chosen.architecture if chosen else None)
    else:
        spread = {where[module]: leaves for module, leaves in mine.items()}
        tensors, entries = _lora(spread, rslora) if LORA in kinds else _ia3(spread)
        tensors = {ROOT + name: x for name, x in tensors.items()}
        entries |= {"fan_in_fan_out": any(spot.turned for _, spot in spread), "task_type": None}
    head = _head(model, chosen, flat) if chosen else {}
    entries |= {
        "base_model_name_or_path": base,
        "inference_mode": True,
        "modules_to_save": sorted({name.rpartition(".")[0] for name in head}) or None,
    }
    tensors |= {(PROMPT_ROOT if learned else ROOT) + name: x for name, x in head.items()}
    _write(folder, {name: np.asarray(x, order="C") for name, x in tensors.items()}, entries)
    return folder


def _kernel_faults(mine: Mapping[str, Any], where: Mapping[str, Any], flat: Mapping[str, Any]) -> list[str]:
    """Why peft cannot hold `mine` beside the kernels; `where` has those that it knows."""
    faults = [
        f"{module} is no module of its own in transformers (it is fused with others), or none with a weight."
        for module in mine
        if module not in where
    ]
    faults += [
        f"{m} has factors on inputs and outputs; peft has one of them, and none for a table."
        for m, leaves in mine.items()
        if IA3 in leaves and (len(leaves[IA3]) > 1 or f"{m}/embedding" in flat)
    ]
    if len({"magnitude" in leaves[LORA] for leaves in mine.values() if LORA in leaves}) > 1:
        faults.append("some kernels have a magnitude (DoRA) and some have none.")
    return faults


def _lora(mine: Mapping[tuple[str, Spot], Mapping[str, Any]], rslora: bool) -> tuple[dict[str, Any], dict[str, Any]]:
    """(tensors, entries of the config)."""
    tensors, ranks, alphas, dora = {}, {}, {}, False
    for (name, spot), leaves in mine.items():
        a, b = (np.asarray(leaves[LORA][key]) for key in ("a", "b"))
        ranks[name] = rank = a.shape[-1]
        # The scale was rounded to float32; in a double alpha would not be the number that somebody chose.
        alphas[name] = float(np.float32(float(leaves[LORA]["scale"]) * (rank**0.5 if rslora else rank)))
        kind = "lora_embedding_" if spot.table else "lora_"
        ending = "" if spot.table else ".weight"
        turn = (3, 2, 0, 1) if spot.convolution else (1, 0)
        tensors |= {f"{name}.{kind}A{ending}": a.transpose(turn), f"{name}.{kind}B{ending}": b.transpose(turn)}
        if "magnitude" in leaves[LORA]:
            dora, magnitude = True, np.asarray(leaves[LORA]["magnitude"])
            tensors[f"{name}.lora_magnitude_vector"] = magnitude[None, :, None, None] if spot.convolution else magnitude
    rank, alpha = next(iter(ranks.values())), next(iter(alphas.values()))
    return tensors, {
        "peft_type": "LORA",
        "target_modules": sorted(ranks),
        "r": rank,
        "lora_alpha": alpha,
        "rank_pattern": {re.escape(name): r for name, r in ranks.items() if r != rank},
        "alpha_pattern": {re.escape(name): each for name, each in alphas.items() if each != alpha},
        "use_rslora": rslora,
        "use_dora": dora,
        "lora_dropout": max(float(leaves[LORA].get("dropout", 0.0)) for leaves in mine.values()),
        "bias": "none",
        "init_lora_weights": True,
    }


def _ia3(mine: Mapping[tuple[str, Spot], Mapping[str, Any]]) -> tuple[dict[str, Any], dict[str, Any]]:
    """(tensors, entries of the config)."""
    tensors, inputs = {}, []
    for (name, spot), leaves in mine.items():
        ((side, value),) = leaves[IA3].items()
        inputs += [name] if side == "input" else []
        shape = (1, -1, 1, 1) if spot.convolution else (1, -1) if side == "input" else (-1, 1)
        tensors[f"{name}.ia3_l"] = np.asarray(value).reshape(shape)
    return tensors, {
        "peft_type": "IA3",
        "target_modules": sorted(name for name, _ in mine),
        "feedforward_modules": sorted(inputs),
        "init_ia3_weights": True,
    }


def _head(model: Model, chosen: HeadFormat, flat: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """The tensors of the head, which peft saves module by module."""
    tensors = export_leaves(Table(rows=chosen.rows(model.config)), flat)
    modules = {name.rpartition(".")[0] for name in tensors}
    if any(one != other and other.startswith(f"{one}.") for one in modules for other in modules):
        raise UserError(
            f"The head of {chosen.architecture} is modules within modules ({', '.join(sorted(modules))}), and peft "
            "saves modules whole. Save the adapter alone: model._replace(head=None)."
        )
    return tensors


def _write(folder: Path, tensors: Mapping[str, np.ndarray], entries: Mapping[str, Any]) -> None:
    temporary = folder.with_name(f".{folder.name}.{uuid.uuid4().hex[:8]}")
    try:
        temporary.mkdir(parents=True)
        save_file(dict(tensors), temporary / "adapter_model.safetensors", metadata={"format": "pt"})
        (temporary / "adapter_config.json").write_text(json.dumps(dict(entries), indent=2) + "\n", encoding="utf8")
        if folder.exists():
            shutil.rmtree(folder)
        temporary.rename(folder)
    except OSError as error:
        raise RunError(f"{folder} cannot be written: {error}") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def load_adapter(
    folder: str | os.PathLike, model: Model, variables: Mapping[str, Any], *, head: bool = True
) -> dict[str, Any]:
    """`variables` with the adapters of a folder of peft beside the kernels, and with its head.

    Args:
      folder: adapter_config.json and adapter_model.safetensors, of LoRA (rsLoRA, DoRA), IA³, a prefix or a prompt.
      model: of the family that it was made for.
      variables: of `model`.
      head: whether the tensors of the head are read; they must be those of the model's head.

    Raises:
      UserError: another kind of adapter; tensors that are of no kernel or do not fit it; all at once.
    """
    folder, family = Path(folder).expanduser(), get_family(model.family)
    config, tensors = _read(folder)
    named = {name: spot for prefix in family.prefixes for name, spot in spots(family, model.config, prefix).items()}
    flat, made, faults, others = flatten(variables["params"]), {}, [], {}
    if config["peft_type"] in peft_prompts.KINDS.values():
        whole = {name.removeprefix(PROMPT_ROOT): np.array(tensor.read()) for name, tensor in tensors.items()}
        made, tensors = peft_prompts.read(model, config, whole, flat), {}
        others = {name: x for name, x in whole.items() if name != peft_prompts.NAME}
    for name, tensor in tensors.items():
        matched = NAME.fullmatch(name)
        if matched is None:
            others[name.removeprefix(ROOT)] = np.array(tensor.read())
            continue
        module, kind, spot = matched[1], matched[2], named.get(matched[1])
        if spot is None:
            faults.append(f"{name}: the {model.family} has no such kernel. {suggest(module, list(named)[:40])}")
            continue
        made |= _leaf(spot, kind, np.array(tensor.read()), module, config)
    raise_faults(f"The adapter in {folder} does not fit the model:", faults[:8])
    for module, leaves in adapters_of(made).items() if tensors else ():
        kernel = next(flat[f"{module}/{k}"] for k in ("kernel", "embedding") if f"{module}/{k}" in flat)
        faults += _misfits(module, leaves, kernel.shape)
    if head and others:
        found, more = _read_head(model, others, flat)
        made, faults = {**made, **found}, [*faults, *more]
    raise_faults(f"The adapter in {folder} does not fit the model:", faults[:8])
    return {**variables, "params": unflatten({**flat, **made})}


def _read(folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """(config, tensors), after what we do not compute was refused."""
    try:
        config = json.loads((folder / "adapter_config.json").read_text(encoding="utf8"))
    except FileNotFoundError:
        raise UserError(f"{folder} holds no adapter of peft (no adapter_config.json).") from None
    except ValueError as error:
        raise UserError(f"{folder}/adapter_config.json is no JSON: {error}") from error
    kind = config.get("peft_type")
    known = ("LORA", "IA3", *peft_prompts.KINDS.values())
    faults = [] if kind in known else [f"peft_type is {kind!r}. {suggest(str(kind), known)}"]
    if kind == "LORA" and config.get("init_lora_weights", True) not in PLAIN_STARTS:
        faults.append(
            f"init_lora_weights is {config['init_lora_weights']!r}, which changes the kernels of the base. Convert it "
            "in peft (path_initial_model_for_weight_conversion)."
        )
    if not (folder / "adapter_model.safetensors").is_file():
        faults.append("there is no adapter_model.safetensors; save it with safe_serialization=True.")
    raise_faults(f"The adapter in {folder} cannot be read:", faults)
    return config, open_tensors(folder / "adapter_model.safetensors")


def _leaf(spot: Spot, kind: str, tensor: np.ndarray, module: str, config: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Our leaves from one tensor; with `a` comes the scale."""
    tensor = tensor.astype(np.float32)
    if kind == "ia3_l":
        side = "input" if _listed(module, config.get("feedforward_modules")) else "output"
        return {f"{spot.module}/ia3/{side}": tensor.reshape(-1)}
    if kind == "lora_magnitude_vector":
        return {f"{spot.module}/lora/magnitude": tensor.reshape(-1)}
    turned = tensor.transpose((2, 3, 1, 0) if tensor.ndim == 4 else (1, 0))
    if kind.endswith("B"):
        return {f"{spot.module}/lora/b": turned}
    rank = turned.shape[-1]
    alpha = _pattern(config.get("alpha_pattern") or {}, module, config["lora_alpha"])
    scale = np.float32(alpha / (rank**0.5 if config.get("use_rslora") else rank))
    return {f"{spot.module}/lora/a": turned, f"{spot.module}/lora/scale": np.asarray(scale)}


def _pattern(patterns: Mapping[str, float], module: str, default: float) -> float:
    """The value of the first expression that a module's name ends with."""
    return next((value for key, value in patterns.items() if re.fullmatch(rf"(.*\.)?({key})", module)), default)


def _listed(module: str, names: str | list[str] | None) -> bool:
    """Whether peft's list of names, or its one expression, means a module."""
    if isinstance(names, str):
        return re.fullmatch(names, module) is not None
    return any(module == name or module.endswith(f".{name}") for name in names or ())


def _misfits(module: str, leaves: Mapping[str, Any], kernel: tuple[int, ...]) -> list[str]:
    """What of an adapter does not fit the shape of its kernel."""
    wanted: dict[str, tuple[int, ...]] = {"ia3/input": kernel[-2:-1], "ia3/output": kernel[-1:]}
    found = flatten(leaves)
    if LORA in leaves:
        lacking = [f"{module}: lora/{name} is missing." for name in ("a", "b") if name not in leaves[LORA]]
        if lacking:
            return lacking
        rank = leaves[LORA]["a"].shape[-1]
        wanted |= {
            "lora/a": (*kernel[:-1], rank),
            "lora/b": (*(1 for _ in kernel[:-2]), rank, kernel[-1]),
            "lora/scale": (),
            "lora/magnitude": kernel[-1:],
        }
    return [
        f"{module}/{name} has the shape {x.shape}, and {wanted[name]} is needed."
        for name, x in found.items()
        if x.shape != wanted[name]
    ]


def _read_head(
    model: Model, tensors: Mapping[str, np.ndarray], flat: Mapping[str, Any]
) -> tuple[dict[str, np.ndarray], list[str]]:
    """(leaves of the head, faults)."""
    chosen = format_of(model)
    rows: tuple[Row, ...] = chosen.rows(model.config) if chosen else ()
    known = {name for entry in rows for name in entry.theirs}
    unknown = sorted(tensors.keys() - known)
    faults = [f"{name} is of no part of the model; head=False leaves it out." for name in unknown]
    made = {}
    for entry in rows:
        shapes = their_shapes(entry, {path: flat[path].shape for path in entry.ours})
        for name, shape in zip(entry.theirs, shapes, strict=True):
            if name not in tensors:
                faults.append(f"{name}, of the head, is missing; head=False leaves the head out.")
            elif tensors[name].shape != shape:
                faults.append(f"{name} has the shape {tensors[name].shape}, and {shape} is needed.")
        if not faults:
            made |= dict(zip(entry.ours, entry.layout.ours(*(tensors[name] for name in entry.theirs)), strict=True))
    return made, faults
