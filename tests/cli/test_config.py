"""Reading configs and values from the command line."""

import json
import textwrap

import pytest

from tljax.base.errors import UserError
from tljax.cli.config import literal, read_config
from tljax.cli.main import parse


@pytest.fixture
def config_file(tmp_path):
    path = tmp_path / "small.py"
    path.write_text(
        textwrap.dedent("""
        from ml_collections import ConfigDict

        def get_config():
            config = ConfigDict()
            config.seed = 1
            config.train = dict(steps=10, sizes=(1, 2))
            return config
        """)
    )
    return path


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("3", 3),
        ("1e-4", 1e-4),
        ("[1, 2]", [1, 2]),
        ("(1, 2)", [1, 2]),
        ("{'a': 1}", {"a": 1}),
        ("None", None),
        ("true", True),
        ("'3'", "3"),
        ("adamw", "adamw"),
        ("csv:/a b.csv", "csv:/a b.csv"),
    ],
)
def test_values_are_literals_or_strings(text, value):
    assert literal(text) == value


def test_overrides_reach_old_and_new_keys(config_file):
    verb, arguments = parse(
        [f"--config={config_file}", "--config.train.steps=20", "--config.optim.name", "sgd", "--workdir=w"]
    )
    assert verb == "train"
    assert arguments.config == {"seed": 1, "train": {"steps": 20, "sizes": [1, 2]}, "optim": {"name": "sgd"}}


def test_a_run_folder_supplies_its_own_config(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"config": {"seed": 5}}))
    assert read_config(None, tmp_path, {"seed": "6"}) == {"seed": 6}
    assert read_config(None, tmp_path / "elsewhere", {}) is None


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["trian"], "Did you mean 'train'"),
        (["--wrkdir=x"], "Did you mean '--workdir'"),
        (["--config.train.steps=3"], "no --config=FILE"),
        (["--config=configs/minilm_stbs.py"], r"Did you mean 'configs/minilm_stsb\.py'"),
        (["--config=FILE", "--config.train.steps"], "needs a value"),
        (["--config=FILE", "--config.seed.deep=1"], r"config\.seed is 1, not a section"),
    ],
)
def test_mistakes_name_the_culprit_and_the_cure(config_file, argv, message, monkeypatch):
    with pytest.raises(UserError, match=message):
        parse([word.replace("FILE", str(config_file)) for word in argv])


@pytest.mark.parametrize(("body", "message"), [("x = (", "SyntaxError"), ("y = 1", r"defines no get_config")])
def test_a_broken_config_file_is_named(tmp_path, body, message):
    path = tmp_path / "broken.py"
    path.write_text(body)
    with pytest.raises(UserError, match=rf"broken\.py.*{message}|{message}"):
        parse([f"--config={path}"])
