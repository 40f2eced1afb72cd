"""Tables of plug-ins: look-up with suggestions, and calls checked by signature."""

import pytest

from tljax.base.errors import UserError
from tljax.base.tables import call, lookup, options_of, suggest

TABLE = {"flatten": "tljax.base.paths:flatten", "assign": "tljax.base.paths:assign", "gone": "tljax.base.nowhere:x"}


def plugin(given, *, rate, depth=2):
    return given, rate, depth


def open_ended(given, *, depth=2, **axes):
    return given, depth, axes


def test_a_name_and_an_import_string_both_lead_to_the_plug_in():
    from tljax.base.paths import flatten

    assert lookup(TABLE, "flatten", what="thing") is flatten
    assert lookup({}, "tljax.base.paths:flatten", what="thing") is flatten


def test_an_unknown_name_gets_the_nearest_and_all():
    with pytest.raises(
        UserError, match=r"no thing called 'flaten'. Did you mean 'flatten'\? Accepted: assign, flatten"
    ):
        lookup(TABLE, "flaten", what="thing")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("tljax.nowhere:f", "cannot be imported"),
        ("no_such_package_at_all:f", "cannot be imported"),
        ("tljax.base.paths:flaten", "has no 'flaten'. Did you mean 'flatten'"),
    ],
)
def test_an_import_string_that_leads_nowhere_is_the_users_error(name, message):
    with pytest.raises(UserError, match=message):
        lookup(TABLE, name, what="thing")


def test_a_broken_table_and_a_missing_import_inside_a_plug_in_are_not(tmp_path, monkeypatch):
    with pytest.raises(ModuleNotFoundError):
        lookup(TABLE, "gone", what="thing")
    (tmp_path / "users_plugin.py").write_text("import a_package_that_nobody_has\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ModuleNotFoundError, match="nobody_has"):
        lookup(TABLE, "users_plugin:f", what="thing")


def test_suggestions():
    assert suggest("fine_tun", ["scratch", "fine_tune"]) == "Did you mean 'fine_tune'? Accepted: fine_tune, scratch."
    assert suggest("zzz", ["scratch"]) == "Accepted: scratch."
    assert suggest("zzz", []) == "Accepted: (none)."


def test_a_call_passes_what_is_given_and_keeps_defaults():
    assert call(plugin, (1,), {"rate": 3}, where="config.x") == (1, 3, 2)


def test_a_call_names_all_unknown_and_missing_keys():
    with pytest.raises(UserError) as caught:
        call(plugin, (1,), {"dept": 3, "given": 4}, where="config.x")
    message = str(caught.value)
    assert "config.x.dept is not an option of plugin. Did you mean 'depth'? Accepted: depth, rate." in message
    assert "config.x.given is not an option" in message
    assert "config.x.rate is required by plugin" in message


def test_a_function_with_open_options_checks_them_itself():
    assert call(open_ended, (1,), {"data": 3}, where="config.x") == (1, 2, {"data": 3})


def test_the_options_of_a_function():
    assert list(options_of(plugin, 1)) == ["rate", "depth"]
    assert list(options_of(open_ended, 1)) == ["depth"]
