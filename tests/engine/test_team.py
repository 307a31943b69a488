"""The threads that kernels share their work with: what they promise, and that a step needs no others."""

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch

from headwater_engine.kernels.cpu import CppKernels, Products
from headwater_engine.quantization.stored import StoredWeight
from tests.engine.tiny import make_tiny

KERNELS = Path(__file__).parents[2] / "engine/headwater_engine/kernels"


@pytest.mark.parametrize("sanitizer", ["address,undefined", "thread"])
def test_the_team_keeps_its_promises(tmp_path: Path, sanitizer: str) -> None:
    program = tmp_path / "team_check"
    sources = [Path(__file__).with_name("team_check.cpp"), KERNELS / "team.cpp"]
    flags = ["-std=c++20", "-O1", "-g", "-pthread", f"-fsanitize={sanitizer}", f"-I{KERNELS}"]
    subprocess.run(["g++", *flags, *map(str, sources), "-o", str(program)], check=True)
    options = {"TSAN_OPTIONS": "die_after_fork=0 report_thread_leaks=0"}
    run = subprocess.run([program], env=os.environ | options, capture_output=True, text=True, timeout=300)
    assert (run.stdout, run.returncode) == ("all held\n", 0), run.stderr


def test_other_python_threads_run_while_a_long_product_does() -> None:
    """Counted, not timed: no thread gives the interpreter's lock away by itself here but for a kernel."""
    linear = CppKernels(torch.float32, Products.FLOAT32).linear([StoredWeight(torch.zeros(2048, 2048))])
    x = torch.zeros(512, 2048)
    turns: list[int] = []
    begin, interval = threading.Event(), sys.getswitchinterval()

    def take_a_turn() -> None:
        begin.wait()
        turns.append(1)

    other = threading.Thread(target=take_a_turn)
    sys.setswitchinterval(1000)
    try:
        other.start()
        begin.set()
        for _ in range(100):
            if turns:
                break
            linear(x)
        assert turns
    finally:
        sys.setswitchinterval(interval)
        other.join()


DECODING = """
import os, sys, torch
from headwater_engine.core.messages import Generate
from headwater_engine.kernels import select
from headwater_engine.models.loading import load_model
from headwater_engine.models.source import resolve
from headwater_engine.sampling.params import SamplingParams
from tests.engine.greedy import make_engine

def sleeps():
    found = {}
    for thread in os.listdir("/proc/self/task"):
        fields = dict(line.strip().split(":", 1) for line in open(f"/proc/self/task/{thread}/status") if ":" in line)
        if int(thread) != os.getpid() and fields["Name"].strip() != "kernels":
            found[thread] = fields["State"].strip(), int(fields["voluntary_ctxt_switches"])
    return found

kernels = select(torch.bfloat16)
engine = make_engine(load_model(resolve(sys.argv[1]), kernels=kernels, dtype="bfloat16"), kernels, 64, reuse=False)
params = SamplingParams(max_tokens=12, temperature=0.7, top_p=0.9)
for n in range(8):
    engine.add(Generate(id=str(n), prompt=[5 + n] * 30, params=params))
answering = set()
while len(answering) < 8:
    answering.update(output.id for output in engine.step())
begun = before = sleeps()
while before == begun:
    torch.ones(1_000_000).add_(1)  # this they do take part in
    before = sleeps()
while {state[0] for state, _ in before.values()} != {"S"}:
    before = sleeps()
while engine.has_work:
    engine.step()
print("asleep" if sleeps() == before else f"woken: {before}, {sleeps()}")
"""


def test_a_step_that_decodes_wakes_no_threads_but_the_teams(tmp_path: Path) -> None:
    """OpenMP's would wait for one another awake, at the end of each operation that torch shares out."""
    folder = make_tiny("llama", tmp_path, hidden_size=256, intermediate_size=512)
    environment = os.environ | {"OMP_NUM_THREADS": "3", "GOMP_SPINCOUNT": "0", "PYTHONPATH": os.pathsep.join(sys.path)}
    run = subprocess.run(
        [sys.executable, "-c", DECODING, folder], env=environment, capture_output=True, text=True, timeout=300
    )
    assert run.stdout.splitlines()[-1:] == ["asleep"], run.stderr


SHARED_CORE = """
import os, time, torch
from headwater_engine.kernels.cpu import CppKernels, Products
from headwater_engine.quantization.stored import StoredWeight

def last_core(thread):
    return int(open(f"/proc/self/task/{thread}/stat").read().rsplit(")", 1)[1].split()[36])

def name(thread):
    return open(f"/proc/self/task/{thread}/comm").read().strip()

torch.set_num_threads(2)
linear = CppKernels(torch.float32, Products.FLOAT32).linear([StoredWeight(torch.zeros(512, 512))])
x = torch.zeros(64, 512)
helpers = []
while not helpers:
    linear(x)
    helpers = [int(each) for each in os.listdir("/proc/self/task") if name(each) == "kernels"]
(helper,) = helpers
here, there = sorted(os.sched_getaffinity(0))[:2]
os.sched_setaffinity(0, {here})
os.sched_setaffinity(helper, {here})
while last_core(helper) != here:
    linear(x)
os.sched_setaffinity(helper, {here, there})
end = time.monotonic() + 60
while last_core(helper) == here and time.monotonic() < end:
    linear(x)
while os.sched_getaffinity(helper) != {here, there} and time.monotonic() < end:  # it may be in the midst of moving
    linear(x)
print("apart" if last_core(helper) == there else "together", os.sched_getaffinity(helper) == {here, there})
"""


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="one core")
def test_two_of_a_team_do_not_stay_on_one_core_beside_an_idle_one() -> None:
    """As they do under kernels that do not move them themselves, such as those of some virtual machines."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    run = subprocess.run(
        [sys.executable, "-c", SHARED_CORE], env=environment, capture_output=True, text=True, timeout=300
    )
    assert run.stdout == "apart True\n", run.stderr
