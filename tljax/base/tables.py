"""Explicit tables of plug-ins: lazy look-up by name, with suggestions, and calls checked by signature."""

import difflib
import importlib
import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from tljax.base.errors import UserError, raise_faults


def suggest(name: str, accepted: Iterable[str]) -> str:
    """One sentence on what would have been accepted: the nearest name first, then all of them."""
    accepted = sorted(map(str, accepted))
    near = difflib.get_close_matches(str(name), accepted, n=1, cutoff=0.5)
    hint = f"Did you mean {near[0]!r}? " if near else ""
    return f"{hint}Accepted: {', '.join(accepted) or '(none)'}."


def lookup(table: Mapping[str, str], name: str, *, what: str) -> Any:
    """The plug-in called `name`.

    Args:
      table: name → import string `package.module:attribute`.
      name: a key of the table, or an import string of the user's own, so that nobody must fork.
      what: the kind of plug-in, for the message ("task", "strategy").

    Raises:
      UserError: there is no such name, or the user's import string leads nowhere.
    """
    target = table.get(name, name)
    module_name, colon, attribute = target.partition(":")
    if not colon:
        raise UserError(f"There is no {what} called {name!r}. {suggest(name, table)}")
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if name in table or not (error.name and f"{module_name}.".startswith(f"{error.name}.")):
            raise
        raise UserError(f"The {what} {name!r} cannot be imported: {error}.") from error
    if not hasattr(module, attribute):
        public = [n for n in dir(module) if not n.startswith("_")]
        raise UserError(f"The {what} {name!r}: {module_name} has no {attribute!r}. {suggest(attribute, public)}")
    return getattr(module, attribute)


def call(function: Callable, given: tuple = (), options: Mapping[str, Any] | None = None, *, where: str) -> Any:
    """`function(*given, **options)`, after every option was checked against the signature.

    The signature is the schema of a config section: an unknown or missing key is an error that lists the
    accepted ones. A function with `**options` is given the keys that it does not name and checks them itself.

    Args:
      function: the plug-in.
      given: positional arguments that tljax supplies.
      options: keyword arguments that the user supplies.
      where: the place in the config, for the message ("config.optim").
    """
    options = dict(options or {})
    accepted = options_of(function, len(given))
    kinds = {parameter.kind for parameter in inspect.signature(function).parameters.values()}
    faults = [
        f"{where}.{key} is not an option of {function.__name__}. {suggest(key, accepted)}"
        for key in options
        if key not in accepted and inspect.Parameter.VAR_KEYWORD not in kinds
    ]
    faults += [
        f"{where}.{key} is required by {function.__name__} and not given."
        for key, parameter in accepted.items()
        if parameter.default is parameter.empty and key not in options
    ]
    raise_faults(f"The section {where} cannot be used:", faults)
    return function(*given, **options)


def options_of(function: Callable, skip: int = 0) -> dict[str, inspect.Parameter]:
    """The parameters of `function` that a config may name, after the first `skip` positional ones."""
    parameters = list(inspect.signature(function).parameters.values())[skip:]
    return {p.name: p for p in parameters if p.kind in (p.KEYWORD_ONLY, p.POSITIONAL_OR_KEYWORD)}
