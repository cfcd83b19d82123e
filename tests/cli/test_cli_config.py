"""Where a flag's value comes from: the flag, the environment, the file, the default, in this order."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
from cli_fakes import Done, FakeApi, FakeRun
from made_run import result

from hwprune.cli._config import line_of, parse_options
from hwprune.cli._verb import signature_of
from hwprune.core.errors import UsageError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

Hw = Callable[..., Done]


@pytest.fixture
def search(api: FakeApi) -> FakeApi:
    api.answers["search"] = FakeRun(Path("runs/x"), result(Path("runs/x")))
    return api


def test_precedence(hw: Hw, search: FakeApi, workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hw("search", "--latency", "60%")
    assert search.last["threads"] == 1
    (workplace / "hwprune.toml").write_text('threads = 2\nlatency = "50%"\n')
    hw("search")
    assert (search.last["threads"], search.last["latency"]) == (2, "50%")
    monkeypatch.setenv("HWPRUNE_THREADS", "3")
    hw("search")
    assert search.last["threads"] == 3
    hw("search", "--threads", "4")
    assert search.last["threads"] == 4


def test_the_users_own_file_lies_below_the_projects(hw: Hw, search: FakeApi, workplace: Path, tmp_path: Path) -> None:
    own = tmp_path / "config" / "hwprune" / "config.toml"
    own.parent.mkdir(parents=True)
    own.write_text("threads = 2\nseed = 5\n")
    (workplace / "hwprune.toml").write_text('threads = 3\nlatency = "50%"\n')
    hw("search")
    assert {key: search.last[key] for key in ("threads", "seed", "latency")} == {
        "threads": 3,
        "seed": 5,
        "latency": "50%",
    }
    out = hw("search", "--print-config").out
    assert re.search(r"threads = 3 +# hwprune.toml", out)
    assert re.search(r"seed = 5 +# .*config.toml", out)
    own.write_text("threads = 2\nsead = 5\n")
    done = hw("search")
    assert done.code == 2
    assert "did you mean 'seed'?" in done.err.replace("\n", " ").lower()


def test_another_file_by_config(hw: Hw, search: FakeApi, workplace: Path) -> None:
    (workplace / "hwprune.toml").write_text("threads = 2\n")
    (workplace / "other.toml").write_text('latency_ms = 3\nseed = 9\ndevice = "sim"\n')
    hw("search", "--config", "other.toml")
    found = {key: search.last[key] for key in ("threads", "latency_ms", "seed", "device")}
    assert found == {"threads": 1, "latency_ms": 3.0, "seed": 9, "device": "sim"}


def test_the_model_and_data_of_the_working_directory(hw: Hw, search: FakeApi, workplace: Path) -> None:
    (workplace / "hwprune.toml").write_text('model = "net.py:build"\ndata = "digits"\n')
    hw("search", "--latency-ms", "10")
    assert search.calls[-1][1] == ("net.py:build", "digits")
    hw("search", "resnet20", "--latency-ms", "10")
    assert search.calls[-1][1] == ("resnet20", "digits")


def test_a_model_in_the_environment(hw: Hw, search: FakeApi, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HWPRUNE_MODEL", "resnet56")
    hw("search", "--latency", "60%", "--data", "digits")
    assert search.calls[-1][1][0] == "resnet56"


def test_a_table_for_one_verb_and_the_methods_options(hw: Hw, search: FakeApi, workplace: Path) -> None:
    text = 'seed = 1\n[search]\nseed = 2\nlatency = "50%"\n[options]\nscore_lr = 0.1\njoint = true\nranks = [1, 2]\n'
    (workplace / "hwprune.toml").write_text(text)
    hw("search")
    assert search.last["seed"] == 2
    assert search.last["options"] == {"score_lr": "0.1", "joint": "true", "ranks": "1,2"}
    hw("search", "--set", "score_lr=0.2")
    assert search.last["options"] == {"score_lr": "0.2"}


def test_a_flag_of_another_verb_is_left_alone(hw: Hw, api: FakeApi, workplace: Path) -> None:
    (workplace / "hwprune.toml").write_text('latency_ms = 4\nfail_above = "9ms"\n')
    api.answers["devices"] = ()
    assert hw("devices").code == 0


def _budget(api: FakeApi) -> tuple[float | None, str | None]:
    return api.last["latency_ms"], api.last["latency"]


def test_of_two_spellings_of_the_budget_the_higher_place_counts(
    hw: Hw, search: FakeApi, workplace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = tmp_path / "config" / "hwprune" / "config.toml"
    own.parent.mkdir(parents=True)
    own.write_text('latency = "70%"\n')
    (workplace / "hwprune.toml").write_text("latency_ms = 6\n")
    hw("search")
    assert _budget(search) == (6.0, None)
    (workplace / "hwprune.toml").write_text('latency_ms = 6\n[search]\nlatency = "60%"\n')
    hw("search")
    assert _budget(search) == (None, "60%")
    hw("search", "--latency-ms", "4")
    assert _budget(search) == (4.0, None)
    assert re.search(r"# not set: .*latency\b(?!_)", hw("search", "--latency-ms", "4", "--print-config").out)
    monkeypatch.setenv("HWPRUNE_LATENCY_MS", "5")
    hw("search")
    assert _budget(search) == (5.0, None)
    hw("search", "--latency", "50%")
    assert _budget(search) == (None, "50%")


def test_two_budgets_from_one_place_are_refused_with_the_place(
    hw: Hw, search: FakeApi, workplace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    both = hw("search", "--latency-ms", "5", "--latency", "4ms")
    assert (both.code, both.err) == (
        2,
        "error: --latency-ms 5.0 and --latency 4ms are two budgets\nhint: give one of them\n",
    )
    (workplace / "hwprune.toml").write_text('latency_ms = 5\nlatency = "60%"\n')
    assert "error: hwprune.toml: --latency-ms 5.0 and --latency 60% are two budgets" in hw("search").err
    monkeypatch.setenv("HWPRUNE_LATENCY_MS", "5")
    monkeypatch.setenv("HWPRUNE_LATENCY", "60%")
    assert "error: HWPRUNE_LATENCY_MS: --latency-ms 5.0 and --latency 60% are two budgets" in hw("search").err
    assert search.calls == []


OF_SEARCH = (
    'model = "resnet20"\ndata = "npz:other.npz"\nepochs = 0.25\nweights = "dense.safetensors"\ninput = "1x3x8x8"\n'
)


def test_a_run_keeps_its_own_settings(hw: Hw, search: FakeApi, workplace: Path, tmp_path: Path) -> None:
    """The top of a file means the next search; flag, environment and the verb's own table mean the run."""
    search.answers["finetune"] = search.answers["search"]
    (workplace / "hwprune.toml").write_text(OF_SEARCH)
    hw("search", "--latency", "60%")
    assert (search.calls[-1][1][1], search.last["epochs"]) == ("npz:other.npz", 0.25)
    hw("finetune", "runs/x")
    assert (search.last["data"], search.last["epochs"]) == (None, None)
    assert re.search(r"# not set: .*epochs.*data", hw("finetune", "--print-config").out)
    hw("finetune", "runs/x", "--epochs", "2")
    assert (search.last["data"], search.last["epochs"]) == (None, 2.0)
    own = tmp_path / "config" / "hwprune" / "config.toml"
    own.parent.mkdir(parents=True)
    own.write_text("[finetune]\nepochs = 3\n")
    hw("finetune", "runs/x")
    assert (search.last["data"], search.last["epochs"]) == (None, 3.0)


def test_a_model_that_is_exported_takes_what_a_run_would_not(
    hw: Hw, api: FakeApi, workplace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    api.answers["export"] = SimpleNamespace(path=Path("m"), size_bytes=1, max_difference=0.0, tolerance=1.0)
    (workplace / "hwprune.toml").write_text(OF_SEARCH)
    (workplace / "runs" / "x").mkdir(parents=True)
    (workplace / "runs" / "x" / "run.toml").touch()
    for subject in ("last", "x", "runs/x"):
        hw("export", subject)
        assert (api.calls[-1][1][1], api.last["weights"], api.last["data"]) == (None, None, None)
    hw("export", "resnet20")
    assert api.calls[-1][1][1] == (1, 3, 8, 8)
    assert (str(api.last["weights"]), api.last["data"]) == ("dense.safetensors", "npz:other.npz")
    assert 'data = "npz:other.npz"  # hwprune.toml' in hw("export", "resnet20", "--print-config").out
    monkeypatch.setenv("HWPRUNE_DATA", "digits")
    hw("export", "x")
    assert api.last["data"] is None, "a variable is as little meant for this run as the file"
    hw("export", "resnet20")
    assert api.last["data"] == "digits"
    for subject in ("resnet20", "x"):
        hw("export", subject, "--data", "cifar10:x")
        assert api.last["data"] == "cifar10:x"


def test_an_unknown_key_names_file_line_and_nearest(hw: Hw, search: FakeApi, workplace: Path) -> None:
    (workplace / "hwprune.toml").write_text('# mine\n\ndevice = "cpu"\nlatency-ms = 4\n')
    done = hw("search")
    assert done.code == 2
    assert "error: hwprune.toml: no key 'latency-ms'. Did you mean 'latency_ms'?   (line 4)" in done.err
    assert search.calls == []


def test_an_unknown_key_in_a_verbs_table(hw: Hw, search: FakeApi, workplace: Path) -> None:
    (workplace / "hwprune.toml").write_text('device = "cpu"\n[search]\nepoch = 4\n')
    assert "hwprune.toml: [search] has no key 'epoch'. Did you mean 'epochs'?   (line 3)" in hw("search").err


def test_an_unknown_table_is_compared_with_tables(hw: Hw, search: FakeApi, workplace: Path) -> None:
    (workplace / "hwprune.toml").write_text("threads = 1\n\n[serch]\nseed = 4\n")
    error, hint = hw("search").err.splitlines()
    assert error == "error: hwprune.toml: no table [serch]. Did you mean 'search'?   (line 3)"
    assert hint.startswith("hint: a table is a verb's (search, compare, ")
    (workplace / "hwprune.toml").write_text("[option]\nfloor = 1\n")
    assert "no table [option]. Did you mean 'options'?" in hw("search").err


def test_the_hint_for_an_unknown_key_is_short(hw: Hw, search: FakeApi, workplace: Path) -> None:
    (workplace / "hwprune.toml").write_text("sede = 4\n")
    hint = hw("search").err.splitlines()[1]
    assert hint == "hint: keys are the flags of the verbs, with underscores: hwprune search --help"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("options = 3", "'options' must be a table of method options"),
        ("[options", "is not a TOML file"),
        ("device = [[1]]", "'device' must be a plain value or a list of them"),
    ],
)
def test_files_that_are_no_configuration(hw: Hw, search: FakeApi, workplace: Path, text: str, message: str) -> None:
    (workplace / "hwprune.toml").write_text(text)
    done = hw("search", "--latency", "60%")
    assert done.code == 2
    assert message in done.err


def test_a_wrong_value_says_where_it_stands(
    hw: Hw, search: FakeApi, workplace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (workplace / "hwprune.toml").write_text('threads = "two"\n')
    assert "error: hwprune.toml: Invalid value for '--threads'".lower() in hw("search").err.lower()
    monkeypatch.setenv("HWPRUNE_THREADS", "three")
    assert "error: hwprune_threads: invalid value" in hw("search").err.lower()


def test_print_config_names_every_origin(
    hw: Hw, search: FakeApi, workplace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (workplace / "hwprune.toml").write_text('device = "sim"\n')
    monkeypatch.setenv("HWPRUNE_SEED", "5")
    done = hw("search", "--latency", "60%", "--set", "a=1", "--print-config")
    assert done.code == 0
    assert search.calls == []
    assert 'latency = "60%"  # flag' in done.out
    assert 'device = "sim"  # hwprune.toml' in done.out
    assert "seed = 5  # HWPRUNE_SEED" in done.out
    assert "threads = 1  # default" in done.out
    assert "# not set: model, latency_ms" in done.out
    assert tomllib.loads(done.out)["options"] == {"a": "1"}


def test_print_config_is_read_back_by_config(hw: Hw, search: FakeApi, workplace: Path) -> None:
    line = "search resnet20 --data d --latency-ms 4 --set a=1 --threads 2 --statistic p90 --min-keep 0.3 --tables t"
    line += " --protect a --protect b.*"
    words = line.split()
    (workplace / "saved.toml").write_text(hw(*words, "--print-config").out)
    hw(*words)
    direct = search.calls[-1]
    hw("search", "--config", "saved.toml")
    again = search.calls[-1]
    assert direct[1] == again[1]
    callables = ("on_event", "stop")
    assert {k: v for k, v in direct[2].items() if k not in callables} == {
        k: v for k, v in again[2].items() if k not in callables
    }


def test_print_config_of_a_run_is_read_back_too(hw: Hw, search: FakeApi, workplace: Path) -> None:
    search.answers["finetune"] = search.answers["search"]
    printed = hw("finetune", "runs/x", "--epochs", "2", "--data", "digits", "--seed", "3", "--print-config").out
    assert tomllib.loads(printed)["finetune"] == {"data": "digits", "epochs": 2.0}
    assert "epochs = 2.0  # flag" in printed
    (workplace / "saved.toml").write_text(printed)
    hw("finetune", "--config", "saved.toml")
    assert search.calls[-1][1] == ("runs/x",)
    assert {key: search.last[key] for key in ("data", "epochs", "seed")} == {"data": "digits", "epochs": 2.0, "seed": 3}


def test_line_of_keys() -> None:
    text = 'a = 1\n[search]\na = 2\n"b" = 3\n[options]\nc = 1\n'
    assert line_of(text, "", "a") == 1
    assert line_of(text, "search", "a") == 3
    assert line_of(text, "search", "b") == 4
    assert line_of(text, "", "options") == 5
    assert line_of(text, "", "absent") == 0


def test_options_are_pairs() -> None:
    assert parse_options(["a=1", " b = x=y "]) == {"a": "1", "b": "x=y"}
    with pytest.raises(UsageError, match="--set =1 is not KEY=VALUE"):
        parse_options(["=1"])


def test_defaults_of_flags_are_the_apis(real_api: object) -> None:
    """None in the API stands for the default of the run's settings, which the help shows."""
    import inspect

    from hwprune.cli import _flags, bench, compare, doctor, finetune, fit, predict, profile, search
    from hwprune.search.settings import DEFAULTS

    shared = {"search": _flags.SPACE_FLAGS, "profile": _flags.SPACE_FLAGS, "predict": _flags.TABLE_FLAGS}
    shared["bench"] = _flags.TARGET_FLAGS
    checked = 0
    for module in (bench, compare, doctor, finetune, fit, predict, profile, search):
        name = module.__name__.rsplit(".", 1)[1]
        flags = {item.name: item for item in signature_of(getattr(module, name), shared.get(name, ()))}
        for parameter in inspect.signature(getattr(real_api, name)).parameters.values():
            if parameter.name not in flags or parameter.default is parameter.empty:
                continue
            expected = parameter.default
            if isinstance(expected, tuple):
                expected = ",".join(expected)
            if expected is None and flags[parameter.name].default is not None:
                expected = getattr(DEFAULTS, parameter.name, None)
            assert str(flags[parameter.name].default) == str(expected), f"{name} --{parameter.name}"
            checked += 1
    assert checked > 40


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('[data]\npath = "x"\n', "'data' must be a plain value or a list of them"),
        ("threads = true\n", "'threads' is true; it takes a value"),
        ('set = ["a=1"]\n', "no key 'set'"),
    ],
)
def test_values_of_the_wrong_kind_are_refused(hw: Hw, workplace: Path, text: str, message: str) -> None:
    (workplace / "hwprune.toml").write_text(text)
    done = hw("search", "--print-config")
    assert done.code == 2
    assert f"error: hwprune.toml: {message}" in done.err


def test_one_value_of_a_repeatable_flag_is_a_list_of_one(hw: Hw, workplace: Path) -> None:
    (workplace / "hwprune.toml").write_text('protect = "layer1"\n')
    assert 'protect = ["layer1"]  # hwprune.toml' in hw("search", "--print-config").out


def test_a_limit_is_a_number_or_a_text(hw: Hw, workplace: Path) -> None:
    (workplace / "hwprune.toml").write_text('max_params = 2000000\nmax_macs = "1.5G"\n')
    told = hw("search", "--print-config").out
    assert 'max_params = "2000000"  # hwprune.toml' in told
    assert 'max_macs = "1.5G"  # hwprune.toml' in told
    (workplace / "hwprune.toml").write_text('max_params = "2 million"\n')
    done = hw("search", "--print-config")
    assert done.code == 2
    assert "'2 million' is not a count above 0" in done.err


def test_method_options_come_from_the_environment_too(hw: Hw, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HWPRUNE_SET", "a=1 b=2")
    assert '[options]\na = "1"  # HWPRUNE_SET\nb = "2"  # HWPRUNE_SET\n' in hw("search", "--print-config").out


def test_variables_of_the_next_search_do_not_change_a_finished_run(hw: Hw, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HWPRUNE_EPOCHS", "7")
    assert "# not set: epochs" in hw("finetune", "last", "--print-config").out
    assert "epochs = 2.0  # flag" in hw("finetune", "last", "--epochs", "2", "--print-config").out


def test_the_configuration_is_a_document_too(hw: Hw, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HWPRUNE_THREADS", "2")
    document = json.loads(hw("search", "--print-config", "--json").out)
    assert document["schema"] == "hwprune.search.config/1"
    assert document["threads"] == {"value": 2, "from": "HWPRUNE_THREADS"}
    assert document["latency"] == {"value": None, "from": "default"}


def test_a_group_has_one_width(hw: Hw) -> None:
    done = hw("predict", "--device", "simulated", "--widths", "a=16,b=8, a=32")
    assert done.code == 2
    assert "names a group twice" in done.err
