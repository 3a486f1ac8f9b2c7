"""`polyhead bench` itself: a whole quick run on a tiny model, and what it says of peers that are not there."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, cast

import psutil
import pytest

from polyhead.client import PolyheadError
from polyhead.client.bench import runner
from polyhead.client.bench.measures.fleet import judged
from polyhead.client.bench.plan import MEASURES, BadPlan, Plan, chosen, flags_of
from polyhead.client.bench.results import Row
from polyhead.client.bench.runner import Notebook
from polyhead.client.bench.session import Session
from tests.e2e.forked import finished

REAL_COMMAND = [sys.executable, "-m", "polyhead.client.cli.main", "bench"]
COMMAND = [sys.executable, "-m", "tests.bench.forked_command", "bench"]
TINY_SERVER = "--split-layer 2 --cache-bytes 32000000"


def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return finished([*COMMAND, *arguments], **environment)


def last_line(done: subprocess.CompletedProcess[str]) -> Any:
    return json.loads(done.stdout.splitlines()[-1])


def test_a_quick_run_measures_every_goal(tiny_model: Path, tmp_path: Path) -> None:
    """Numbers for each of P1 to P12, in the table, in the last line and in the file; a resumed run measures nothing again."""
    file = tmp_path / "bench.json"
    arguments = ["--quick", "--peers", "none", "--model", str(tiny_model), "--server-args", TINY_SERVER, "--json", str(file)]
    done = run(*arguments)
    assert done.returncode == 0, done.stderr
    result = last_line(done)
    assert json.loads(file.read_text(encoding="utf-8")) == result
    assert {row["id"].split(" ")[0] for row in result["rows"]} == set(MEASURES)
    for row in result["rows"]:
        assert all(series["values"] or "memory" in row["id"] for series in row["series"]), row
    assert result["machine"]["threads"] == os.cpu_count()
    assert "torch" in result["versions"]
    resumed = run(*arguments, "--resume")
    assert "measuring" not in resumed.stderr
    assert last_line(resumed) == result


@pytest.mark.long
def test_quality_growth_and_the_same_bits(tiny_model: Path, tmp_path: Path) -> None:
    """float32 against itself agrees in everything; every curve becomes a picture."""
    plots = tmp_path / "plots"
    arguments = ["--quick", "--peers", "none", "--model", str(tiny_model), "--server-args", TINY_SERVER]
    result = last_line(run(*arguments, "--only", "deterministic,quality", "--growth", "--plots", str(plots)))
    rows = {row["id"]: row for row in result["rows"]}
    assert [series["name"].endswith("--deterministic") for series in rows["deterministic"]["series"]] == [True, False]
    served, exact = (each["median"] for each in rows["quality perplexity"]["series"])
    assert served == pytest.approx(exact, rel=1e-4)
    assert rows["quality choices"]["series"][0]["median"] == pytest.approx(1.0, abs=0.02)
    assert {path.name for path in plots.iterdir()} == {"heads.svg", "context.svg", "streams.svg", "rules.svg"}
    assert all(len(row["series"]) == 2 for name, row in rows.items() if name.startswith("growth"))


@pytest.mark.long
def test_a_fleet_is_measured_and_judged_where_there_are_cores(tiny_model: Path) -> None:
    done = run("--quick", "--only", "fleet", "--peers", "none", "--model", str(tiny_model), "--server-args", TINY_SERVER)
    rows = {row["id"]: row for row in last_line(done)["rows"]}
    assert set(rows) == {"fleet", "fleet swap", "fleet bytes"}
    assert all(series["values"] and min(series["values"]) > 0 for row in rows.values() for series in row["series"])
    assert [check["is_met"] is None for check in rows["fleet"]["checks"]] == [(os.cpu_count() or 1) < 4]


def test_two_cores_judge_no_fleet() -> None:
    assert [judged(2.9, cores)[0].verdict for cores in (2, 3, 4)] == ["open", "open", "met"]
    assert judged(2.0, 8)[0].verdict == "MISSED"
    assert "2 cores for 3 processes" in judged(2.9, 2)[1][0]


@pytest.mark.long
def test_a_soak_ends_with_a_verdict(tiny_model: Path) -> None:
    result = last_line(run("--quick", "--soak", "0.05", "--peers", "none", "--model", str(tiny_model)))
    row, pace = result["rows"]
    verdicts = {check["goal"].split(":")[0]: check for check in row["checks"]}
    assert verdicts["failed calls"]["reached"] == 0
    assert verdicts["blocks in use when all is over"]["reached"] == 0
    assert len(row["series"][0]["values"]) == 10
    assert [len(series["values"]) for series in pace["series"]] == [result["runs"]] * 2
    assert pace["checks"][0]["reached"] > 0


def test_a_missing_peer_is_a_row_with_its_reason(tiny_model: Path, tmp_path: Path) -> None:
    """One that cannot be installed, one that has no file for this model: each says so, and the rest is measured."""
    (tmp_path / "envs").write_text("no folder", encoding="utf-8")
    arguments = ["--quick", "--only", "P3", "--peers", "vllm,openvino", "--model", str(tiny_model), "--peer-envs", str(tmp_path / "envs")]
    done = run(*arguments)
    assert done.returncode == 0, done.stderr
    [row] = last_line(done)["rows"]
    ours, vllm, openvino = row["series"]
    assert ours["values"]
    assert "no environment at" in vllm["error"]
    assert "GGUF" in openvino["error"]
    assert [check["is_met"] for check in row["checks"]] == [None]
    assert f"not measured: {vllm['error']}" in done.stdout


@pytest.mark.long
def test_transformers_is_measured_beside_ours(tiny_model: Path) -> None:
    """Both ways to generate, and the whole passes of the scoring measures."""
    done = run("--quick", "--only", "P3,P4,P5,P6", "--model", str(tiny_model), "--server-args", TINY_SERVER)
    rows = {row["id"]: row for row in last_line(done)["rows"]}
    assert set(rows) == {"P3", "P4", "P5", "P5 output", "P6", "P6 cold"}
    for row in rows.values():
        assert len(row["series"]) >= 2
        assert all(series["values"] for series in row["series"]), row
        assert all(check["is_met"] is not None for check in row["checks"])


@pytest.mark.long
def test_an_interrupted_run_prints_what_it_has_and_leaves_nothing(tiny_model: Path) -> None:
    """SIGTERM as well as Ctrl-C: the row that was done, JSON in the last line, no server behind. Workers: test_worker.py."""
    arguments = ["--quick", "--only", "P3,P9", "--peers", "none", "--model", str(tiny_model)]
    process = subprocess.Popen([*REAL_COMMAND, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    for line in process.stderr:
        if "measuring P9" in line:
            break
    children = psutil.Process(process.pid).children(recursive=True)
    process.send_signal(signal.SIGTERM)
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 130
    assert [row["id"] for row in json.loads(out.splitlines()[-1])["rows"]] == ["P3"]
    assert children
    end_at = time.monotonic() + 60.0
    while any(child.is_running() for child in children) and time.monotonic() < end_at:
        time.sleep(0.05)
    assert not [child for child in children if child.is_running()]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--only", "P13"], "no such measure: P13"),
        (["--peers", "sglang"], "no such peer: sglang"),
        (["--only", "soak"], "a soak needs its length"),
        (["--only", "P3", "--peers", "none", "--server-args", "--trunk-dtype nonsense"], "our server does not start"),
    ],
)
def test_what_cannot_be_done_is_said(arguments: list[str], said: str) -> None:
    done = run(*arguments)
    assert done.returncode == 2
    assert said in done.stderr


def test_a_resumed_run_remembers_whom_it_was_measured_beside(tmp_path: Path) -> None:
    """A run that went on without vLLM wrote vLLM's numbers under the versions of its own engines alone."""
    file = tmp_path / "bench.json"
    Notebook(file, ["--peers", "vllm"]).add([Row("P1", "decode", "tokens/s", True)], {"versions": {"torch": "1", "vllm": "2"}})
    later = Notebook(file, ["--resume"])
    assert later.resume() == {"P1"}
    assert json.loads(later.json)["versions"] == {"torch": "1", "vllm": "2"}
    later.add([Row("P2", "decode", "tokens/s", True)], {"versions": {"torch": "3"}, "runs": 5})
    written = json.loads(file.read_text(encoding="utf-8"))
    assert written["versions"] == {"torch": "3", "vllm": "2"}
    assert [row["id"] for row in written["rows"]] == ["P1", "P2"]
    assert (written["command"], written["runs"]) == (["--resume"], 5)


def test_a_resumed_run_tries_again_what_failed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: object) -> Row:
        raise PolyheadError("no server")

    monkeypatch.setitem(cast(dict[str, Any], runner.RUNS), "P2", fail)
    notebook = Notebook(tmp_path / "bench.json", [])
    notebook.add([Row("P1", "decode", "tokens/s", True), *runner.measured(cast(Session, None), "P2")], {"versions": {}})
    later = Notebook(notebook.file, ["--resume"])
    assert later.resume() == {"P1"}
    assert [row.id for row in later.rows] == ["P1"]


def test_a_file_that_is_no_result_is_refused(tmp_path: Path) -> None:
    (tmp_path / "other.json").write_text("[]", encoding="utf-8")
    done = run("--json", str(tmp_path / "other.json"), "--resume")
    assert done.returncode == 2
    assert "is no result of" in done.stderr


def test_plans() -> None:
    assert chosen("P10, P1", MEASURES, "measure") == ("P1", "P10")
    with pytest.raises(BadPlan):
        chosen("P0", MEASURES, "measure")
    plan = Plan(("P1",), (), model="folder", num_threads=2)
    flags = plan.server_flags("--trunk-dtype int8 --insecure --port=7")
    assert flags_of(flags) == {"model": "folder", "threads": "2", "trunk_dtype": "int8", "insecure": "true", "port": "7"}
