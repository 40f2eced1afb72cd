"""The step of a config, compiled for a slice of a TPU pod on a machine that has none.

libtpu compiles for a named slice without its devices. The program that comes out is the one that would run there, so
its memory and its collectives are facts. The time is an estimate from published peaks (`tljax.assembly.chips`), a
roofline: the least time that arithmetic, memory and links need, each by itself.
"""

import importlib.util
import math
import os
import re
import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import jax

from tljax.assembly import hlo
from tljax.assembly.chips import CHIPS, EXAMPLES, Chip
from tljax.assembly.counting import flops
from tljax.assembly.experiment import Experiment
from tljax.assembly.phases import Phase
from tljax.assembly.shapes import described
from tljax.assembly.summary import optimizer_bytes, stage_table
from tljax.assembly.training import batch_shapes, training
from tljax.base.errors import RunError, UserError
from tljax.base.tables import suggest

ALONE = {
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-1",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
}
"""What libtpu is told where nothing runs on a TPU. It would ask the cloud's metadata server what machine this is, wait
for an answer, and complain that there is none; and it would lock the chips, so that two processes could not compile at
once. For which chips it compiles the topology alone decides."""


class Topology(NamedTuple):
    """A slice of a pod.

    Attributes:
      name: "v5e:4x4".
      chip: what its chips can do.
      devices: as a mesh takes them; they are not there.
      cores: devices of a chip.
      slices: how many of them there are, joined by the network of the data centre.
    """

    name: str
    chip: Chip
    devices: tuple[Any, ...]
    cores: int
    slices: int = 1


def open_topology(name: str, slices: int = 1) -> Topology:
    """The slice called `name`, or several of them.

    Raises:
      UserError: libtpu is not installed; it knows no such slice.
    """
    if importlib.util.find_spec("libtpu") is None:
        raise UserError(
            "--topology compiles with libtpu, which is not installed, and needs no TPU: pip install 'tljax[topology]'."
        )
    kind, _, shape = name.partition(":")
    sizes = re.fullmatch(r"(\d+)x(\d+)(?:x(\d+))?", shape)
    hint = f"A topology is a chip and its slice's shape. {suggest(name, EXAMPLES)}"
    if kind not in CHIPS:
        raise UserError(f"There is no chip {kind!r} (--topology={name}). {suggest(kind, CHIPS)} {hint}")
    if sizes is None:
        raise UserError(f"--topology={name} says no shape. {hint}")
    for variable, value in ALONE.items():
        os.environ.setdefault(variable, value)
    from jax.experimental.topologies import get_topology_desc

    try:
        several = {"num_slices": slices} if slices > 1 else {}
        devices = tuple(get_topology_desc(platform="tpu", topology_name=name, **several).devices)
    except (RuntimeError, ValueError) as error:
        line = str(error).strip().splitlines()[0]
        raise UserError(f"libtpu knows no topology {name!r} ({line}). {hint}") from error
    chips = slices * math.prod(int(size) for size in sizes.groups() if size)
    return Topology(name, CHIPS[kind], devices, max(1, len(devices) // chips), slices)


def inspect_topology(
    config: Mapping[str, Any],
    name: str,
    *,
    slices: int = 1,
    data_dir: str | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> dict[str, Any]:
    """What the step of `config` costs on the slice `name`; nothing of it runs, and no weights are read.

    Of a run with phases it is the step of the last one, when most leaves train.

    Args:
      config: the sections of a config; `config.mesh` shares out the slice's devices.
      name: of the slice, "v5e:16x16".
      slices: how many there are; `config.mesh.dcn` says which axis reaches over them.
      data_dir: the folder of raw data.
      say: prints one line on what is being done.

    Returns:
      as `stage_table`, and `title`, `topology`, `slices`, `devices`, `mesh`, `batch`; `seconds` of `describing` and
      `compiling`; `flops` on all devices: of the `step`, and of the `model`, without what is computed again for memory,
      which is what a utilisation counts (Chowdhery et al. 2022, arXiv 2204.02311, appendix B); `memory`,
      `collectives`, `time` and what else there is: see `memory_of`, `traffic_of`, `estimate`.

    Raises:
      UserError: no such slice; the config cannot be built.
      RunError: the step does not fit into the memory of a chip.
    """
    topology, began = open_topology(name, slices), time.perf_counter()
    describe = partial(described, data_dir=data_dir, devices=topology.devices)
    experiment = describe(config)
    phase, traced = _step(experiment)
    plain = {**config, "train": {**(config.get("train") or {}), "remat": "none"}}
    model = traced if experiment.settings.remat == "none" else _step(describe(plain))[1]
    count = {"step": flops(traced.jaxpr), "model": flops(model.jaxpr)}
    ready = time.perf_counter()
    say(f"{len(phase.frozen) + len(phase.live)} leaves described in {ready - began:.0f} s; compiling for {name}")
    compiled = _compiled(traced.lower(), topology)
    done = time.perf_counter()
    memory, traffic = memory_of(compiled, topology), traffic_of(compiled, experiment.mesh.size)
    strategies = ", ".join(config.get("strategy") or ["fine_tune"])
    state = phase.shapes
    return {
        "title": f"{experiment.model.family}, {experiment.task.name}, strategy {strategies}",
        "topology": name,
        "slices": slices,
        "devices": experiment.mesh.size,
        "mesh": {axis: int(size) for axis, size in experiment.mesh.shape.items()},
        "batch": sum(experiment.reading.sizes.values()),
        "seconds": {"describing": ready - began, "compiling": done - ready},
        "memory": memory,
        "flops": count,
        **traffic,
        "time": estimate(topology, experiment.mesh.size, count, memory, traffic),
        **stage_table(experiment, state.live, phase.frozen, optimizer_bytes(state)),
    }


def _compiled(lowered: jax.stages.Lowered, topology: Topology) -> jax.stages.Compiled:
    # What was compiled for absent devices can be written to the cache of programs, but not be read from it.
    least, before = "jax_persistent_cache_min_compile_time_secs", jax.config.jax_persistent_cache_min_compile_time_secs
    jax.config.update(least, math.inf)
    try:
        return lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        line = str(error).strip().splitlines()[0]
        raise RunError(
            f"The step does not fit into the memory of a chip of {topology.name}: {line} Lower "
            "config.train.batch_size, raise accumulate, set remat='stages', or share the leaves among more devices "
            "(config.mesh: fsdp, tensor)."
        ) from error
    finally:
        jax.config.update(least, before)


def memory_of(compiled: jax.stages.Compiled, topology: Topology) -> dict[str, int]:
    """Bytes on one device: `arguments`, `outputs`, the part of them that takes the arguments' place (`aliased`),
    `temporaries`, `code`, what all of it takes at once (`total`), and how much there is (`hbm`)."""
    found = compiled.memory_analysis()
    parts = {
        "arguments": found.argument_size_in_bytes,
        "outputs": found.output_size_in_bytes,
        "aliased": found.alias_size_in_bytes,
        "temporaries": found.temp_size_in_bytes,
        "code": found.generated_code_size_in_bytes,
    }
    total = sum(parts.values()) - 2 * parts["aliased"]
    return {**parts, "total": total, "hbm": int(topology.chip.hbm / topology.cores)}


def _step(experiment: Experiment) -> tuple[Phase, jax.stages.Traced]:
    """(the last phase of a run, its traced step)."""
    parts = training(experiment)
    phase = parts.phases[-1]
    return phase, phase.step.trace(phase.shapes, phase.frozen, batch_shapes(experiment), parts.key)


def traffic_of(compiled: jax.stages.Compiled, devices: int) -> dict[str, Any]:
    """What the text of the program tells of a device; all None where XLA gives no text (on v5p and v6e it fails).

    Returns:
      `collectives`: a list of `hlo.Collective`; `moved`: bytes to and from the memory; `loops`: how many of them have a
      length that the text does not tell, whose bodies count once.
    """
    try:
        program = hlo.parse(compiled.as_text())
    except (jax.errors.JaxRuntimeError, ValueError):
        return {"collectives": None, "moved": None, "loops": None}
    return {
        "collectives": hlo.collectives(program, devices),
        "moved": hlo.moved(program),
        "loops": len(program.unknown),
    }


def estimate(
    topology: Topology, devices: int, count: Mapping[str, float], memory: Mapping[str, int], traffic: Mapping[str, Any]
) -> dict[str, float | None]:
    """The least seconds of a step by published peaks, and the share of the peak that this makes.

    Returns:
      `arithmetic`: all FLOPs at the peak of bfloat16, which is that of float32 too at jax's default precision on TPU;
      `memory`: what passes through the memory at its bandwidth (without the program's text: arguments and outputs
      alone, once); `links`: what a device sends, over all of its links at once, in one direction (None without the
      text); `step`: the longest of the three, as if they overlapped wholly; `apart`: their sum, as if they did not;
      `mfu`: model FLOPs utilisation at `step`.
    """
    chip, share = topology.chip, topology.cores
    moved = traffic["moved"] or memory["arguments"] + memory["outputs"]
    peak = chip.flops / share
    found: dict[str, float | None] = {
        "arithmetic": count["step"] / devices / peak,
        "memory": moved / (chip.hbm_bandwidth / share),
        "links": None,
    }
    if traffic["collectives"] is not None and topology.slices == 1:
        found["links"] = sum(each.sent for each in traffic["collectives"]) / (chip.ici / 2 / share)
    known = [seconds for seconds in found.values() if seconds is not None]
    step = max(known)
    return {**found, "step": step, "apart": sum(known), "mfu": count["model"] / devices / peak / step}
