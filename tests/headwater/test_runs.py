"""`headwater ps`, `logs` and `stop`: what is known of runs without asking those who began them."""

import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from headwater.cli import main
from headwater.cli.local.display import JsonLines
from headwater.cli.local.process import Process
from headwater.cli.local.runs import BusyError, Part, Run, alone, record, runs, stop

LIVES = """
import os, signal, sys
from pathlib import Path
from headwater.cli.local.runs import Part, Run, alone, record
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
folder = Path(sys.argv[1])
with alone(folder):
    record(folder, Run("pair", "pair.yaml", os.getpid(), "http://127.0.0.1:9", ["m", "n"],
                       [Part("m-0", "http://127.0.0.1:9", "/ready", str(folder / "m-0.log"))]))
    print("up", flush=True)
    signal.sigwait({signal.SIGTERM})
"""


@pytest.fixture
def state(tmp_path: Path) -> Path:
    (tmp_path / "pair").mkdir()
    (tmp_path / "pair/m-0.log").write_text("first\nsecond\nhalf a li")
    (tmp_path / "pair/router.log").write_text("routing\n")
    return tmp_path


@pytest.fixture
def living(state: Path):
    command = [sys.executable, "-c", LIVES, str(state / "pair")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stdout.readline() == "up\n"
        yield process
        process.kill()


def test_a_run_is_listed_as_long_as_it_lives_however_it_ends(living, state: Path, capsys) -> None:
    assert [(each.name, each.pid) for each in runs(state)] == [("pair", living.pid)]
    assert main(["ps", "--state", str(state), "--json"]) == 0
    (told,) = json.loads(capsys.readouterr().out)
    assert told["models"] == ["m", "n"]
    assert [(part["name"], part["state"]) for part in told["parts"]] == [("m-0", "no answer")]
    living.kill()
    living.wait()
    assert (state / "pair/up.json").exists()
    assert runs(state) == []
    assert main(["ps", "--state", str(state), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == []


def test_a_run_that_is_stopped_has_ended(living, state: Path, capsys) -> None:
    with pytest.raises(BusyError, match=str(living.pid)), alone(state / "pair"):
        pass
    assert main(["stop", "--state", str(state), "pair"]) == 0
    assert living.wait(60) == 0
    assert not (state / "pair/up.json").exists()
    assert main(["stop", "--state", str(state)]) == 1
    assert "nothing is up here" in capsys.readouterr().err


def test_a_run_that_does_not_end_is_said_to_go_on(state: Path) -> None:
    run = Run("pair", "pair.yaml", 2**22 + 1, "", [], [])  # No process has this number.
    with alone(state / "pair"):
        record(state / "pair", run)
        # The lock is of the open file: this process sees its own.
        assert stop(state, run, patience=0.0) is False


@pytest.mark.parametrize(
    ("names", "lines"),
    [
        ([], ["m-0: first", "m-0: second", "router: routing"]),
        (["m-0"], ["first", "second"]),
        (["pair"], ["m-0: first", "m-0: second", "router: routing"]),
    ],
)
def test_logs_are_printed_by_whole_lines(names: list[str], lines: list[str], state: Path, capsys) -> None:
    assert main(["logs", "--state", str(state), *names]) == 0
    assert capsys.readouterr().out.splitlines() == lines


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("logs nosuch", "there is no log of 'nosuch'; there are: m-0, router"),
        ("stop nosuch", "'nosuch' is not up, nor is anything else"),
    ],
)
def test_who_is_not_there_is_named(line: str, message: str, state: Path, capsys) -> None:
    assert main([*line.split(), "--state", str(state)]) == 1
    assert message in capsys.readouterr().err


def test_programs_are_told_of_changes_alone() -> None:
    told, process = io.StringIO(), Process("m-0", [], "http://e", "/ready", Path(os.devnull))
    display = JsonLines(told)
    for status in ("starting", "starting", "ready"):
        process.status = status
        display.update([process])
    display.ready("http://g/v1", ["m"])
    lines = [json.loads(line) for line in told.getvalue().splitlines()]
    assert [line.get("state") for line in lines] == ["starting", "ready", None]
    assert lines[-1] == {"ready": "http://g/v1", "models": ["m"]}


def test_a_part_is_read_as_it_was_written(state: Path) -> None:
    part = Part("m-0", "http://e", "/ready", "log")
    with alone(state / "pair"):
        record(state / "pair", Run("pair", "f", os.getpid(), "http://g", ["m"], [part]))
        assert runs(state)[0].parts == [part]
