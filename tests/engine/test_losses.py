"""A rank whose partner leaves says so in a sentence; what is wrong with itself stays the error that it is."""

import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from headwater_engine.distributed.losses import losses_named
from headwater_engine.distributed.meet import find_ranks
from headwater_engine.distributed.place import Meeting, Place
from headwater_engine.distributed.ranks import ProcessRanks, Ranks
from headwater_engine.errors import LostRankError, RankError
from tests.engine.in_ranks import in_ranks

CPU = torch.device("cpu")
PLACE = "/pytorch/third_party/gloo/gloo/transport/tcp"
CALLS: dict[str, Callable[[Ranks], object]] = {
    "all_reduce": lambda ranks: ranks.sum(torch.ones(3)),
    "gather": lambda ranks: ranks.gather(torch.ones(3, 2)),
    "all_gather_into_tensor": lambda ranks: ranks.exchange(torch.ones(3)),
    "broadcast": lambda ranks: ranks.tell(torch.ones(3)),
}
"""By what they call of torch."""
LOST = {
    RuntimeError(
        f"[{PLACE}/pair.cc:538] Connection closed by peer [127.0.0.1]:7"
    ): "Connection closed by peer [127.0.0.1]:7",
    RuntimeError(f"[{PLACE}/unbound_buffer.cc:84] Timed out waiting 9ms for recv operation to complete"): (
        "Timed out waiting 9ms for recv operation to complete"
    ),
    RuntimeError("Gloo connectFullMesh failed with Connection reset by peer\nand more"): (
        "Gloo connectFullMesh failed with Connection reset by peer"
    ),
    TimeoutError("nobody has left here/1"): "nobody has left here/1",
    dist.DistNetworkError("failed to recv, got 0 bytes"): "failed to recv, got 0 bytes",
    dist.DistBackendError("NCCL error\nncclRemoteError: A call failed possibly due to a network error"): "NCCL error",
}
OWN = [
    RuntimeError("Invalid scalar type"),
    RuntimeError(f"[enforce fail at {PLACE}/pair.cc:409] 8 <= 4. Is there a distributed collective mismatch?"),
    NotImplementedError("no gloo for that"),
    torch.OutOfMemoryError(f"CUDA out of memory. [{PLACE}/pair.cc:538]"),
    dist.DistBackendError("NCCL error\nncclUnhandledCudaError: Call to CUDA function failed. 'out of memory'"),
    ValueError("tensors must be contiguous"),
]


def add_up_or_leave() -> str:
    ranks = ProcessRanks()
    ranks.least(0)
    if ranks.rank:
        return ""
    with pytest.raises(LostRankError) as lost:
        ranks.sum(torch.ones(3))
    return str(lost.value)


def test_a_rank_whose_partner_leaves_while_it_waits_says_so(tmp_path: Path) -> None:
    said, _ = in_ranks(2, tmp_path, add_up_or_leave)
    assert re.fullmatch(r"it has lost another rank: [^/]+\.", said), said


def failing(error: Exception) -> Callable[..., None]:
    def fail(*args: object, **options: object) -> None:
        raise error

    return fail


@pytest.fixture
def of_two(monkeypatch: pytest.MonkeyPatch) -> ProcessRanks:
    monkeypatch.setattr(dist, "get_rank", lambda: 0)
    monkeypatch.setattr(dist, "get_world_size", lambda: 2)
    return ProcessRanks()


@pytest.mark.parametrize("name", CALLS)
def test_whatever_it_waits_for(name: str, of_two: ProcessRanks, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dist, name, failing(next(iter(LOST))))
    with pytest.raises(LostRankError, match="Connection closed by peer"):
        CALLS[name](of_two)


@pytest.mark.parametrize("error", LOST, ids=str)
def test_errors_that_say_that_another_rank_is_out_of_reach(error: Exception) -> None:
    with pytest.raises(LostRankError) as lost, losses_named():
        raise error
    assert lost.value.reason == LOST[error]


@pytest.mark.parametrize("error", OWN, ids=str)
def test_what_is_wrong_with_a_rank_itself_is_no_loss(
    error: Exception, of_two: ProcessRanks, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Neither while it joins the others nor later."""
    monkeypatch.setattr(dist, "init_process_group", failing(error))
    monkeypatch.setattr(dist, "all_reduce", failing(error))
    with pytest.raises(type(error)) as joining:
        find_ranks(Place(0, 2, 0, 2, Meeting(f"file://{tmp_path}/store", "", "secret")), CPU)
    with pytest.raises(type(error)) as adding:
        of_two.sum(torch.ones(1))
    assert joining.value is adding.value is error


def test_a_store_that_cannot_be_written_is_no_fault_of_the_network(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(dist, "init_process_group", failing(dist.DistStoreError("No space left on device")))
    with pytest.raises(RankError, match=r"^the store of the group fails: No space left on device\.$"):
        find_ranks(Place(0, 2, 0, 2, Meeting(f"file://{tmp_path}/store", "", "secret")), CPU)
