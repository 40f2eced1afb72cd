"""The trials of a study in a database that all workers share: who works at which, and what came out.

Every trial stands there from the beginning, waiting. A worker claims one, under a lock, and gives signs of life while
it works; a trial whose worker is silent waits again, and another worker claims it. So each trial has one row, which is
finished once. Optuna's own `ask` would make a new trial when none waits, and two workers may claim one row of SQLite.
"""

import contextlib
import json
import time
import uuid
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from tljax.base.configs import flat_config
from tljax.base.errors import RunError, UserError, raise_faults
from tljax.base.files import write_whole
from tljax.base.lock import held
from tljax.base.tables import suggest
from tljax.sweeps.axes import SEED, Sweep, fixed_axes, points, sampled_axes, values_of
from tljax.sweeps.search import make_pruner, make_sampler

T = TypeVar("T")
FILE, DATABASE, LOCK = "study.json", "study.db", ".study.lock"
GRACE = 60
"""Seconds of silence after which a worker counts as dead."""
PATIENCE = 120
"""Seconds in which a database that does not answer is asked again."""
POINT, ERROR, DEATHS, AGAIN = "point", "error", "deaths", "again"
"""What stands at a row: its place in the plan, why it failed, how many of its workers died, whether it is a retry."""


class Claimed(NamedTuple):
    """A trial that this worker has claimed.

    Attributes:
      number: of the trial.
      row: of it in the database.
      trial: Optuna's.
      chosen: {axis: label, or a number}.
      values: {dotted key: value}.
      deaths: workers that died while they had it.
      again: whether it failed before, and is to be run all the same.
    """

    number: int
    row: int
    trial: Any
    chosen: dict[str, Any]
    values: dict[str, Any]
    deaths: int
    again: bool


class Row(NamedTuple):
    """A trial as tables show it: `state` is "waiting", "running", "complete", "pruned" or "failed"; times are seconds
    since 1970; `error` says why it failed."""

    number: int
    state: str
    value: float | None
    point: int
    params: dict[str, Any]
    start: float | None
    end: float | None
    error: str | None


class Study:
    """A study that is open. A class because it owns a connection.

    Args:
      folder: of the study.
      sweep: its axes.
      about: what stands in its study.json.
      url: of the database.
      grace: seconds of silence after which a worker counts as dead.
    """

    def __init__(self, folder: Path, sweep: Sweep, about: Mapping[str, Any], url: str, *, grace: int):
        import optuna
        from optuna.trial import TrialState

        optuna.logging.set_verbosity(optuna.logging.ERROR)
        self.folder, self.sweep, self.about, self._states = folder, sweep, about, TrialState
        self._optuna, self._points = optuna, points(sweep)
        self._axes = [axis for axis in (*fixed_axes(sweep), *sampled_axes(sweep)) if axis.name != SEED]
        self._seen: dict[int, set[int]] = {}
        with self._alone():
            self._rows = _connect(url, grace)
            self._study = optuna.create_study(
                storage=self._rows,
                study_name=f"{about['name']}-{about['id']}",
                direction=f"{about['mode']}imize",
                pruner=make_pruner(sweep.pruner),
                load_if_exists=True,
            )
            self._id = self._rows.get_study_id_from_name(self._study.study_name)
            there = {trial.user_attrs.get(POINT) for trial in self._all()}
            for point in range(len(self._points)):
                if point not in there:
                    self._enqueue(point)

    def close(self) -> None:
        """Closes the connection."""
        self._rows.remove_session()
        self._rows.engine.dispose()

    def claim(self, like: Callable[[Mapping[str, Any]], bool] | None = None) -> Claimed | None:
        """The first trial that waits, now this worker's; None where none does.

        Args:
          like: {dotted key: value} → whether a trial with these fixed values will do; None takes any.
        """
        with self._alone():
            self._free_silent()
            for waiting in self._all(self._states.WAITING):
                point = waiting.user_attrs[POINT]
                if like is not None and not like(values_of(self.sweep, self._points[point])):
                    continue
                self._rows.record_heartbeat(waiting._trial_id)  # first: a claim without a sign of life would never end
                if self._rows.set_trial_state_values(waiting._trial_id, state=self._states.RUNNING):
                    break
            else:
                return None
        self._study.sampler = make_sampler(self.sweep.sampler, waiting.number)
        trial = _quietly(lambda: self._optuna.Trial(self._study, waiting._trial_id))
        self._seen[waiting.number] = set(waiting.intermediate_values)
        chosen = _quietly(lambda: self._choose(trial, self._points[point]))
        attributes = waiting.user_attrs
        values, deaths = values_of(self.sweep, chosen), attributes.get(DEATHS, 0)
        return Claimed(waiting.number, waiting._trial_id, trial, chosen, values, deaths, attributes.get(AGAIN, False))

    def beat(self, claimed: Claimed) -> None:
        """A sign of life of the worker that has claimed a trial."""
        with self._alone():
            self._rows.record_heartbeat(claimed.row)

    def report(self, claimed: Claimed, evaluation: int, value: float) -> bool:
        """Tells the value of an evaluation, counted from 0; whether the pruner would stop the trial there.

        Optuna's pruners count so too: with a count from 1, Hyperband would stop most trials at their last evaluation.
        """
        with self._alone():
            if self._rows.get_trial(claimed.row).state.is_finished():
                return False
            if evaluation not in self._seen[claimed.number]:  # a run that was continued repeats what it had told
                claimed.trial.report(value, evaluation)
                self._seen[claimed.number].add(evaluation)
        return _quietly(claimed.trial.should_prune)

    def finish(self, claimed: Claimed, state: str, value: float | None = None, error: str | None = None) -> None:
        """Ends a trial as "complete" with its value, "pruned", or "failed"; what is ended already stays as it is."""
        with self._alone():
            now = self._rows.get_trial(claimed.row).state
            if now.is_finished():
                return
            if now == self._states.WAITING:  # another worker took this one for dead, and has not begun
                self._rows.set_trial_state_values(claimed.row, state=self._states.RUNNING)
            if error is not None:
                self._rows.set_trial_user_attr(claimed.row, ERROR, error)
            known = {"complete": "COMPLETE", "pruned": "PRUNED", "failed": "FAIL"}
            ended = self._states[known[state]]
            self._study.tell(claimed.number, value if state == "complete" else None, state=ended)

    def give_back(self, claimed: Claimed) -> None:
        """Lets a trial wait again that was stopped and can be continued."""
        with self._alone():
            if self._rows.get_trial(claimed.row).state == self._states.RUNNING:
                self._rows.set_trial_state_values(claimed.row, state=self._states.WAITING)

    def retry(self) -> int:
        """Lets failed trials run again, as new rows; returns how many."""
        with self._alone():
            newest = {trial.user_attrs[POINT]: trial for trial in self._all()}
            failed = [point for point, trial in newest.items() if trial.state == self._states.FAIL]
            for point in failed:
                self._enqueue(point, newest[point].params, again=True)
            return len(failed)

    def rows(self) -> list[Row]:
        """The newest row of each point of the plan, by number."""
        newest = {trial.user_attrs[POINT]: trial for trial in self._all()}
        names = {"FAIL": "failed"}
        return [
            Row(
                number=trial.number,
                state=names.get(trial.state.name, trial.state.name.lower()),
                value=trial.value if trial.state == self._states.COMPLETE else None,
                point=point,
                params={**self._points[point], **trial.params},
                start=trial.datetime_start and trial.datetime_start.timestamp(),
                end=trial.datetime_complete and trial.datetime_complete.timestamp(),
                error=trial.user_attrs.get(ERROR),
            )
            for point, trial in sorted(newest.items(), key=lambda item: item[1].number)
        ]

    def open(self) -> int:
        """How many trials wait or run."""
        return len(self._all(self._states.WAITING, self._states.RUNNING))

    def _all(self, *states: Any) -> list[Any]:
        found = steadily(lambda: self._study.get_trials(deepcopy=False, states=states or None))
        return sorted(found, key=lambda trial: trial.number)

    def _enqueue(self, point: int, params: Mapping[str, Any] | None = None, *, again: bool = False) -> None:
        fixed = {name: label for name, label in self._points[point].items() if name != SEED}
        self._study.enqueue_trial({**fixed, **(params or {})}, user_attrs={POINT: point, AGAIN: again})

    def _choose(self, trial: Any, point: Mapping[str, Any]) -> dict[str, Any]:
        """{axis: label, or number} of a trial. The seed is no parameter of Optuna's, by which a sampler would learn."""
        chosen = dict(point)
        for axis in self._axes:
            if axis.settings:
                chosen[axis.name] = trial.suggest_categorical(axis.name, list(axis.settings))
            else:
                chosen[axis.name] = trial.suggest_float(axis.name, axis.low, axis.high, log=axis.log)
        return chosen

    def _free_silent(self) -> None:
        """Lets the trials of dead workers wait again."""
        for row in self._rows._get_stale_trial_ids(self._id):
            deaths = self._rows.get_trial(row).user_attrs.get(DEATHS, 0) + 1
            self._rows.set_trial_user_attr(row, DEATHS, deaths)
            self._rows.set_trial_state_values(row, state=self._states.WAITING)

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        """One worker at a time; what the database does not answer at once is an error of the place in the end."""
        with held(self.folder, LOCK, wait=True):
            yield


def _connect(url: str, grace: int):
    import sqlalchemy
    from optuna.storages import RDBStorage

    slow = {"connect_args": {"timeout": PATIENCE}} if url.startswith("sqlite") else {"pool_pre_ping": True}
    beats = {"heartbeat_interval": max(1, grace // 3), "grace_period": grace}
    try:
        return _quietly(lambda: RDBStorage(url, engine_kwargs=slow, **beats))
    except (sqlalchemy.exc.ArgumentError, ImportError) as error:
        raise UserError(f"--storage={hidden(url)} cannot be used: {error}") from error
    except sqlalchemy.exc.SQLAlchemyError as error:
        raise RunError(f"The database {hidden(url)} does not answer: {str(error).splitlines()[0]}") from error


def steadily(ask: Callable[[], T]) -> T:
    """What `ask()` returns, asked again for a while where the database does not answer.

    Raises:
      RunError: it does not for `PATIENCE` seconds.
    """
    import sqlalchemy
    from optuna.exceptions import StorageInternalError

    end, pause = time.monotonic() + PATIENCE, 0.5
    while True:
        try:
            return ask()
        except (StorageInternalError, sqlalchemy.exc.OperationalError) as error:
            if time.monotonic() > end:
                raise RunError(f"The database of the study does not answer: {str(error).splitlines()[0]}") from error
            time.sleep(pause)
            pause = min(2 * pause, 10)


def _quietly(act: Callable[[], T]) -> T:
    """`act()` without Optuna's warnings that what it offers is experimental."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return act()


def hidden(url: str) -> str:
    """The URL without its password."""
    import sqlalchemy

    try:
        return sqlalchemy.engine.make_url(url).render_as_string(hide_password=True)
    except sqlalchemy.exc.ArgumentError:
        return url


def open_study(
    folder: Path,
    sweep: Sweep,
    about: Mapping[str, Any],
    *,
    storage: str | None = None,
    grace: int = GRACE,
) -> Study:
    """The study in `folder`, made if it is not there: the same command joins it on any host.

    Args:
      folder: of the study.
      sweep: its axes.
      about: the rest of study.json: `name`, `config`, `base` (what the trials have in common), `metric`, `mode`.
      storage: URL of a database that all hosts reach; None is a file of SQLite in the folder.
      grace: seconds of silence after which a worker counts as dead.

    Raises:
      UserError: the folder holds another study, or one in another database.
      RunError: the database does not answer.
    """
    folder = Path(folder)
    url = f"sqlite:///{(folder / DATABASE).resolve()}" if storage is None else _with_driver(storage)
    mine = {**about, **described(sweep), "storage": "sqlite" if storage is None else hidden(url)}
    with held(folder, LOCK, wait=True):
        path = folder / FILE
        there = json.loads(path.read_text(encoding="utf8")) if path.exists() else {"id": uuid.uuid4().hex[:8]}
        if path.exists():
            _same(folder, there, json.loads(json.dumps(mine)))
        mine["id"] = there["id"]
        if mine != there:
            write_whole(path, json.dumps(mine, indent=1) + "\n")
    return Study(folder, sweep, mine, url, grace=grace)


def described(sweep: Sweep) -> dict[str, Any]:
    """The part of study.json that follows from the axes."""
    given = sweep._asdict()
    axes = {name: given[name] for name in ("grid", "joint", "seeds", "choice", "uniform", "log_uniform") if given[name]}
    return {"axes": axes, "sampler": sweep.sampler, "pruner": sweep.pruner, "trials": len(points(sweep))}


def _same(folder: Path, there: Mapping[str, Any], mine: Mapping[str, Any]) -> None:
    """Refuses another study in the folder. More trials may be sampled than before."""
    free = ("trials", "name", "config", "id", "overrides")
    flat = (flat_config(each) for each in (there, mine))
    one, two = ({key: x for key, x in each.items() if key.partition(".")[0] not in free} for each in flat)
    faults = [
        f"{key}: {one.get(key)!r} → {two.get(key)!r}{'; say in --storage where it is' if key == 'storage' else ''}"
        for key in sorted({*one, *two})
        if one.get(key) != two.get(key)
    ]
    raise_faults(f"{folder} holds another study; give another --study. It differs in (there → here):", faults)


def _with_driver(url: str) -> str:
    """PostgreSQL by psycopg 3, which tljax asks for; SQLAlchemy would look for psycopg2."""
    for scheme in ("postgresql://", "postgres://"):
        if url.startswith(scheme):
            return f"postgresql+psycopg://{url.removeprefix(scheme)}"
    if "://" not in url:
        raise UserError(f"--storage={url} is no URL. {suggest(url, ('postgresql://USER@HOST/NAME', 'sqlite:///FILE'))}")
    return url
