"""How many KV blocks there are, and what counts as free memory."""

from pathlib import Path

import pytest
import torch

from headwater_engine.config import EngineSettings
from headwater_engine.errors import KVCacheSizeError
from headwater_engine.worker import memory
from headwater_engine.worker.memory import GIB, available_memory, count_blocks, find_room

MIB = 1 << 20


def count(monkeypatch: pytest.MonkeyPatch, free: int, *, max_model_len: int = 1 << 20, **settings: object) -> int:
    monkeypatch.setattr(memory, "available_memory", lambda: free)
    room = find_room(torch.device("cpu"))
    return count_blocks(EngineSettings(model="x", **settings), MIB, max_model_len, room)  # type: ignore[arg-type]


@pytest.mark.parametrize(("free", "blocks"), [(8 * GIB, 2048), (64 * GIB, 4096)])
def test_it_takes_a_quarter_of_what_is_free_and_four_gib_at_most(
    monkeypatch: pytest.MonkeyPatch, free: int, blocks: int
) -> None:
    assert count(monkeypatch, free) == blocks


def test_it_takes_no_more_than_all_requests_could_ever_use(monkeypatch: pytest.MonkeyPatch) -> None:
    assert count(monkeypatch, 64 * GIB, max_model_len=100, max_num_seqs=3) == 2 * 3 * 7


def test_settings_say_how_many(monkeypatch: pytest.MonkeyPatch) -> None:
    assert count(monkeypatch, 8 * GIB, kv_cache_gib=0.5) == 512
    assert count(monkeypatch, 8 * GIB, num_blocks=77, kv_cache_gib=0.5) == 77


def test_too_little_for_one_request_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(KVCacheSizeError, match=r"needs 0\.002 GiB for two blocks .* set --kv-cache-gib"):
        count(monkeypatch, 4 * MIB)


@pytest.mark.parametrize("settings", [{"kv_cache_gib": 9}, {"num_blocks": 9 * 1024}])
def test_more_than_is_free_is_refused(monkeypatch: pytest.MonkeyPatch, settings: dict[str, object]) -> None:
    with pytest.raises(KVCacheSizeError, match=r"would take 9\.000 GiB, and 8\.000 GiB are free: .* lower"):
        count(monkeypatch, 8 * GIB, **settings)


def test_on_a_gpu_it_takes_most_of_what_is_free(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (20 * GIB, 80 * GIB))
    assert find_room(torch.device("cuda", 0)) == (20 * GIB, 17 * GIB)


def test_a_containers_limit_counts_and_its_cached_files_are_free(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(memory, "_CGROUP", tmp_path)
    whole = available_memory()
    (tmp_path / "memory.max").write_text("max\n")
    (tmp_path / "memory.current").write_text(f"{3 * MIB}\n")
    (tmp_path / "memory.stat").write_text(f"anon {MIB}\nactive_file {MIB // 2}\ninactive_file {MIB // 4}\n")
    assert available_memory() == pytest.approx(whole, rel=0.2)
    (tmp_path / "memory.max").write_text(f"{10 * MIB}\n")
    assert available_memory() == 7 * MIB + MIB // 2 + MIB // 4
    (tmp_path / "memory.max").write_text(f"{MIB}\n")
    assert available_memory() == 0
