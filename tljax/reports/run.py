"""The report of one run: a page with the result, the curves, what was trained, and how."""

import statistics
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tljax.base.configs import flat_config
from tljax.base.files import write_whole
from tljax.reports import plots
from tljax.reports.calibration import calibration_section
from tljax.reports.domains import domain_sections
from tljax.reports.embedding import embedding_sections
from tljax.reports.html import Html, bar, cards, element, facts, page, picture, section, table
from tljax.reports.records import Run, read_run
from tljax.reports.words import duration, number, said, short, show, shown_split, size_of, titled


def write_run_report(folder: Path) -> Path:
    """Writes `report.html` into a run folder, from its records alone; returns its path.

    Raises:
      UserError: as `read_run`.
    """
    run = read_run(folder)
    body = [
        element("p", headline(run), class_="headline"),
        cards(_key_numbers(run)),
        *_results(run),
        *_curves(run),
        *domain_sections(run),
        *_confusion(run),
        *embedding_sections(run.folder),
        *_examples_shown(run),
        *_stages(run),
        *_timing(run),
        *_config(run),
    ]
    return write_whole(run.folder / "report.html", page(run.folder.resolve().name, _subtitle(run), *body))


def headline(run: Run) -> str:
    """One sentence with the result of the run."""
    chosen = run.last_evaluations()
    if not chosen:
        last = run.of("train")[-1:]
        if not last:
            return "Nothing has been recorded yet."
        return f"At step {last[0]['step']} the training loss is {number(last[0]['loss'])}; nothing has been evaluated."
    best = _best(run)
    split = shown_split(chosen)
    metrics = chosen[split]["metrics"]
    main = best.get("metric") if best.get("metric") in metrics else next(iter(metrics), None)
    if main is None:
        return f"The evaluation on {split} has no metrics."
    size = _examples(chosen[split])
    over = f" ({size:,} examples)" if size else ""
    sentence = f"{show(main, metrics[main])} {said(main)} on {split}{over}"
    if best.get("value") is None:
        return f"{sentence}."
    step = run.of("end")[-1].get("best_step")
    if split == "validation":
        return f"{sentence}, at step {step}, the best of the run."
    by, value = said(best["metric"]), show(best["metric"], best["value"])
    return f"{sentence}, with the checkpoint of step {step}, which has the best {by} on validation, {value}."


def _subtitle(run: Run) -> str:
    task, model = run.config.get("task") or {}, run.config.get("model") or {}
    strategy = run.config.get("strategy") or {}
    parts = [task.get("name", ""), model.get("source") or model.get("name", ""), " + ".join(strategy)]
    seed = run.config.get("seed")
    return " · ".join(str(part) for part in [*parts, f"seed {seed}" if seed is not None else ""] if part)


def _best(run: Run) -> Mapping[str, Any]:
    ends = run.of("end")
    return (ends[-1].get("best") or {}) if ends else {}


def _examples(evaluation: Mapping[str, Any]) -> int:
    return sum(row.get("count", 0) for row in (evaluation.get("tables") or {}).get("per_class", ()))


def _key_numbers(run: Run) -> list[tuple[str, str, str]]:
    entries = []
    chosen = run.last_evaluations()
    for split in sorted(chosen, key=lambda name: name == "validation"):
        record = chosen[split]
        names = list(record["metrics"])[: 2 if split != "validation" else 1]
        entries += [(show(name, record["metrics"][name]), titled(name), f"on {split}") for name in names]
    total = run.inspect.get("total", {})
    if total.get("parameters"):
        share = 100 * total["live"] / total["parameters"]
        entries.append((short(total["live"]), "live parameters", f"{share:.3g} % of {short(total['parameters'])}"))
    trained, ends = run.of("train"), run.of("end")
    if trained:
        entries.append((f"{trained[-1]['step']:,}", "steps", f"last loss {number(trained[-1]['loss'])}"))
    if ends and "seconds" in ends[-1]:
        devices = run.about.get("devices") or {}
        where = f"on {devices['count']} × {devices.get('kind', '')}" if devices.get("count") else ""
        entries.append((duration(ends[-1]["seconds"]), "wall time", where))
    return entries


def _results(run: Run) -> list[Html]:
    chosen = run.last_evaluations()
    names = list(dict.fromkeys(name for record in chosen.values() for name in record["metrics"]))
    if not names:
        return []
    rows = [
        [split, f"{record['step']:,}", *(_metric(name, record["metrics"]) for name in names)]
        for split, record in chosen.items()
    ]
    note = "The checkpoint is chosen on validation data; other splits only measure it."
    return [section("Results", table(["split", "step", *map(titled, names)], rows), *_draws(run), note=note)]


def _draws(run: Run) -> list[Html]:
    """The repeats of a probe, of which the evaluation above is the mean."""
    draws = run.of("probe")
    if len(draws) < 2:
        return []
    names = list(draws[0]["metrics"])
    rows = [[f"draw {i}", *(_metric(name, draw["metrics"]) for name in names)] for i, draw in enumerate(draws)]
    spread = {name: statistics.stdev(draw["metrics"][name] for draw in draws) for name in names}
    rows.append(["standard deviation", *(_metric(name, spread) for name in names)])
    return [element("h3", "Draws"), table(["", *map(titled, names)], rows, marked=[len(draws)])]


def _metric(name: str, metrics: Mapping[str, float]) -> str:
    return show(name, metrics[name]) if name in metrics else ""


def _curves(run: Run) -> list[Html]:
    trained = run.of("train")
    evaluated = [record for record in run.of("evaluate") if record["split"] == "validation"]
    ends = run.of("end")
    mark = ends[-1].get("best_step") if ends else None
    losses = _over_steps(trained, "losses")
    train = {"training": _series(trained, "loss"), **(losses if len(losses) > 1 else {})}
    metrics = _over_steps(evaluated, "metrics")
    train |= {f"validation {said(k)}": v for k, v in metrics.items() if "loss" in k}
    bounded, other = {}, {}
    for name, (steps, values) in metrics.items():
        if "loss" not in name:
            (bounded if all(-1 <= value <= 1 for value in values) else other)[titled(name)] = (steps, values)
    pictures = []
    if trained:
        pictures.append(plots.curves(train, title="Loss", mark=mark))
    if evaluated and bounded:
        pictures.append(plots.curves(bounded, title="Validation", mark=mark))
    pictures += [plots.curves({name: series}, title=f"Validation: {name}", mark=mark) for name, series in other.items()]
    for key, title in (("learning_rate", "Learning rate"), ("gradient_norm", "Gradient norm")):
        if any(key in record for record in trained):
            pictures.append(plots.curves({title: _series(trained, key)}, title=title))
    return [section("Curves", element("div", *pictures, class_="plots"))] if pictures else []


def _series(records: list[dict], key: str) -> tuple[list, list]:
    kept = [record for record in records if key in record]
    return [record["step"] for record in kept], [record[key] for record in kept]


def _over_steps(records: list[dict], group: str) -> dict[str, tuple[list, list]]:
    names = dict.fromkeys(name for record in records for name in record.get(group) or ())
    flat = [{"step": record["step"], **(record.get(group) or {})} for record in records]
    return {name: _series(flat, name) for name in names}


def _confusion(run: Run) -> list[Html]:
    chosen = run.last_evaluations()
    if not chosen:
        return []
    split = shown_split(chosen)
    tables = chosen[split].get("tables") or {}
    parts = []
    counts, classes = tables.get("confusion"), tables.get("classes")
    if counts and classes:
        note = "Rows are true classes. Colour: share of the row; blue is right, orange is wrong."
        picture = plots.confusion(counts, classes)
        parts.append(section(f"Confusion on {split}", picture, *_confused(counts, classes), note=note))
    if tables.get("per_class"):
        parts.append(section(f"Per class on {split}", _per_class(tables["per_class"])))
    parts += calibration_section(f"Calibration on {split}", tables.get("calibration") or [])
    if tables.get("targets") and tables.get("predicted"):
        picture = plots.scatter(tables["targets"], tables["predicted"], title=f"Predictions on {split}")
        parts.append(section("Predictions", element("div", picture, style="max-width:560px;margin:0 auto")))
    return parts


def _examples_shown(run: Run) -> list[Html]:
    """Pictures and samples that the task's evaluation chose to show."""
    chosen = run.last_evaluations()
    if not chosen:
        return []
    split = shown_split(chosen)
    tables = chosen[split].get("tables") or {}
    parts = []
    pictures = [
        picture(run.folder / entry["file"], entry["title"])
        for entry in tables.get("pictures", ())
        if (run.folder / entry["file"]).is_file()
    ]
    if pictures:
        parts.append(section(f"Pictures of {split}", element("div", *pictures, class_="plots")))
    samples = tables.get("samples") or []
    if samples:
        columns = list(dict.fromkeys(key for row in samples for key in row))
        rows = [[element("span", number(row.get(key)), class_="sample") for key in columns] for row in samples]
        parts.append(section(f"Samples of {split}", table(columns, rows)))
    return parts


def _confused(counts: list[list[int]], classes: list[str]) -> list[Html]:
    pairs = [(count, i, j) for i, row in enumerate(counts) for j, count in enumerate(row) if count and i != j]
    if len(classes) < 3 or not pairs:
        return []
    rows = [
        [classes[i], classes[j], f"{count:,}", show("accuracy", count / sum(counts[i]))]
        for count, i, j in sorted(pairs, key=lambda pair: (-pair[0], pair[1:]))[:8]
    ]
    return [element("h3", "Most often confused"), table(["true", "predicted", "count", "of the class"], rows)]


def _per_class(rows: list[dict[str, Any]]) -> Html:
    """Segmentation counts pixels and has an IoU a class besides."""
    unit = "pixels" if any("pixels" in row for row in rows) else "count"
    most = max((row.get(unit, 0) for row in rows), default=0) or 1
    overlap = any("iou" in row for row in rows)
    return table(
        ["class", *["IoU"] * overlap, "precision", "recall", "F1", "examples" if unit == "count" else unit],
        [
            [
                row["class"],
                *([bar(row["iou"], show("iou", row["iou"]))] if overlap else []),
                show("precision", row["precision"]),
                show("recall", row["recall"]),
                bar(row["f1"], show("f1", row["f1"])),
                bar(row.get(unit, 0) / most, f"{row.get(unit, 0):,}"),
            ]
            for row in rows
        ],
    )


def _stages(run: Run) -> list[Html]:
    stages, total = run.inspect.get("stages"), run.inspect.get("total", {})
    if not stages:
        return []
    columns = ["stage", "parameters", "live", "rate", "parameter bytes", "gradient bytes", "optimizer bytes"]
    rows = [*stages, {"stage": "total", "rate": None, **total}]
    body = [
        [
            row["stage"],
            f"{row['parameters']:,}",
            element("span", f"{row['live']:,}", class_="live")
            if row["live"]
            else element("span", "frozen", class_="frozen"),
            _rate(row["rate"]),
            *(size_of(row[name]) for name in ("parameter_bytes", "gradient_bytes", "optimizer_bytes")),
        ]
        for row in rows
    ]
    note = "Rates are factors of the learning rate. Bytes are per device."
    flops = run.inspect.get("flops") or {}
    if flops.get("step") and flops.get("forward"):
        note += f" A step takes {flops['step'] / 1e9:.2f} GFLOP, a forward pass {flops['forward'] / 1e9:.2f}."
    return [section("What was trained", table(columns, body, marked=[len(rows) - 1]), note=note)]


def _rate(rate: Any) -> str:
    if rate is None:
        return ""
    return ", ".join(f"{r:g}" for r in rate) if isinstance(rate, list) else f"{rate:g}"


def _timing(run: Run) -> list[Html]:
    pairs = []
    ends = run.of("end")
    if ends and "seconds" in ends[-1]:
        pairs.append(("wall time of the last part", duration(ends[-1]["seconds"])))
    speeds = sorted(record["steps_per_second"] for record in run.of("train") if record.get("steps_per_second"))
    if speeds:
        median = speeds[len(speeds) // 2]
        pairs.append(("steps a second, median", f"{median:.3g}"))
        batch = (run.config.get("train") or {}).get("batch_size")
        if batch:
            pairs.append(("examples a second, median", f"{median * batch:.3g}"))
    outcome = run.outcome
    if outcome.get("step_flops"):
        pairs.append(("GFLOP a step, as compiled", f"{outcome['step_flops'] / 1e9:.3g}"))
    if outcome.get("peak_memory"):
        pairs.append(("peak memory of the process", size_of(outcome["peak_memory"])))
    if outcome.get("commit"):
        pairs.append(("commit", outcome["commit"]))
    devices = run.about.get("devices") or {}
    pairs += [(f"device {name}", str(value)) for name, value in devices.items()]
    pairs += [(f"version of {name}", value) for name, value in (run.about.get("versions") or {}).items()]
    pairs += [(f"digest, {name}", value) for name, value in (run.about.get("digests") or {}).items()]
    return [section("Time, place and versions", facts(pairs))] if pairs else []


def _config(run: Run) -> list[Html]:
    if not run.config:
        return []
    pairs = [(key, repr(value)) for key, value in flat_config(run.config).items()]
    inside = element("details", element("summary", "the resolved config"), facts(pairs), open="")
    return [section("Config", inside)]
