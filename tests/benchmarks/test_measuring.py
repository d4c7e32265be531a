"""Alternation, ratios of medians, steadiness, memory and FLOP: on what is known beforehand."""

from __future__ import annotations

import gc
import time

import numpy as np
import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from albireo.models.torch_engine import TorchEngine
from benchmarks.cases import ENCODER, Options, draw_tokens
from benchmarks.cost import BlockGemm, flop, passes_of, traffic
from benchmarks.measuring import PeakAnonymous, alternate, machine, quartiles, ratio, steady


def test_sides_take_turns() -> None:
    seen: list[object] = []
    sides = {name: lambda number, name=name: seen.append((name, number)) for name in ("ours", "theirs")}
    taken = alternate(sides, 3, before=seen.append, between=lambda: seen.append("between"))  # type: ignore[arg-type]
    turn = [[n, ("ours", n), ("theirs", n), "between"] for n in (0, 0, 1, 2)]
    assert seen == [entry for one in turn for entry in one]
    assert {side: len(times) for side, times in taken.items()} == {"ours": 3, "theirs": 3}


def test_the_budget_leaves_rounds_out_but_never_the_first() -> None:
    slow = {"ours": lambda number: time.sleep(0.02)}
    assert len(alternate(slow, 50, budget=0.0)["ours"]) == 1
    assert 2 <= len(alternate(slow, 50, budget=0.5)["ours"]) < 50
    assert len(alternate(slow, 4, budget=60)["ours"]) == 4


def test_ratio_of_medians_with_its_interval() -> None:
    rng = np.random.default_rng(1)
    ours = rng.normal(1, 0.02, 15)
    found = ratio(list(3 * rng.normal(1, 0.02, 15)), list(ours))
    assert found["low"] <= found["value"] <= found["high"]
    assert found["low"] < 3 < found["high"]
    assert found["high"] - found["low"] < 0.3
    assert ratio([2.0, 4.0, 90.0], [1.0, 2.0, 3.0])["value"] == 2.0
    assert ratio([2.0], [4.0]) == {"value": 0.5, "low": 0.5, "high": 0.5}
    assert quartiles([1, 2, 3, 4, 5]) == [2, 3, 4]


@pytest.mark.parametrize(("after", "expected"), [(100, True), (114, True), (86, True), (116, False), (84, False)])
def test_steady_is_within_15_percent(after: float, expected: bool) -> None:
    assert steady(100.0, after) is expected


def test_peak_of_anonymous_memory_is_seen_though_it_is_gone() -> None:
    gc.collect()  # what other tests left is not to go while this one looks
    with PeakAnonymous() as anonymous:
        block = torch.ones(64 << 20)
        time.sleep(0.05)
        del block
    assert 0.8 * (256 << 20) < anonymous.peak < 1.5 * (256 << 20)


def test_machine_is_told() -> None:
    told = machine()
    assert told["processor"]
    assert told["threads"] == torch.get_num_threads()
    assert told["memory_gib"] > 0.5  # type: ignore[operator]


def test_flop_are_what_torch_counts(options: Options) -> None:
    """Of the packed encoder, objects of several lengths, by an independent counter."""
    engine = TorchEngine.open(options.folder)
    tokens = draw_tokens(options.folder, [ENCODER["image"], ENCODER["spectrum"], ENCODER["photometry"]])
    passes = passes_of(engine, tokens)
    assert sorted(n for one in passes for n in one) == [8, 273, 576]
    # The counter knows attention only by its products.
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        engine.embed(tokens)
    assert flop(engine.transformer.config, passes) == pytest.approx(counter.get_total_flops(), rel=1e-6)


def test_traffic_grows_with_passes_and_width(options: Options) -> None:
    config = TorchEngine.open(options.folder).transformer.config
    together, apart = [(8, 8)], [(8,), (8,)]
    weights = traffic(config, apart, 4, 4) - traffic(config, together, 4, 4)
    assert weights == 4 * (2 * (4 * 64**2 + 3 * 64 * 170) + 64**2)
    assert traffic(config, together, 2, 2) == traffic(config, together, 4, 4) / 2


def test_gemm_rate_of_the_blocks_own_shapes(options: Options) -> None:
    engine = TorchEngine.open(options.folder)
    gemm = BlockGemm(engine, [(8, 8), (16,), (24,)])
    assert gemm.counts == {16: 2, 24: 1}
    gemm.measure()
    gemm.measure()
    assert all(0.001 < rate < 10_000 for rate in gemm.rates)
    assert len(gemm.rates) == 2
