"""Which kernels an adapter stands beside, and the plan that follows."""

import re
from collections.abc import Callable, Mapping, Sequence

from tljax.base.errors import UserError
from tljax.base.paths import assign
from tljax.base.types import Adapter, Plan
from tljax.strategies.stages import check_batch_stats, outside_backbone

KERNEL = re.compile(r"backbone/.*/(kernel|embedding)")


def kernels(
    strategy: str,
    paths: Sequence[str],
    targets: str | Sequence[str] | None,
    default: str,
    *,
    option: str = "targets",
    required: bool = True,
) -> tuple[str, ...]:
    """The kernels of the backbone that `targets` name, in the order of `paths`.

    Args:
      strategy: for messages.
      paths: of all leaves.
      targets: regular expressions; each matches whole paths (`backbone/block[0-3]/.*/kernel`) or whole names of modules
        (`query`, `query|value`). None takes `default`.
      default: an expression over paths.
      option: the name of `targets`, for messages.
      required: whether a default that matches nothing is an error.

    Raises:
      UserError: an expression that matches no kernel, or only those that earlier ones name; with near misses.
    """
    found = [path for path in paths if KERNEL.fullmatch(path)]
    where = f"config.strategy.{strategy}.{option}"
    if targets is None:
        chosen = tuple(path for path in found if re.fullmatch(default, path))
        if required and not chosen:
            raise UserError(
                f"{where} is not given, and the kernels that {strategy} takes by itself ({default}) are not in this "
                f"model. Name some; there are: {', '.join(found[:6]) or '(none)'}{' …' if len(found) > 6 else ''}"
            )
        return chosen
    modules: dict[str, list[str]] = {}
    for path in found:
        modules.setdefault(path.split("/")[-2], []).append(path)
    rules = [(_with_modules(each, modules), True) for each in ((targets,) if isinstance(targets, str) else targets)]
    states = assign(rules, found, what=where, default=False)
    return tuple(path for path, chosen in states.items() if chosen)


def _with_modules(pattern: str, modules: Mapping[str, Sequence[str]]) -> str:
    """`pattern`, and the paths of the modules whose names it matches. What is no expression is left to `assign`."""
    try:
        named = [
            re.escape(path) for module, paths in modules.items() if re.fullmatch(pattern, module) for path in paths
        ]
    except re.error:
        return pattern
    return "|".join((pattern, *named))


def size_faults(**sizes: int) -> list[str]:
    """One message for each option that is no whole number from 1."""
    return [
        f"{name} is {size!r}; it must be a whole number from 1."
        for name, size in sizes.items()
        if isinstance(size, bool) or not isinstance(size, int) or size < 1
    ]


def adapter_plan(
    strategy: str,
    paths: Sequence[str],
    chosen: Sequence[str],
    adapter: Callable[[str], Adapter],
    *,
    batch_stats: str,
) -> Plan:
    """The plan of a strategy that freezes the backbone and trains adapters beside the `chosen` kernels, and the wings.

    Args:
      strategy: its name.
      paths: of all leaves.
      chosen: paths of kernels.
      adapter: path of a kernel → `Adapter`.
      batch_stats: as in `Plan`.

    Raises:
      UserError: no kernel is chosen.
    """
    if not chosen:
        raise UserError(f"config.strategy.{strategy} names no kernel, so it has nothing to train. Drop it.")
    outside = outside_backbone(paths)
    return Plan(
        live=lambda step: outside,
        adapters={path: (adapter(path),) for path in chosen},
        batch_stats=check_batch_stats(strategy, batch_stats),
    )
