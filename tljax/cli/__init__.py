"""Floor 5: the verbs of `launch.py`."""

VERBS = {
    "train": "tljax.cli.train:run",
    "evaluate": "tljax.cli.evaluate:run",
    "predict": "tljax.cli.predict:run",
    "probe": "tljax.cli.probe:run",
    "select": "tljax.cli.select:run",
    "soup": "tljax.cli.soup:run",
    "export": "tljax.cli.export:run",
    "inspect": "tljax.cli.inspect:run",
    "sweep": "tljax.cli.sweep:run",
    "report": "tljax.cli.report:run",
    "list": "tljax.cli.list:run",
}
"""verb → function of the parsed `Arguments`, which returns an exit code."""
