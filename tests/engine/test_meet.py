"""Ranks on several machines that do not reach one another say so soon, and what to look at."""

import ctypes
import multiprocessing
import os
import subprocess
import time
from concurrent.futures import ProcessPoolExecutor
from datetime import timedelta
from pathlib import Path

import pytest
import torch

from headwater_engine.distributed import meet
from headwater_engine.distributed.meet import find_ranks
from headwater_engine.distributed.place import Meeting, Place
from headwater_engine.distributed.ranks import Ranks
from headwater_engine.errors import RankError

PATIENCE = 300  # seconds: a guard
_CLONE_NEWNET = 0x40000000
_TO_CONNECT = 2
"""Seconds, here."""


def leave_network() -> bool:
    """Have this thread, and what it starts, see another network, where nobody else is. Takes root and `ip`."""
    try:
        unshared = ctypes.CDLL(None).unshare(_CLONE_NEWNET) == 0
        return unshared and subprocess.run(["ip", "link", "set", "lo", "up"], check=False).returncode == 0
    except (OSError, AttributeError):
        return False


def find(rank: int, folder: Path, interface: str) -> Ranks:
    """The other one of two, on another machine."""
    os.environ["GLOO_SOCKET_IFNAME"] = interface
    meet._TO_CONNECT = timedelta(seconds=_TO_CONNECT)  # type: ignore[misc]
    return find_ranks(Place(rank, 2, 0, 1, Meeting(f"file://{folder}/store", "", "secret")), torch.device("cpu"))


def why_not(rank: int, folder: Path, interface: str) -> str:
    """What a rank says as it does not find the other one."""
    with pytest.raises(RankError) as failure:
        find(rank, folder, interface)
    return str(failure.value)


def agree_late(rank: int, folder: Path) -> int:
    ranks = find(rank, folder, "lo")
    time.sleep(2 * _TO_CONNECT * rank)
    return ranks.least(rank + 7)


@pytest.mark.parametrize("interface", ["nowhere7", "lo"])
def test_ranks_that_do_not_reach_one_another_name_the_network(interface: str, tmp_path: Path) -> None:
    """One of them tells the others an address that leads to it from nowhere else, or it has none."""
    here, there = (ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) for _ in range(2))
    with here, there:
        if interface == "lo" and not there.submit(leave_network).result(PATIENCE):
            pytest.skip("networks can not be made here")
        said = [pool.submit(why_not, rank, tmp_path, interface) for rank, pool in enumerate((here, there))]
        for each in said:
            reason = each.result(PATIENCE)
            assert reason.startswith("it cannot reach the other ranks: ")
            assert reason.endswith(f"GLOO_SOCKET_IFNAME names the network between them; here it is '{interface}'.")


def test_a_rank_that_was_found_and_takes_its_time_is_waited_for(tmp_path: Path) -> None:
    """It may have to fetch the weights first."""
    with ProcessPoolExecutor(2, multiprocessing.get_context("spawn")) as pool:
        each = [pool.submit(agree_late, rank, tmp_path) for rank in range(2)]
        assert [future.result(PATIENCE) for future in each] == [7, 7]
