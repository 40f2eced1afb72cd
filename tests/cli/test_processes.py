"""Several real processes that train as one: the results of one process, one writer, one last step, no endless wait."""

import json
import signal
import time
from pathlib import Path

import numpy as np
import pytest

from tests.processes import finish, run, run_alone, start, wait_until
from tests.tiny import save_config, save_csv, save_tiny_bert
from tljax.cli.main import main

MOST_SECONDS = 90
"""After the end of one process the others have ended: 60 s of silence, and what it takes to notice."""


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    folder = tmp_path_factory.mktemp("several")
    checkpoint = save_tiny_bert(folder / "bert")
    data = save_csv(folder / "train.csv")
    # 19 examples: the last batch of an evaluation is not full, and one process has no example of it.
    test = save_csv(folder / "test.csv", 19, seed=1)
    return folder, save_config(folder / "config.py", checkpoint, data, test=test)


def records(workdir: Path) -> list[dict]:
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def numbers(workdir: Path) -> list[dict]:
    """The records without clock times."""
    timed = ("seconds", "steps_per_second")
    return [{k: v for k, v in record.items() if k not in timed} for record in records(workdir)]


def digests(workdir: Path, step: int) -> dict[str, dict]:
    record = workdir / "checkpoints" / str(step) / "record" / "metadata"
    return json.loads(record.read_text())["leaves"]


def values(found, path: str = "") -> dict[str, object]:
    """{slash path: number or text} of nested records."""
    if isinstance(found, dict):
        return {k: v for key, item in found.items() for k, v in values(item, f"{path}/{key}").items()}
    if isinstance(found, list):
        return {k: v for key, item in enumerate(found) for k, v in values(item, f"{path}/{key}").items()}
    return {path: found}


def said(err: str) -> list[str]:
    """The lines of standard error that are not Gloo's greeting."""
    return [line for line in err.splitlines() if not line.startswith("[Gloo]")]


def assert_same(several: Path, alone: Path, *, tolerance: float) -> None:
    """Equal records: as many, of the same steps; numbers within `tolerance`, all else exactly."""
    ours, theirs = values(numbers(several)), values(numbers(alone))
    assert ours.keys() == theirs.keys()
    for path, value in theirs.items():
        if isinstance(value, float):
            np.testing.assert_allclose(ours[path], value, rtol=tolerance, atol=tolerance, err_msg=path)
        else:
            assert ours[path] == value, path


def trained(config: Path, workdir: Path, mesh: str) -> dict[str, np.ndarray]:
    """The leaves that a run trained, read back by this process."""
    from tljax.assembly.experiment import build
    from tljax.assembly.training import trained_variables
    from tljax.base.paths import flatten
    from tljax.cli.config import read_config

    experiment = build(read_config(str(config), None, {"mesh": mesh}))
    variables, _ = trained_variables(experiment, workdir, say=print)
    return {path: np.asarray(leaf) for path, leaf in flatten(variables["params"]).items()}


def test_two_processes_train_as_one(parts):
    folder, config = parts
    command = ["train", f"--config={config}", "--config.mesh={'data': 2}"]
    several, alone = folder / "two", folder / "one"
    found = run([*command, f"--workdir={several}"], processes=2)
    assert main([*command, f"--workdir={alone}"]) == 0
    assert_same(several, alone, tolerance=1e-6)
    assert "report: " in found[0][2] and said(found[1][2]) == []  # process 0 speaks, and it alone
    assert found[0][1] == found[1][1] == ""
    assert (several / "report.html").exists() and len(list((several / "tensorboard").iterdir())) == 1
    ours, theirs = (trained(config, workdir, "{'data': 2}") for workdir in (several, alone))
    for path, leaf in theirs.items():
        np.testing.assert_allclose(ours[path], leaf, rtol=1e-5, atol=1e-6, err_msg=path)


@pytest.mark.long
@pytest.mark.parametrize(
    ("processes", "devices", "mesh"),
    [
        (4, 1, "{'data': 2, 'fsdp': 2}"),
        (2, 2, "{'data': 2, 'tensor': 2}"),
        (2, 2, "{'tensor': 2, 'data': 2}"),  # both processes hold every row
        (4, 1, "{'tensor': 2, 'fsdp': 2}"),  # two processes hold the same rows
    ],
)
def test_a_mesh_of_several_axes_gives_the_run_of_one_process(parts, tmp_path, processes, devices, mesh):
    _, config = parts
    command = ["train", f"--config={config}", f"--config.mesh={mesh}"]
    run([*command, f"--workdir={tmp_path / 'several'}"], processes=processes, devices=devices)
    run_alone([*command, f"--workdir={tmp_path / 'alone'}"], devices=processes * devices)
    assert_same(tmp_path / "several", tmp_path / "alone", tolerance=1e-5)


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """A config of a tiny ResNet on images of three colours, as a dict; the method is missing."""
    folder, generator = tmp_path_factory.mktemp("images"), np.random.default_rng(0)
    entry = {}
    for name, light, count in (("train", 0, 42), ("target", 60, 30), ("test", 60, 17)):
        label = np.arange(count) % 3
        pixels = generator.integers(0, 120, (count, 8, 8, 3)) + light
        pixels[np.arange(count), :, :, label] += 70
        np.savez(folder / f"{name}.npz", image=pixels.astype(np.uint8), label=label)
        entry[name] = {"source": f"npz:{folder}/{name}.npz", "processor": {"size": 8}}
    return {
        "model": {"family": "cifar_resnet", "variant": {"blocks": 1, "widths": [4, 4, 8]}},
        "task": {"name": "classification", "init": "normal"},
        "optim": {"name": "adamw", "learning_rate": 1e-2},
        "data": entry,
        "train": {"batch_size": 12, "steps": 6, "eval_every": 3, "log_every": 1},
        "mesh": {"data": 2},
    }


VIEWS = {"weak": {"flip": True}, "strong": {"brightness": 0.4, "crop": 2}}
CASES = {
    "a survey, and the two domains at the end": {"method": {"name": "importance"}},
    "random views and a teacher": {
        "method": {"name": "fixmatch"},
        "data": {"unlabelled": {"source": "target", "views": VIEWS}},
    },
    "episodes": {
        "method": {"name": "prototypes", "ways": 3, "shots": 1, "queries": 1},
        "task": {"name": "few_shot", "episodes": {"ways": 3, "shots": 1, "queries": 1, "count": 20}},
        "data": {"train": {"episodes": {"ways": 3, "shots": 1, "queries": 1}}},
    },
    "phases, accumulation and an average": {
        "strategy": {"gradual_unfreezing": {"every": 3, "unit": "steps"}, "ema": {"decay": 0.9}},
        "train": {"accumulate": 2, "steps": 12},
    },
    "augmentation by worker processes": {"data": {"train": {"augment": {"flip": True, "crop": 2}, "workers": 1}}},
}


@pytest.mark.long
@pytest.mark.parametrize("case", CASES)
def test_what_methods_and_strategies_do_is_done_by_two_processes_too(images, tmp_path, case):
    config = {**images, **{k: v for k, v in CASES[case].items() if k not in ("data", "train")}}
    config["train"] = {**images["train"], **CASES[case].get("train", {})}
    config["data"] = dict(images["data"])
    for name, options in CASES[case].get("data", {}).items():
        given = images["data"][options.get("source", name)]
        config["data"][name] = {**given, **options, "source": given["source"]}
    path = tmp_path / "config.py"
    path.write_text(f"def get_config():\n    return {config!r}\n")
    command = ["train", f"--config={path}"]
    run([*command, f"--workdir={tmp_path / 'several'}"], processes=2)
    run_alone([*command, f"--workdir={tmp_path / 'alone'}"], devices=2)
    assert_same(tmp_path / "several", tmp_path / "alone", tolerance=1e-5)


LONG = ["--config.mesh={'data': 2}", "--config.train.steps=400", "--config.train.eval_every=50"]
LONG += ["--config.train.save_every=20"]


@pytest.fixture(scope="module")
def undisturbed(parts):
    folder, config = parts
    run(["train", f"--config={config}", f"--workdir={folder / 'undisturbed'}", *LONG], processes=2)
    return folder / "undisturbed"


def begun(workdir: Path) -> bool:
    """Whether a run is on its way and has saved something."""
    return any((workdir / "checkpoints").glob("[0-9]*/record/metadata")) and len(records(workdir)) > 20


@pytest.mark.long
@pytest.mark.parametrize("victim", [0, 1])
def test_the_death_of_one_ends_the_others_and_a_restart_has_the_bits_of_an_undisturbed_run(
    parts, undisturbed, tmp_path, victim
):
    _, config = parts
    workdir = tmp_path / "killed"
    command = ["train", f"--config={config}", f"--workdir={workdir}", *LONG]
    started = start(command, processes=2)
    wait_until(lambda: begun(workdir))
    started[victim].send_signal(signal.SIGKILL)
    at = time.monotonic()
    found = finish(started, timeout=MOST_SECONDS)
    code, _, err = found[1 - victim]
    print(f"process {1 - victim} ended with {code} after {time.monotonic() - at:.1f} s:\n{err[-2000:]}")
    assert code in (3, -signal.SIGABRT), err
    assert "Another process has ended" in err or "another task died" in err, err
    assert numbers(workdir) != numbers(undisturbed)
    run(command, processes=2)
    assert numbers(workdir) == numbers(undisturbed)
    assert digests(workdir, 400) == digests(undisturbed, 400)


@pytest.mark.long
@pytest.mark.parametrize(("stopped", "number"), [(0, signal.SIGTERM), (1, signal.SIGTERM), (1, signal.SIGINT)])
def test_a_signal_to_one_stops_all_after_the_same_step(parts, undisturbed, tmp_path, stopped, number):
    _, config = parts
    workdir = tmp_path / "stopped"
    command = ["train", f"--config={config}", f"--workdir={workdir}", *LONG]
    started = start(command, processes=2)
    wait_until(lambda: begun(workdir))
    started[stopped].send_signal(number)
    found = finish(started, timeout=MOST_SECONDS)
    expected = [143, 143]
    expected[stopped] = 128 + number
    assert [code for code, _, _ in found] == expected, found
    assert "saved at step" in found[0][2]
    run(command, processes=2)
    assert numbers(workdir) == numbers(undisturbed)
    assert digests(workdir, 400) == digests(undisturbed, 400)


@pytest.mark.long
def test_a_damaged_checkpoint_is_set_aside_once_and_all_go_back_to_the_same_step(parts, tmp_path):
    _, config = parts
    workdir, once = tmp_path / "damaged", tmp_path / "once"
    same = ["--config.mesh={'data': 2, 'fsdp': -1}", "--config.optim.schedule=constant", "--config.optim.warmup=2"]
    command = ["train", f"--config={config}", *same]
    run([*command, f"--workdir={workdir}", "--config.train.steps=8"], processes=2)
    files = sorted((workdir / "checkpoints" / "8" / "state").rglob("d/*"), key=lambda file: file.stat().st_size)
    data = bytearray(files[-1].read_bytes())
    data[len(data) // 2] ^= 4
    files[-1].write_bytes(data)
    found = run([*command, f"--workdir={workdir}"], processes=2)
    assert found[0][2].count("is damaged") == 1 and "continuing from step 4" in found[0][2]
    assert "is damaged" not in found[1][2] and "tljax" not in found[1][2]
    assert [path.name for path in (workdir / "checkpoints" / "quarantine").iterdir()] == ["8"]
    run([*command, f"--workdir={once}"], processes=2)
    assert digests(workdir, 12) == digests(once, 12)


@pytest.mark.long
def test_two_processes_evaluate_and_predict(parts, tmp_path):
    _, config = parts
    workdir = tmp_path / "run"
    given = [f"--config={config}", "--config.mesh={'data': 2}", f"--workdir={workdir}"]
    run(["train", *given], processes=2)
    before = [r for r in records(workdir) if r["kind"] == "evaluate" and r["split"] == "test"]
    run(["evaluate", *given], processes=2)
    after = [r for r in records(workdir) if r["kind"] == "evaluate" and r["split"] == "test"]
    assert len(after) == len(before) + 1 and after[-1]["metrics"] == before[-1]["metrics"]
    texts = ["--text=red warm", "--text=green cold old", "--text=red"]
    found = run(["predict", *given, *texts], processes=2)
    alone = run_alone(["predict", *given, *texts], devices=2)
    assert found[1][1] == ""
    ours, theirs = ([json.loads(line) for line in out.splitlines()] for out in (found[0][1], alone.stdout))
    assert [line["text"] for line in ours] == ["red warm", "green cold old", "red"]
    for mine, other in zip(ours, theirs, strict=True):
        assert mine["label"] == other["label"]
        for name, value in other["probabilities"].items():
            assert mine["probabilities"][name] == pytest.approx(value, abs=1e-5)


@pytest.mark.long
def test_mistakes_end_all_processes_and_are_said(parts, tmp_path):
    folder, config = parts
    command = ["train", f"--config={config}", f"--workdir={tmp_path / 'a'}", "--config.mesh={'data': 2}"]
    found = finish(start([*command, "--config.model.source=no/such"], processes=2), timeout=MOST_SECONDS)
    assert [code for code, _, _ in found] == [2, 2], found
    assert "process 1 of 2: " in found[1][2] and "no/such" in found[1][2]
    found = finish(start([*command, "--config.mesh={'data': 1}"], processes=2), timeout=MOST_SECONDS)
    assert [code for code, _, _ in found] == [2, 2] and "leave some idle" in found[0][2], found
    run(command, processes=2)
    found = finish(start([*command, "--config.seed=1"], processes=2), timeout=MOST_SECONDS)
    assert [code for code, _, _ in found] == [2, 2], found
    assert all("belongs to another config" in err for _, _, err in found)
    kept = json.loads((tmp_path / "a" / "config.json").read_text())
    assert kept["config"]["seed"] == 0 and folder.exists()


@pytest.mark.long
def test_what_fails_in_one_process_alone_ends_the_others(parts, tmp_path):
    """One machine of several lacks a file."""
    _, config = parts
    workdir = tmp_path / "w"
    common = ["train", f"--config={config}", f"--workdir={workdir}", "--config.mesh={'data': 2}"]
    data = "{'text': 'review', 'label': 'mood'}"
    common += [f"--config.data.test={{'source': 'csv:$ONLY_HERE/test.csv', 'columns': {data}}}"]
    started = start(common, processes=2, variables=[{"ONLY_HERE": str(parts[0])}, {"ONLY_HERE": str(tmp_path)}])
    found = finish(started, timeout=MOST_SECONDS)
    assert found[1][0] == 2 and "process 1 of 2: " in found[1][2] and "test.csv" in found[1][2], found
    assert found[0][0] in (3, -signal.SIGABRT), found


@pytest.mark.long
def test_other_commands_and_a_folder_of_ones_own_are_refused(parts, tmp_path):
    _, config = parts
    started = start(
        ["train", f"--config={config}", "--config.mesh={'data': 2}", f"--workdir={tmp_path / 'w'}"],
        processes=2,
        more=[["--config.seed=0"], ["--config.seed=1"]],
    )
    found = finish(started, timeout=MOST_SECONDS)
    assert [code for code, _, _ in found] == [2, 2] and "was given to process 1" in found[0][2], found
