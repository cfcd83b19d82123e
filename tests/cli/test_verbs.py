"""Every verb: what it asks of the API, what it prints for people and as JSON, and its exit code."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from cli_fakes import Done, FakeApi, FakeRun
from made_run import DENSE, KEPT, TILE, layer_times, measurement, ops, result

from hwprune.core.comparison import compare
from hwprune.core.errors import DeviceError, UsageError
from hwprune.core.measurement import Prediction, Target
from hwprune.core.widths import ChannelGroup, SearchSpace
from hwprune.report.comparison import ComparedRun, MethodComparison
from hwprune.report.run_data import LayerProfile, Result
from hwprune.report.waterfall import waterfall

Hw = Callable[..., Done]


SPACE = SearchSpace((ChannelGroup("a", 64), ChannelGroup("b", 32)), ((16, 32, 64), (16, 32)))


@dataclass(frozen=True)
class FakeBench:
    measurements: dict[str, Any]
    comparisons: tuple[Any, ...]
    verdict: str
    pairs: dict[str, Any] = field(default_factory=dict)
    failures: dict[str, Any] = field(default_factory=dict)
    build_s: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class FakeTable:
    folder: Path = Path("latency_tables/cpu/x")
    model_name: str = "resnet20"
    tile: int = TILE
    reference_ms: float = 0.2
    damaged_lines: int = 0
    rows: tuple[Any, ...] = (SimpleNamespace(latency_ms=0.4), SimpleNamespace(latency_ms=1.25))
    space: SearchSpace = SPACE
    fingerprint: Any = field(default_factory=lambda: measurement("x", 1.0, seed=1, simulated=False).fingerprint)


def made(verdict: str = "pass") -> FakeRun:
    folder = Path("runs/made-up")
    return FakeRun(folder, result(folder, verdict=verdict, simulated=False))


@pytest.mark.parametrize(("verdict", "code"), [("pass", 0), ("miss", 1), ("infeasible", 1)])
def test_search_exits_with_its_verdict(hw: Hw, api: FakeApi, verdict: str, code: int) -> None:
    api.answers["search"] = made(verdict)
    done = hw("search", "--latency", "60%")
    assert done.code == code
    assert f"verdict   {verdict}" in done.out
    assert ("next: hwprune explain runs/made-up" in done.err) == (verdict == "pass")


def test_search_passes_its_flags_on(hw: Hw, api: FakeApi) -> None:
    api.answers["search"] = made()
    words = "search resnet20 --data npz:x --latency-ms 4 --method greedy --set floor=0.3 --set a=b=c --seed 7"
    words += " --protect head --protect layer*.0 --max-params 2M --max-macs 1.5G"
    words += " --threads 2 --batch 4 --samples 50 --tile 8 --min-keep 0.5 --epochs 3 --run-dir out --statistic p90"
    assert hw(*words.split()).code == 0
    name, args, kwargs = api.calls[0]
    assert (name, args) == ("search", ("resnet20", "npz:x"))
    expected = {"latency_ms": 4.0, "method": "greedy", "options": {"floor": "0.3", "a": "b=c"}, "seed": 7}
    expected |= {"threads": 2, "batch": 4, "samples": 50, "tile": "8", "min_keep": 0.5, "epochs": 3.0}
    expected |= {"run_dir": Path("out"), "statistic": "p90", "latency": None, "protect": ["head", "layer*.0"]}
    expected |= {"max_params": "2M", "max_macs": "1.5G"}
    assert {key: kwargs[key] for key in expected} == expected
    assert kwargs["stop"]() is False


def test_the_sampler_is_an_option_of_the_method(hw: Hw, api: FakeApi) -> None:
    api.answers["search"] = made()
    words = ("search", "--latency", "60%", "--method", "metapruning", "--set", "parents=4", "--sampler", "tpe")
    assert hw(*words).code == 0
    assert api.last["options"] == {"parents": "4", "sampler": "tpe"}


@pytest.mark.parametrize(("verdicts", "code"), [(("pass", "pass"), 0), (("pass", "failed"), 1)])
def test_compare(hw: Hw, api: FakeApi, verdicts: tuple[str, ...], code: int) -> None:
    runs = tuple(ComparedRun("60%", name, 0, verdict) for name, verdict in zip("ab", verdicts, strict=True))
    api.answers["compare"] = MethodComparison("net", "digits", Target(), "top-1", 0.9, 6.0, 100, runs, (), False)
    api.answers["comparison_folder"] = Path("runs/compare_net")
    words = (
        "compare resnet20 --data x.py:f --methods greedy,metapruning:sampler=random --budgets 60%,4ms --seeds 3"
        " --seed 7 --epochs 8"
    )
    done = hw(*words.split(), "--baselines", "greedy", "--run-dir", "out")
    assert done.code == code
    assert done.out.rstrip().endswith("out/comparison.html")
    expected = {"methods": ("greedy", "metapruning:sampler=random"), "budgets": ("60%", "4ms"), "seeds": 3, "seed": 7}
    expected |= {"baselines": ("greedy",), "run_dir": Path("out"), "epochs": 8.0, "total_epochs": 0.0}
    assert {key: api.last[key] for key in expected} == expected
    assert "unknown method 'greddy'. Did you mean 'greedy'" in hw("compare", "--methods", "greddy").err


def test_search_json_is_the_result(hw: Hw, api: FakeApi) -> None:
    api.answers["search"] = made()
    document = hw("search", "--latency", "60%", "--json").json
    assert next(iter(document)) == "schema"
    assert document["schema"] == "hwprune.search/1"
    assert Result.from_json(document) == made().result


def test_profile(hw: Hw, api: FakeApi) -> None:
    api.answers["profile"] = FakeTable()
    done = hw("profile", "resnet20", "--input", "1x3x32x32", "--device", "cpu", "--samples", "20")
    assert done.code == 0
    assert api.calls[0][1] == ("resnet20", (1, 3, 32, 32))
    assert "measured  2 networks, 0.400 ms to 1.25 ms" in done.out
    assert "next: hwprune fit latency_tables/cpu/x" in done.err
    document = hw("profile", "--json").json
    assert document["schema"] == "hwprune.profile/1"
    assert (document["rows"], document["tile"], document["networks"]) == (2, TILE, 6)


def test_fit(hw: Hw, api: FakeApi) -> None:
    figures = {"mape": 0.012, "within_5": 1.0, "within_10": 1.0, "spearman": 0.99, "kendall": 0.9}
    figures |= {"wrong_sign": 0.0, "cosine": math.nan}
    scored = SimpleNamespace(kind="lpnet", scores=SimpleNamespace(to_json=lambda: figures), reason="")
    failed = SimpleNamespace(kind="forest", scores=None, reason="too few networks")
    model = SimpleNamespace(fitted=SimpleNamespace(fingerprint=FakeTable().fingerprint))
    api.answers["fit"] = SimpleNamespace(
        comparison=(scored, failed), chosen="lpnet", model=model, train_count=75, held_out_count=25, label_noise=None
    )
    done = hw("fit", "resnet20", "--kinds", "lpnet, forest")
    assert api.last["kinds"] == ("lpnet", "forest")
    assert done.out.startswith("cpu: made-up CPU, onnxruntime")
    assert "fitted on 75 networks, judged on 25 held-out ones; label noise unknown" in done.out
    assert "<- chosen" in done.out
    assert "too few networks" in done.out
    document = hw("fit", "--json").json
    assert document["scores"]["lpnet"]["cosine"] is None
    assert document["scores"]["forest"] is None
    assert document["reasons"] == {"forest": "too few networks"}


def test_predict_is_labelled_predicted(hw: Hw, api: FakeApi) -> None:
    api.answers["predict"] = Prediction(0.3051, 0.004, 0.974)
    done = hw("predict", "resnet20", "--widths", "a=16, b=32")
    assert api.calls[0][2]["widths"] == {"a": 16, "b": 32}
    assert done.out.splitlines()[0] == "0.305 ms predicted, ± 0.0040 ms (one sigma)"
    assert "coverage 97.4 %" in done.out
    assert hw("predict", "--json").json == {
        "schema": "hwprune.predict/1",
        "predicted_ms": 0.3051,
        "error_ms": 0.004,
        "coverage": 0.974,
        "simulated": False,
    }


def test_a_prediction_for_the_simulated_device_is_stamped(hw: Hw, api: FakeApi) -> None:
    api.answers["predict"] = Prediction(0.3051, 0.004, 0.974, simulated=True)
    assert hw("predict", "--device", "sim").out.startswith("SIMULATED 0.305 ms predicted")
    assert hw("predict", "--device", "sim", "--json").json["simulated"] is True


def test_predict_reads_widths_from_a_result(hw: Hw, api: FakeApi, workplace: Path) -> None:
    api.answers["predict"] = Prediction(1.0, 0.1, 1.0)
    (workplace / "result.json").write_text('{"widths": {"a": 16}}')
    assert hw("predict", "--widths", "result.json").code == 0
    assert api.calls[0][2]["widths"] == {"a": 16}


@pytest.mark.parametrize("text", ["a", "a=b", "a=1,b"])
def test_widths_that_are_none(hw: Hw, api: FakeApi, text: str) -> None:
    done = hw("predict", "--widths", text)
    assert done.code == 2
    assert f"error: --widths {text} does not give one whole number a group" in done.err


def test_finetune(hw: Hw, api: FakeApi) -> None:
    api.answers["finetune"] = made()
    assert hw("finetune", "last", "--epochs", "2").code == 0
    assert api.calls[0][1] == ("last",)
    assert api.last["epochs"] == 2.0
    assert hw("finetune", "--json").json["schema"] == "hwprune.finetune/1"


@pytest.mark.parametrize(("difference", "code", "word"), [(2e-6, 0, "pass"), (2e-3, 1, "FAIL")])
def test_export(hw: Hw, api: FakeApi, difference: float, code: int, word: str) -> None:
    api.answers["export"] = SimpleNamespace(
        path=Path("m.onnx"), size_bytes=2_000_000, max_difference=difference, tolerance=1e-4
    )
    done = hw("export", "last", "--output", "m.onnx")
    assert done.code == code
    assert api.calls[0][1] == ("last", None, Path("m.onnx"))
    assert done.out.startswith("wrote m.onnx (1.9 MiB)" if word == "pass" else "did not write m.onnx (1.9 MiB)")
    assert ("next: hwprune bench m.onnx" in done.err) is (word == "pass")
    assert done.out.rstrip().endswith(word)
    assert hw("export", "--json").json["verdict"] == word.lower()


@pytest.mark.parametrize(("verdict", "code"), [("pass", 0), ("fail", 1)])
def test_bench(hw: Hw, api: FakeApi, verdict: str, code: int) -> None:
    timed = {name: measurement(name, 3.0, seed=seed, simulated=False) for seed, name in enumerate(("a", "b"))}
    api.answers["bench"] = FakeBench(timed, (compare(timed["a"], timed["b"]),), verdict)
    done = hw("bench", "a.onnx", "b.onnx", "--fail-above", "0.004s", "--protocol", "quick", "--laps", "10")
    assert done.code == code
    assert api.calls[0][1] == ("a.onnx", "b.onnx")
    assert (api.last["fail_above"], api.last["protocol"], api.last["laps"]) == (4.0, "quick", 10)
    document = hw("bench", "a.onnx", "--json").json
    assert document["verdict"] == verdict
    assert [item["subject"] for item in document["results"]] == ["a", "b"]
    assert document["results"][0]["p99_ms"] is None
    assert document["comparisons"][0]["verdict"] in ("faster", "slower", "no difference shown")


def test_bench_of_several_runtimes(hw: Hw, api: FakeApi) -> None:
    subjects = {f"net on {name}": SimpleNamespace(model="net", runtime=name) for name in ("onnxruntime", "openvino")}
    timed = {
        subject: measurement(subject, ms, seed=seed, simulated=False)
        for seed, (subject, ms) in enumerate(zip(subjects, (3.0, 1.5), strict=True))
    }
    one, other = timed.values()
    error = DeviceError("ncnn is not installed", hint="pip install ncnn")
    api.answers["bench"] = FakeBench(
        timed,
        (compare(one, other),),
        "pass",
        pairs=subjects,
        failures={"net on ncnn": error},
        build_s={"net on onnxruntime": 0.02, "net on openvino": 1.0},
    )
    done = hw("bench", "net", "--runtime", "onnxruntime,openvino,ncnn")
    assert done.code == 0
    assert api.last["runtime"] == "onnxruntime,openvino,ncnn"
    row = next(line for line in done.out.splitlines() if line.startswith("net") and "openvino" in line)
    assert "0.50" in row
    assert "FAIL: net on ncnn: ncnn is not installed (pip install ncnn)" in done.out
    document = hw("bench", "net", "--runtime", "onnxruntime,openvino,ncnn", "--json").json
    assert document["schema"] == "hwprune.bench/1"
    assert [(item["model"], item["build_s"]) for item in document["results"]] == [("net", 0.02), ("net", 1.0)]
    assert document["failures"] == [{"subject": "net on ncnn", "error": error.message, "hint": error.hint}]
    done = hw("bench", "net", "--runtime", "onnxruntime,openvino", "--fail-above", "2ms")
    assert "net on onnxruntime: FAIL: not under 2.00 ms" in done.out
    assert "net on openvino: pass: under 2.00 ms" in done.out


def test_bench_without_a_subject(hw: Hw, api: FakeApi) -> None:
    done = hw("bench")
    assert done.code == 2
    assert "missing argument" in done.err


def test_bench_knows_its_protocols(hw: Hw, api: FakeApi) -> None:
    done = hw("bench", "a.onnx", "--protocol", "quik")
    assert done.code == 2
    assert "unknown protocol 'quik'. Did you mean 'quick'?" in done.err


def test_explain(hw: Hw, api: FakeApi) -> None:
    profile = LayerProfile(TILE, layer_times(DENSE, 1), layer_times(KEPT, 2), ops(DENSE), ops(KEPT))
    api.answers["explain"] = waterfall(profile, dense_ms=3.0, pruned_ms=1.8)
    done = hw("explain", "last", "--rows", "10")
    assert done.code == 0
    assert "25 -> padded to 32" in done.out
    document = hw("explain", "--json").json
    assert document["schema"] == "hwprune.explain/1"
    assert document["rows"][3]["why"] == "25 -> padded to 32"


def test_a_run_is_named_by_run_dir_too(hw: Hw, api: FakeApi, workplace: Path) -> None:
    (workplace / "report.html").write_text("<html>")
    api.answers["report"] = workplace / "report.html"
    assert hw("report", "--run-dir", "runs/x").code == 0
    assert api.calls[-1][1] == ("runs/x",)
    assert hw("report", "runs/y", "--run-dir", "runs/x").code == 0
    assert api.calls[-1][1] == ("runs/y",)
    done = hw("report", "--json")
    assert done.json == {"schema": "hwprune.report/1", "path": str(workplace / "report.html"), "size_bytes": 6}


def test_devices(hw: Hw, api: FakeApi) -> None:
    from hwprune.devices.files import Connection, DeviceInfo, RuntimeInfo

    offers = {"onnxruntime": RuntimeInfo()}
    cpu = DeviceInfo("cpu", aliases=("host",), description="this one", runtimes=offers, source="cpu.toml")
    board = DeviceInfo("desk", connection=Connection("ssh", "ann@10.0.0.7"), runtimes=offers)
    template = DeviceInfo("orin", connection=Connection("ssh"), runtimes=offers)
    api.answers["devices"] = (cpu, board, template)
    done = hw("devices")
    assert [line.split() for line in done.out.splitlines()[1:]] == [
        ["cpu", "this", "machine", "host", "onnxruntime"],
        ["desk", "ann@10.0.0.7", "-", "onnxruntime"],
        ["orin", "no", "host", "yet", "-", "onnxruntime"],
    ]
    assert "next: hwprune devices new NAME --from KIND" in done.err
    assert hw("devices", "-v").out.splitlines()[1].endswith("onnxruntime  this one")
    documents = hw("devices", "--json").json["devices"]
    assert documents[0]["runtimes"] == ["onnxruntime"]
    assert [item["template"] for item in documents] == [False, False, True]


def test_the_shipped_devices_fit_a_terminal(hw: Hw) -> None:
    golden = Path(__file__).parent / "golden" / "devices.txt"
    done = hw("devices")
    assert done.out == golden.read_text()
    assert max(map(len, done.out.splitlines())) <= 80


def test_devices_new(hw: Hw, api: FakeApi) -> None:
    from hwprune.devices.files import DeviceInfo

    api.answers["new_device"] = lambda name, *, source, connection, aliases: DeviceInfo(
        name, aliases=aliases, connection=connection, source=f"{name}.toml"
    )
    flags = ("--from", "jetson-orin-nano", "--host", "ann@10.0.0.7", "--port", "2222", "--alias", "jetson")
    done = hw("devices", "new", "desk", *flags)
    assert done.out == "wrote desk.toml\n"
    assert "ssh -p 2222 ann@10.0.0.7" in done.err
    assert "hwprune doctor --device desk" in done.err
    assert api.last["source"] == "jetson-orin-nano"
    assert api.last["aliases"] == ("jetson",)
    keys = ("--identity-file", "~/keys/id", "--known-hosts", "hosts")
    told = hw("devices", "new", "desk", "--from", "jetson-orin-nano", "--host", "ann@10.0.0.7", *keys).err
    assert "ssh -i ~/keys/id -o UserKnownHostsFile=hosts ann@10.0.0.7" in told
    wrong = hw("devices", "nwe")
    assert wrong.code == 2
    assert "Did you mean 'new'?" in wrong.err
    assert "needs a name, --from and --host" in hw("devices", "new", "desk").err
    assert "-oProxyCommand" in hw("devices", "new", "desk", "--from", "cpu", "--host=-oProxyCommand=x").err


def test_profile_on_several_devices(hw: Hw, api: FakeApi) -> None:
    api.answers["profile_devices"] = UsageError("no board today")
    done = hw("profile", "digits_resnet", "--device", "a,b", "--samples", "20")
    assert done.code == 2
    assert api.last["devices"] == ["a", "b"]
    assert api.last["samples"] == 20
    assert "device" not in api.last


@pytest.mark.parametrize(("status", "code"), [("pass", 0), ("warn", 0), ("fail", 1)])
def test_doctor(hw: Hw, api: FakeApi, status: str, code: int) -> None:
    from hwprune.devices import Check

    api.answers["doctor"] = (Check("load", status, "2.1 of 2 cores busy", "stop other work"),)
    done = hw("doctor", "--device", "cpu")
    assert done.code == code
    assert ("fix: stop other work" in done.out) == (status != "pass")
    failed, warned = int(status == "fail"), int(status == "warn")
    ending = f"{failed} check{'s' * (failed != 1)} failed, {warned} warning{'s' * (warned != 1)}"
    assert done.out.rstrip().endswith(ending)
    assert hw("doctor", "--json").json["checks"][0]["status"] == status


def test_compare_has_the_same_defaults_in_python(hw: Hw, api: FakeApi) -> None:
    import inspect

    api.answers["compare"] = UsageError("asked")
    api.answers["comparison_folder"] = Path("runs/compare_net")
    assert "asked" in hw("compare").err
    parameters = inspect.signature(api.real.compare).parameters
    for name in ("methods", "budgets", "seeds", "baselines"):
        assert api.last[name] == parameters[name].default
