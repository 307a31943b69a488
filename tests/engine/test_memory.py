"""How many KV blocks there are, and what counts as free memory."""

from pathlib import Path

import pytest

from headwater_engine.config import EngineSettings
from headwater_engine.errors import KVCacheSizeError
from headwater_engine.worker import memory
from headwater_engine.worker.memory import GIB, Footprint, available_memory, count_blocks, room_on_cpu

MIB = 1 << 20


def count(monkeypatch: pytest.MonkeyPatch, free: int, *, max_model_len: int = 1 << 20, **settings: object) -> int:
    monkeypatch.setattr(memory, "available_memory", lambda: free)
    return count_blocks(EngineSettings(model="x", **settings), MIB, max_model_len, room_on_cpu())  # type: ignore[arg-type]


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


FOOTPRINT = Footprint(total=80 * GIB, utilization=0.9, weights=15 * GIB, others=GIB, step=3 * GIB, graphs=GIB // 2)


def count_on_gpu(footprint: Footprint = FOOTPRINT, **settings: object) -> int:
    asked = EngineSettings(model="x", **settings)  # type: ignore[arg-type]
    return count_blocks(asked, MIB, asked.max_model_len or 1 << 20, footprint.room())


def test_on_a_gpu_it_takes_what_weights_and_steps_leave_of_what_may_be_used() -> None:
    assert count_on_gpu() == 72 * 1024 - 15 * 1024 - 1024 - 3 * 1024 - 512
    assert count_on_gpu(FOOTPRINT._replace(utilization=0.5)) == 40 * 1024 - 15 * 1024 - 1024 - 3 * 1024 - 512


def test_on_a_gpu_settings_may_go_beyond_utilization_but_not_beyond_what_is_free() -> None:
    assert count_on_gpu(kv_cache_gib=60) == 60 * 1024
    with pytest.raises(KVCacheSizeError, match=r"would take 61\.000 GiB, and 60\.500 GiB are free"):
        count_on_gpu(kv_cache_gib=61)
    full = FOOTPRINT._replace(weights=79 * GIB)
    with pytest.raises(KVCacheSizeError, match=r"would take 0\.002 GiB, and 0\.000 GiB are free"):
        count_on_gpu(full, num_blocks=2)


@pytest.mark.parametrize(
    ("missing", "way"), [(1, "Lower --max-model-len, "), (4 * GIB, "Share it among more GPUs (--tensor-parallel-size)")]
)
def test_a_model_that_does_not_fit_is_refused_with_the_arithmetic(missing: int, way: str) -> None:
    """To the byte, and where weights alone are too much."""
    kv = 32 * MIB  # of 500 tokens
    weights = 72 * GIB - GIB - 3 * GIB - GIB // 2 - kv
    assert count_on_gpu(FOOTPRINT._replace(weights=weights), max_model_len=500) == 32
    with pytest.raises(KVCacheSizeError) as refused:
        count_on_gpu(FOOTPRINT._replace(weights=weights + missing), max_model_len=500)
    assert str(refused.value).startswith(
        f"The model does not fit: {(weights + missing) / GIB:.2f} GiB of weights, + 0.03 GiB of KV for one request of "
        "500 tokens, + 3.00 GiB for the largest step, + 0.50 GiB for recorded steps, + 1.00 GiB that CUDA and others "
        f"have = {72 + missing / GIB:.2f} GiB > 80.00 GiB x 0.9 = 72.00 GiB. {way}"
    )


def test_without_a_length_that_was_asked_for_two_blocks_will_do() -> None:
    small = FOOTPRINT._replace(weights=72 * GIB - GIB - 3 * GIB - GIB // 2 - 2 * MIB)
    assert count_on_gpu(small) == 2
    with pytest.raises(KVCacheSizeError, match=r"0\.00 GiB of KV for one request of 16 tokens"):
        count_on_gpu(small._replace(weights=small.weights + 1))


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
