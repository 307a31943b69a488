"""What the benchmark of a GPU makes of its measurements, as far as no GPU is needed for that."""

import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from xml.etree import ElementTree

import pytest

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "benchmarks" / "gpu"


@pytest.fixture(autouse=True)
def benchmarks(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """They are scripts, which find one another by their folder."""
    for folder in (FOLDER, FOLDER.parent):
        monkeypatch.syspath_prepend(str(folder))
    before = set(sys.modules)
    yield
    for name in set(sys.modules) - before:
        if str(FOLDER.parent) in str(getattr(sys.modules[name], "__file__", "")):
            del sys.modules[name]


def test_the_floor_of_a_step_reads_weights_once_and_each_context() -> None:
    from floors import attention_bytes, causal_operations, decode_bytes

    # Llama-3.1-8B: 15.01 GB of weights and 131,072 bytes a token, at the 3.35 TB/s of an H100.
    milliseconds = [decode_bytes(15_010_000_000, 131_072, n, 1024) / 3.35e12 * 1e3 for n in (1, 32, 128)]
    assert milliseconds == pytest.approx([4.52, 5.76, 9.61], abs=0.01)
    assert decode_bytes(100, 2, 8, 50, shared=40) == 100 + 2 * (8 * 10 + 40)
    assert attention_bytes(4, 10, 2, 3) == 4 * 10 * 2 + 2 * 4 * 3
    # Three tokens behind two see 3, 4 and 5 keys.
    assert causal_operations(3, 5, 7) == 4 * 7 * (3 + 4 + 5)


def test_percentiles_are_measured_values() -> None:
    from load import Answer, Summary, percentile

    values = [float(n) for n in range(100, 0, -1)]
    assert [percentile(values, share) for share in (0.01, 0.5, 0.99, 1)] == [1, 50, 99, 100]
    assert percentile([], 0.5) == 0
    answers = [
        Answer(0.0, [1.0, 1.5, 4.0], output_tokens=3, cached_tokens=0, ended=4.0),
        Answer(0.0, [2.0], output_tokens=1, cached_tokens=5, ended=2.0),
    ]
    found = Summary.of(answers, 10)
    assert (found.ttft, found.ttft_p99) == (1.5, 2.0)
    assert (found.gap_p50, found.gap_p99) == (0.5, 2.5)
    assert (found.tokens_per_s, found.cached_share) == (1.0, 0.5)


def test_each_row_is_in_the_file_before_the_next_is_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("triton", reason="torch for CPUs comes without Triton")
    import measure

    monkeypatch.setattr(measure, "OUT", tmp_path / "new")
    monkeypatch.setattr(measure, "machine", lambda: {"gpu": "none"})
    report = measure.Report("step", ("sequences", "floor ms"))
    report.note(bandwidth=5.0)
    for rows in (1, 2):
        report.row(rows, 0.125)
        content = json.loads((tmp_path / "new" / "step.json").read_text())
        assert content["machine"] == {"gpu": "none"} and content["bandwidth"] == 5
        assert content["rows"][rows - 1] == {"sequences": rows, "floor ms": 0.125}
    assert "| 2 | 0.125 |" in capsys.readouterr().out


def test_the_plot_has_a_bar_for_each_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import plot

    step = {"machine": {"gpu": "A & B"}, "rows": [{"sequences": 32, "floor ms": 5.0, "step ms": 6.25}]}
    serve = {"machine": {"gpu": "A & B"}, "rows": [
        {"load": "512 in", "concurrent": n, "output tok/s": rate} for n, rate in ((32, 2000.0), (128, 4000.0))
    ]}  # fmt: skip
    (tmp_path / "step.json").write_text(json.dumps(step))
    monkeypatch.setattr(sys, "argv", ["plot.py", str(tmp_path)])
    plot.main()  # as where time ran out before serving
    assert (tmp_path / "gpu.svg").read_text().count("<rect") == 1
    (tmp_path / "serve.json").write_text(json.dumps(serve))
    plot.main()
    drawn = ElementTree.parse(tmp_path / "gpu.svg").getroot()
    widths = [float(each.attrib["width"]) for each in drawn.iter("{http://www.w3.org/2000/svg}rect")]
    assert widths == [0.8 * plot.WIDTH, 0.5 * plot.WIDTH, plot.WIDTH]
    labels = [text.text for text in drawn.iter("{http://www.w3.org/2000/svg}text")]
    assert "80% of the floor's rate" in labels and "128 at once" in " ".join(map(str, labels))


def test_all_parts_of_a_benchmark_end_within_eight_minutes() -> None:
    script = (FOLDER / "run").read_text()
    parts = re.search(r"for name in \$\{\*:-([\w ]+)\}", script)
    assert parts is not None
    limits = dict(re.findall(r"part (\w+) \"\$\{\w+_SECONDS:-(\d+)\}\"", script))
    assert sum(int(limits[name]) for name in parts[1].split()) <= 480


def test_make_gpu_test_runs_all_tests_that_run_on_whichever_device_there_is() -> None:
    script = (FOLDER / "run").read_text()
    found = {
        path.name
        for path in (ROOT / "tests/engine").glob("test_*.py")
        if "from tests.engine.devices import" in path.read_text() and path != Path(__file__)
    }
    assert {"test_models.py", "test_overlap.py", "test_smollm2.py"} <= found
    assert not {name for name in found | {"test_inputs.py"} if f"tests/engine/{name}" not in script}
    parts = re.search(r"gpu/run (.*)$", (ROOT / "Makefile").read_text().partition("\ngpu-test:")[2], re.MULTILINE)
    assert parts is not None and parts[1].split() == ["tests", "smollm2"]


def test_loads_are_those_that_are_spoken_of(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("triton", reason="torch for CPUs comes without Triton")
    import serve

    assert [(shared, at_once) for _, shared, at_once in serve.LOADS] == [(0, 32), (4096, 32), (4096, 128), (4096, 256)]
    one, other = serve.prompts(2, 4096, seed=1), serve.prompts(1, 4096, seed=2)
    assert one[0][:4096] == one[1][:4096] == other[0][:4096]
    assert len({tuple(prompt[4096:]) for prompt in (*one, *other)}) == 3
    assert all(len(prompt) == 4096 + serve.INPUT for prompt in one)
