"""`inspect`: what would be trained, at what cost, without training."""

from rich.table import Table

from tljax.cli.common import build_experiment
from tljax.cli.main import Arguments


def run(arguments: Arguments) -> int:
    """Prints each stage with its parameters, what is live, rates, bytes per device, the compiled FLOPs, and memory."""
    if arguments.options.topology is not None:
        from tljax.cli import topology

        return topology.run(arguments)
    experiment = build_experiment(arguments)
    from tljax.assembly.training import inspect_experiment
    from tljax.train.display import Display

    display = Display()
    for note in experiment.notes:
        display.say(note)
    summary = inspect_experiment(experiment)
    display.console.print(stage_table(summary))
    for step, line in summary.get("events", {}).items():
        display.say(f"step {step}: {line}")
    for group in summary["groups"]:
        display.say(f"{group[0]} … {group[-1]} run under one scan, {len(group)} stages")
    flops = summary["flops"]
    how = "counted" if summary["groups"] else "compiled"
    if "step" in flops:
        display.say(
            f"{how} for a batch of {summary['batch']}: step {flops['step'] / 1e9:.2f} GFLOP, "
            f"forward pass {flops['forward'] / 1e9:.2f} GFLOP (ratio {flops['step'] / flops['forward']:.2f}); "
            f"{flops['share']:.0%} of a step that trains everything"
        )
        display.say(f"temporaries of the step, activations above all: {size_text(summary['temporary_bytes'])} a device")
    else:
        display.say(f"{how} forward pass for a batch of {summary['batch']}: {flops['forward'] / 1e9:.2f} GFLOP")
    for step, (size, why) in summary.get("cache", {}).items():
        when = f" from step {step} on" if step else ""
        display.say(f"no stage cache{when}: {why}" if why else f"stage cache{when}: up to {size_text(size)} on disk")
    return 0


def stage_table(summary: dict) -> Table:
    """The table of stages, with a row of sums; sizes are per device."""
    table = Table(title=summary["title"], title_justify="left")
    table.add_column("stage", no_wrap=True)
    for name in ("parameters", "live", "rate", "memory", "gradients", "optimizer"):
        table.add_column(name, justify="right", no_wrap=True)
    for row in [*summary["stages"], {"stage": "total", "rate": None, **summary["total"]}]:
        live = f"{row['live']:,}" if row["live"] else "frozen"
        table.add_row(
            row["stage"],
            f"{row['parameters']:,}",
            live,
            _rate(row["rate"]),
            *(size_text(row[name]) for name in ("parameter_bytes", "gradient_bytes", "optimizer_bytes")),
        )
    return table


def size_text(count: int) -> str:
    """Bytes, in the unit that leaves up to three digits before the point."""
    for unit, factor in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= factor:
            return f"{count / factor:.1f} {unit}"
    return f"{count} B"


def _rate(rate) -> str:
    if rate is None:
        return ""
    return " ".join(f"{r:g}" for r in rate) if isinstance(rate, list) else f"{rate:g}"
