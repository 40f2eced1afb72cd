"""Pictures as inline SVG, drawn by matplotlib and coloured by the page's style sheet, so that they follow its theme."""

import io
import math
import re
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from tljax.reports.html import Html, element

# matplotlib wants concrete colours; these stand for the variables of the style sheet until the SVG is finished.
_INK, _SOFT, _LINE, _PANEL = "#010203", "#010204", "#010205", "#010206"
_SERIES = ("#020300", "#020301", "#020302", "#020303", "#020304", "#020305")
_VARIABLES = {
    _INK: "var(--ink)",
    _SOFT: "var(--soft)",
    _LINE: "var(--line)",
    _PANEL: "var(--panel)",
    **{color: f"var(--c{i})" for i, color in enumerate(_SERIES)},
}
_STYLE = {
    "svg.fonttype": "none",
    "svg.hashsalt": "tljax",
    "font.size": 9,
    "text.color": _INK,
    "axes.edgecolor": _LINE,
    "axes.labelcolor": _SOFT,
    "axes.titlesize": 10,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.unicode_minus": False,
    "axes.formatter.limits": (-3, 5),
    "grid.color": _LINE,
    "grid.linewidth": 0.7,
    "xtick.color": _LINE,
    "ytick.color": _LINE,
    "xtick.labelcolor": _SOFT,
    "ytick.labelcolor": _SOFT,
    "legend.frameon": False,
    "legend.fontsize": 8.5,
    "lines.linewidth": 1.7,
}


def curves(
    series: Mapping[str, tuple[Sequence[float], Sequence[float]]], *, title: str, mark: float | None = None
) -> Html:
    """Values against steps.

    Args:
      series: name → (steps, values); values that are not finite leave a gap.
      title: above the picture.
      mark: a step to point out, that of the best checkpoint.
    """

    def draw(axes: Any) -> None:
        for color, (name, (steps, values)) in zip(_cycle(len(series)), series.items(), strict=True):
            dotted = "o" if len(steps) <= 30 else None
            finite = [value if math.isfinite(value) else math.nan for value in values]
            axes.plot(steps, finite, label=name, color=color, marker=dotted, markersize=3.2)
        if mark is not None:
            axes.axvline(mark, color=_SOFT, linewidth=1, linestyle=(0, (3, 3)), label="best")
        axes.set_title(title)
        axes.set_xlabel("step")
        axes.margins(x=0.02)
        if len(series) > 1 or mark is not None:
            axes.legend(loc="best")

    return _figure(draw, (5.2, 2.9), title)


def confusion(counts: Sequence[Sequence[int]], classes: Sequence[str]) -> Html:
    """A confusion matrix, rows are true classes: colour is the share of the row, numbers are counts."""
    size = len(classes)
    cell = min(0.75, max(0.145, 9.0 / size))
    points = min(9.0, cell * 72 * 0.62)

    def draw(axes: Any) -> None:
        from matplotlib.collections import PolyCollection

        corners, colors = [], []
        for i, row in enumerate(counts):
            for j, count in enumerate(row):
                if count:
                    share = count / sum(row)
                    corners.append([(j, i), (j + 1, i), (j + 1, i + 1), (j, i + 1)])
                    colors.append((_SERIES[0] if i == j else _SERIES[1], 0.12 + 0.78 * share))
                    # Ink on pale cells, the panel's colour on saturated ones.
                    ink = _PANEL if share > 0.55 else _INK
                    small = points * min(1.0, 2.6 / len(str(count)))
                    axes.text(j + 0.5, i + 0.5, str(count), ha="center", va="center", size=small, color=ink)
        axes.add_collection(PolyCollection(corners, facecolors=colors, linewidths=0))
        axes.set(xlim=(0, size), ylim=(size, 0), aspect="equal", xlabel="predicted", ylabel="true")
        ticks = [i + 0.5 for i in range(size)]
        axes.set_xticks(ticks, _shortened(classes), rotation=0 if size <= 3 else 90, size=max(points, 5.5))
        axes.set_yticks(ticks, _shortened(classes), size=max(points, 5.5))
        axes.tick_params(length=0)
        axes.grid(False)
        axes.set_xticks(range(size + 1), minor=True)
        axes.set_yticks(range(size + 1), minor=True)
        axes.grid(which="minor", linewidth=0.4)
        axes.tick_params(which="minor", length=0)

    side = size * cell + 1.6
    picture = _figure(draw, (side, side), "confusion matrix")
    return element("div", picture, style=f"max-width:{90 * side:.0f}px;margin:0 auto")


def bars(rows: Sequence[Mapping[str, Any]], *, label: str, scale: float = 1.0) -> Html:
    """Means as horizontal bars with standard deviations, and a dot for each run.

    Args:
      rows: `name` and `values`, the best first.
      label: what the values are.
      scale: factor for all values (100 for percentages).
    """

    def draw(axes: Any) -> None:
        for i, row in enumerate(rows):
            values = [scale * value for value in row["values"]]
            mean = statistics.fmean(values)
            axes.barh(i, mean, height=0.58, color=_SERIES[0] if i == 0 else _SERIES[5], alpha=0.85 if i == 0 else 0.45)
            if len(values) > 1:
                spread = statistics.stdev(values)
                axes.errorbar(mean, i, xerr=spread, color=_INK, capsize=4, linewidth=1.2)
                axes.plot(values, [i + 0.37] * len(values), "o", color=_INK, markersize=2.6, alpha=0.7)
        axes.set_yticks(range(len(rows)), [row["name"] for row in rows], color=_INK)
        axes.set(ylim=(len(rows) - 0.4, -0.6), xlabel=label)
        axes.tick_params(axis="y", length=0)
        axes.grid(axis="y", visible=False)

    return _figure(draw, (7.6, 0.9 + 0.52 * len(rows)), label)


def by_stage(series: Mapping[str, Sequence[float | None]], stages: Sequence[str], *, title: str, label: str) -> Html:
    """Values from 0 to 1 against the stages of a model, in depth order.

    Args:
      series: name → a value for each stage; None leaves a gap.
      stages: names.
      title: above the picture.
      label: what the values are.
    """

    def draw(axes: Any) -> None:
        for color, (name, values) in zip(_cycle(len(series)), series.items(), strict=True):
            known = [math.nan if value is None else value for value in values]
            axes.plot(range(len(stages)), known, label=name, color=color, marker="o", markersize=3.2)
        axes.set_xticks(range(len(stages)), _shortened(stages), rotation=0 if len(stages) <= 4 else 40, ha="center")
        axes.set(ylim=(-0.03, 1.05), ylabel=label)
        axes.set_title(title)
        axes.legend(loc="best")

    return _figure(draw, (7.6, 2.9), title)


def scatter(targets: Sequence[float], predicted: Sequence[float], *, title: str) -> Html:
    """Predicted numbers against targets, with the diagonal on which both agree."""

    def draw(axes: Any) -> None:
        axes.plot(targets, predicted, "o", color=_SERIES[0], markersize=3.4, alpha=0.45, markeredgewidth=0)
        ends = (min(*targets, *predicted), max(*targets, *predicted))
        axes.plot(ends, ends, color=_SOFT, linewidth=1, linestyle=(0, (3, 3)))
        axes.set(xlabel="target", ylabel="predicted")
        axes.set_title(title)

    return _figure(draw, (5.2, 4.4), title)


def bands(series: Mapping[str, Mapping[float, Sequence[float]]], *, title: str, scale: float = 1.0) -> Html:
    """Values against steps, each line the mean over seeds with a band of one standard deviation to either side.

    Args:
      series: name → step → a value for each seed that was evaluated then.
      title: above the picture.
      scale: factor for all values (100 for percentages).
    """

    def draw(axes: Any) -> None:
        for (color, mark), (name, steps) in zip(_marks(len(series)), series.items(), strict=True):
            means = [scale * statistics.fmean(values) for values in steps.values()]
            spreads = [scale * statistics.stdev(values) if len(values) > 1 else 0.0 for values in steps.values()]
            ends = ([mean + sign * spread for mean, spread in zip(means, spreads, strict=True)] for sign in (-1, 1))
            axes.fill_between(list(steps), *ends, color=color, alpha=0.16, linewidth=0)
            axes.plot(list(steps), means, label=name, color=color, marker=mark, markersize=3.2)
        axes.set_title(title)
        axes.set_xlabel("step")
        axes.margins(x=0.02)
        if len(series) > 1:
            axes.legend(loc="upper left", bbox_to_anchor=(1.01, 1.0))

    return _figure(draw, (8.4, 3.4), title)


def against_cost(
    points: Sequence[tuple[str, float, tuple[float, float, float]]], *, cost: str, label: str, log: bool = False
) -> Html:
    """Values with their intervals against what they cost.

    Args:
      points: (name, cost, (mean, low, high)), low and high NaN where they are unknown.
      cost: what the cost is.
      label: what the values are.
      log: the cost on a logarithmic axis.
    """

    def draw(axes: Any) -> None:
        for (color, mark), (name, at, (mean, low, high)) in zip(_marks(len(points)), points, strict=True):
            if math.isfinite(low):
                axes.plot([at, at], [low, high], color=color, linewidth=1.2, alpha=0.6)
            axes.plot([at], [mean], mark, color=color, label=name, markersize=6)
        if log:
            axes.set_xscale("log")
        axes.set(xlabel=cost, ylabel=label)
        axes.set_title(f"{label} against {cost}")
        axes.legend(loc="upper left", bbox_to_anchor=(1.01, 1.0))

    return _figure(draw, (6.6, 3.2), f"{label} against {cost}")


def sliced(points: Mapping[str, Sequence[tuple[Any, float]]], *, key: str, label: str) -> Html:
    """The value of each run against one setting.

    Args:
      points: name of what the runs have in common → (setting, value) of each.
      key: of the setting.
      label: what the values are.
    """
    settings = list(dict.fromkeys(setting for each in points.values() for setting, _ in each))
    numeric = all(isinstance(setting, (int, float)) and not isinstance(setting, bool) for setting in settings)
    wide = numeric and min(settings) > 0 and max(settings) / min(settings) >= 10

    def draw(axes: Any) -> None:
        for (color, mark), (name, pairs) in zip(_marks(len(points)), points.items(), strict=True):
            places = [setting if numeric else settings.index(setting) for setting, _ in pairs]
            means = {at: [v for p, (_, v) in zip(places, pairs, strict=True) if p == at] for at in sorted({*places})}
            axes.plot(places, [value for _, value in pairs], mark, color=color, markersize=3.6, alpha=0.55)
            line = [statistics.fmean(values) for values in means.values()]
            # Between names there is nothing that a line could join.
            axes.plot(list(means), line, "-" if numeric else "_", color=color, linewidth=1.2, markersize=22, label=name)
        if wide:
            axes.set_xscale("log")
        elif numeric and len(settings) <= 6:
            axes.set_xticks(sorted(settings))
        if not numeric:
            named = _shortened([str(setting) for setting in settings])
            axes.set_xticks(range(len(settings)), named, rotation=0 if len(settings) <= 3 else 40)
        axes.set(xlabel=key, ylabel=label)
        axes.set_title(key)
        if 1 < len(points) <= 8:
            axes.legend(loc="best")

    return _figure(draw, (5.2, 3.2), f"{label} against {key}")


def shares(parts: Mapping[str, float], *, title: str) -> Html:
    """Shares of a whole as horizontal bars, the largest first."""
    names = sorted(parts, key=lambda name: -parts[name])

    def draw(axes: Any) -> None:
        axes.barh(range(len(names)), [parts[name] for name in names], height=0.58, color=_SERIES[0], alpha=0.8)
        axes.set_yticks(range(len(names)), _shortened(names), color=_INK)
        axes.set(ylim=(len(names) - 0.4, -0.6), xlim=(0, 1))
        axes.set_title(title)
        axes.tick_params(axis="y", length=0)
        axes.grid(axis="y", visible=False)

    return _figure(draw, (5.2, 1.0 + 0.34 * len(names)), title)


def reliability(bins: Sequence[Mapping[str, float]], *, title: str) -> Html:
    """How often predictions are right against how sure they are, a bar a bin; on the diagonal both agree.

    Args:
      bins: `confidence` and `accuracy`, means over the bin's `count` examples.
      title: above the picture.
    """
    most = max(each["count"] for each in bins)

    def draw(axes: Any) -> None:
        axes.plot([0, 1], [0, 1], color=_SOFT, linewidth=1, linestyle=(0, (3, 3)))
        for each in bins:
            # Many examples, much ink: a bin of three says little.
            weight = 0.25 + 0.7 * each["count"] / most
            axes.plot([each["confidence"]] * 2, [each["confidence"], each["accuracy"]], color=_SERIES[1], linewidth=2)
            axes.plot([each["confidence"]], [each["accuracy"]], "o", color=_SERIES[0], markersize=9 * weight**0.5)
        axes.set(xlim=(0, 1.02), ylim=(-0.02, 1.02), xlabel="confidence", ylabel="share that is right")
        axes.set_title(title)

    return _figure(draw, (4.6, 4.2), title)


def labelled_map(places: Any, labels: Sequence[int], classes: Sequence[str], *, title: str) -> Html:
    """Points in the plane, (N, 2), in the colours of their classes."""

    def draw(axes: Any) -> None:
        for (color, mark), (y, name) in zip(_marks(len(classes)), enumerate(classes), strict=True):
            mine = [place for place, label in zip(places, labels, strict=True) if label == y]
            if mine:
                axes.plot(*zip(*mine, strict=True), mark, color=color, markersize=3.6, alpha=0.7, label=name)
        axes.set_xticks([])
        axes.set_yticks([])
        axes.grid(False)
        axes.set_title(title)
        if len(classes) <= 24:
            axes.legend(loc="upper left", bbox_to_anchor=(1.01, 1.0), ncols=1 + len(classes) // 13)

    return _figure(draw, (8.0, 5.0), title)


def _figure(draw: Any, size: tuple[float, float], label: str) -> Html:
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=size, layout="constrained")
        draw(figure.subplots())
        file = io.StringIO()
        figure.savefig(file, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    text = file.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    # The size is the page's business; the viewBox keeps the proportions.
    text = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", text, count=1)
    text = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", text, count=1)
    for color, variable in _VARIABLES.items():
        text = text.replace(color, variable)
    return element("figure", Html(text), role="img", aria_label=label)


def _cycle(count: int) -> list[str]:
    return [_SERIES[i % len(_SERIES)] for i in range(count)]


def _marks(count: int) -> list[tuple[str, str]]:
    """(colour, marker) of each of several series; pairs do not repeat before 48 of them."""
    return [(color, "os^DvPX*"[(i // len(_SERIES)) % 8]) for i, color in enumerate(_cycle(count))]


def _shortened(names: Sequence[str], most: int = 28) -> list[str]:
    return [name if len(name) <= most else f"{name[: most - 1]}…" for name in map(str, names)]


def by_depth(
    series: Mapping[str, tuple[Sequence[str], Sequence[float], Sequence[float]]], baseline: float | None, *, title: str
) -> Html:
    """Accuracies in per cent against the depth in a model, as its share of the way from the bottom to the top.

    Args:
      series: model → (names of the depths from the bottom up, values, their standard errors).
      baseline: of the raw inputs, as a line across; None draws none.
      title: above the picture.
    """

    def draw(axes: Any) -> None:
        for color, (name, (depths, values, errors)) in zip(_cycle(len(series)), series.items(), strict=True):
            places = [i / max(1, len(depths) - 1) for i in range(len(depths))] if len(depths) > 1 else [1.0]
            axes.errorbar(places, values, yerr=errors, label=name, color=color, marker="o", markersize=3.2, capsize=2)
        if baseline is not None:
            axes.axhline(baseline, color=_SOFT, linewidth=1, linestyle=(0, (3, 3)), label="raw inputs")
        axes.set_xticks([0, 0.5, 1], ["lowest stage", "half way", "top"])
        axes.set(ylabel="accuracy, %")
        axes.set_title(title)
        axes.legend(loc="best")

    return _figure(draw, (7.6, 3.4), title)
