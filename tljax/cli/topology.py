"""`inspect --topology`: what a step costs on a slice of a TPU pod, compiled here."""

import json
from pathlib import Path

from rich.table import Table

from tljax.cli.common import need_config
from tljax.cli.distributed import number_of
from tljax.cli.inspect import size_text, stage_table
from tljax.cli.main import Arguments


def run(arguments: Arguments) -> int:
    """Prints what the compiled step takes on a device, its collectives, and an estimate of its time."""
    config, name = need_config(arguments), arguments.options.topology
    import jax

    jax.config.update("jax_platforms", "cpu")  # what accelerators there are stay free
    from tljax.assembly.topology import inspect_topology
    from tljax.train.display import Display

    display = Display()
    slices = number_of("--slices", arguments.options.slices, least=1)
    found = inspect_topology(config, name, slices=slices, data_dir=arguments.data_dir, say=display.say)
    if arguments.options.output:
        rows = found["collectives"] and [each._asdict() for each in found["collectives"]]
        text = json.dumps({**found, "collectives": rows}, indent=2)
        Path(arguments.options.output).write_text(text + "\n", encoding="utf8")
    display.console.print(stage_table(found))
    for line in lines(found):
        display.say(line)
    if found["collectives"]:
        display.console.print(collective_table(found))
    return 0


def lines(found: dict) -> list[str]:
    """What is told of a step beside the tables."""
    memory, time, flops = found["memory"], found["time"], found["flops"]
    parts = ", ".join(f"{name} {size_text(memory[name])}" for name in ("arguments", "temporaries", "code"))
    axes = ", ".join(f"{axis} {size}" for axis, size in found["mesh"].items())
    again = flops["step"] / flops["model"] - 1
    several = f"{found['slices']} slices of " if found["slices"] > 1 else ""
    text = [
        f"compiled for {several}{found['topology']} in {found['seconds']['compiling']:.0f} s: {found['devices']} "
        f"devices ({axes}), {found['batch']} examples a step",
        f"memory of a device: {size_text(memory['total'])} of {size_text(memory['hbm'])} "
        f"({memory['total'] / memory['hbm']:.0%}): {parts}, results that do not take an argument's place "
        f"{size_text(memory['outputs'] - memory['aliased'])}",
        f"arithmetic of a step: {flops['step'] / 1e12:.2f} TFLOP on all devices"
        + (f", of which {again:.0%} of the model's {flops['model'] / 1e12:.2f} are computed again" if again else ""),
    ]
    if found["collectives"] is None:
        text.append("XLA gives no text of a program for this chip: collectives and traffic are not known")
    else:
        text.append(f"to and from the memory of a device: {size_text(int(found['moved']))} a step")
    if found["loops"]:
        text.append(f"{found['loops']} loops do not tell their length: of what they move and send a round counts")
    ms = {name: "unknown" if seconds is None else f"{1e3 * seconds:.1f} ms" for name, seconds in time.items()}
    text.append(
        f"estimated step, from published peaks: {ms['step']} if all overlaps, {ms['apart']} if nothing does "
        f"(arithmetic {ms['arithmetic']}, memory {ms['memory']}, links {ms['links']}); "
        f"{time['mfu']:.0%} of the peak at best"
    )
    return text


def collective_table(found: dict) -> Table:
    """A row for each kind of collective and size of its groups; bytes are a step's, on a device."""
    table = Table(title="collectives", title_justify="left")
    table.add_column("kind", no_wrap=True)
    for name in ("devices", "count", "size", "sent"):
        table.add_column(name, justify="right", no_wrap=True)
    for each in found["collectives"]:
        sizes = (size_text(int(each.bytes)), size_text(int(each.sent)))
        table.add_row(each.kind, str(each.group), str(each.count), *sizes)
    return table
