"""Every case does what it says, and both sides do the same."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from itertools import chain, cycle
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from matplotlib import pyplot

from albireo.models.torch_engine import PASS_TOKENS
from benchmarks import aion
from benchmarks.cases import ENCODER, GROUP, OURS, STREAM_KINDS, Options, _alike, draw_tokens, encoder_case, stream
from benchmarks.files import KINDS, Rounds, files_case
from benchmarks.measuring import VOID_EXIT
from benchmarks.report import BEGIN, END, latest, roofline, table, write_page

SIDES = {
    **{name: {OURS, "package fp32"} for name in ENCODER},
    "mixed": {OURS, "package fp32, one by one", "package fp32, grouped"},
    "image-tokenizer": {OURS, "package fp32"},
    "spectrum-tokenizer": {OURS, "package fp32"},
    "files": {OURS, "ours, in memory", "ours, encoder", "package script fp32"},
}
STEADY: Callable[[], float] = lambda: 100.0  # noqa: E731


@pytest.fixture(scope="module")
def records(options: Options) -> dict[str, dict[str, Any]]:
    """Every case, twice in turn, as it is written to a results file."""
    return {
        name: json.loads(json.dumps(aion.measure(name, options, rounds=2, probe=STEADY)))
        for name in aion.CASES
        if name != "files"
    } | {"files": aion.measure("files", replace(options, files=5), rounds=2, probe=STEADY)}


@pytest.mark.parametrize("name", SIDES)
def test_what_a_record_says(records: dict[str, dict[str, Any]], name: str) -> None:
    record = records[name]
    assert set(record["seconds"]) == SIDES[name]
    assert set(record["ratios"]) == SIDES[name] - {OURS}
    assert all(len(times) == 2 and min(times) > 0 for times in record["seconds"].values())
    assert record["rounds"] == 2
    assert not record["void"]
    assert not record["quotable"]
    assert "NOT QUOTABLE" in aion.describe(record)


def test_all_cases_are_tried() -> None:
    assert SIDES.keys() == aion.CASES.keys()


def test_the_encoder_is_measured_against_its_gemm(records: dict[str, dict[str, Any]]) -> None:
    for name in (*ENCODER, "mixed"):
        record = records[name]
        assert record["gemm_share"] == pytest.approx(record["gflops"] / record["gemm_gflops"])
        assert record["gflops"] == pytest.approx(record["flop"] / record["quartiles"][OURS][1] / 1e9)
        assert record["bytes"] > 0
    assert [records[name]["tokens"] for name in ENCODER] == [2 * 576, 2 * 273, 2 * 8, 2 * 857]
    assert records["mixed"]["tokens"] == 2 * (8 + 584 + 857)


def test_tokens_are_the_packages(records: dict[str, dict[str, Any]]) -> None:
    for name in ("image-tokenizer", "spectrum-tokenizer"):
        assert records[name]["identical_tokens"] == 1.0
        assert records[name]["codes"] > 10


def test_the_reduced_mode_of_the_tokenizers(options: Options) -> None:
    """Measured when it is asked for: nearly the same tokens as the package's in float32."""
    record = aion.measure("image-tokenizer", replace(options, dtype="bfloat16"), rounds=1, probe=STEADY)
    assert record["dtype"] == record["compute"] == "bfloat16"
    assert 0.8 < record["identical_tokens"] < 1.0


@pytest.mark.parametrize("name", ENCODER)
def test_both_sides_embed_the_same(options: Options, name: str) -> None:
    case = encoder_case(name, options)
    ours = np.stack([one.values for one in case.sides[OURS]()(0)])  # type: ignore[attr-defined]
    (theirs,) = case.sides["package fp32"]()(0)  # type: ignore[misc]
    assert np.allclose(ours, theirs.numpy(), atol=1e-4 * np.abs(ours).max())


def test_the_rival_cast_to_bf16(options: Options) -> None:
    """Its embeddings are the same but for rounding; and it is measured when it is asked for."""
    case = encoder_case("photometry", replace(options, rivals=("float32", "bfloat16")))
    assert list(case.sides) == [OURS, "package fp32", "package bf16"]
    exact, short = (case.sides[side]()(0)[0].float() for side in ("package fp32", "package bf16"))  # type: ignore[index]
    assert 1e-5 < float((exact - short).abs().max() / exact.abs().max()) < 0.1


def test_the_mixed_stream_is_a_third_each() -> None:
    kinds = Counter(stream(64))
    assert sorted(kinds[kind] for kind in STREAM_KINDS) == [21, 21, 22]
    assert stream(64) == stream(64)
    assert stream(64) != sorted(stream(64))


def test_by_hand_objects_are_grouped_by_modalities(options: Options) -> None:
    tokens = draw_tokens(options.folder, stream(64))
    groups = list(_alike(tokens, GROUP))
    assert sorted(map(id, chain(*groups))) == sorted(map(id, tokens))
    assert all(len({frozenset(one.ids) for one in group}) == 1 and len(group) <= GROUP for group in groups)
    assert len(groups) == 9


def test_both_roads_from_files_find_the_same_objects(options: Options, tmp_path: Path) -> None:
    case = files_case(replace(options, work=tmp_path))
    found = []
    for side in (OURS, "package script fp32"):
        case.sides[side]()(0)
        found.append(pq.read_table(tmp_path / "embeddings.parquet", columns=["id", "embedding"]).to_pydict())
    assert sorted(found[0]["id"]) == sorted(found[1]["id"])
    assert len(set(found[0]["id"])) == len(found[0]["id"]) == case.objects == 13 + 10
    ours, theirs = (dict(zip(one["id"], one["embedding"], strict=True)) for one in found)
    same = [name for name in ours if np.allclose(ours[name], theirs[name], atol=1e-4)]
    # The script does not average DESI's cameras where they overlap, and takes pixels at their word.
    assert len(same) >= len(ours) - 4


def test_every_round_has_files_of_its_own(tmp_path: Path) -> None:
    rounds = Rounds(tmp_path / "files", len(KINDS))
    rounds.prepare()
    first = {o.id for o in rounds.observations}
    assert [path.stem[4:] for path in rounds.paths] == list(KINDS)
    rounds.prepare()
    assert len({o.id for o in rounds.observations} | first) == 2 * len(first)


def arguments(work: Path, *more: str) -> Any:
    return aion.arguments().parse_args(
        ["--case", "photometry", "--quick", "--rounds", "2", "--no-memory", "--work", str(work), *more]
    )


def test_an_unsteady_machine_voids(options: Options, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    speeds = cycle([100.0, 80.0])
    args = arguments(options.work, "--out", str(tmp_path / "results.jsonl"))
    assert aion.run(args, options.work, probe=lambda: next(speeds)) == VOID_EXIT
    assert "VOID" in capsys.readouterr().out
    found = latest((tmp_path / "results.jsonl").read_text().splitlines())  # also in bfloat16 where that is fast
    for record in found:
        assert record["void"]
        assert "**VOID** |  |" in table([record])
    assert found
    assert aion.run(arguments(options.work), options.work, probe=STEADY) == 0


def test_the_page_gets_table_and_picture(records: dict[str, dict[str, Any]], tmp_path: Path) -> None:
    page = tmp_path / "benchmarks.md"
    page.write_text(f"before\n{BEGIN}\nold\n{END}\nafter\n")
    write_page(page, list(records.values()))
    text = page.read_text()
    assert text.startswith("before\n")
    assert text.endswith(f"{END}\nafter\n")
    assert "\nold\n" not in text
    for name, sides in SIDES.items():
        assert text.count(f"\n| {name}, ") == len(sides) - 1
    assert (tmp_path / "roofline.png").stat().st_size > 10_000
    (axes,) = roofline(list(records.values())).axes
    labels = [text.get_text().split(",")[0] for text in axes.get_legend().get_texts()]
    assert labels == [*ENCODER, "mixed"]
    pyplot.close("all")


def test_what_is_no_comparison_is_a_sentence(records: dict[str, dict[str, Any]]) -> None:
    record = {
        "checkpoint": "aion-xlarge-random-fp32", "parameters_in_file": 3_100_000_000, "dtype": "bfloat16",
        "tokens": 857, "load_seconds": 30.0, "first_embed_seconds": 20.0, "embed_seconds": 10.0, "kept_bytes": 3 << 30,
        "peak_bytes": 15 << 30, "anonymous_over_kept": 1.05, "machine": records["image"]["machine"],
    }  # fmt: skip
    text = table(latest([json.dumps(records["image"]), json.dumps(record)]))
    assert "3.10 billion parameters, kept as bfloat16: open in 30 s, 857 tokens embedded in 10 s" in text
    assert "15.0 GiB resident, 3.00 GiB of weights kept to embed, anonymous memory while loading 1.050 of that." in text
    assert text.count("| image, ") == 1


def test_the_last_measurement_counts(records: dict[str, dict[str, Any]]) -> None:
    first = records["image"] | {"rounds": 1}
    other = records["image"] | {"batch": 8}
    found = latest(json.dumps(record) for record in (first, other, records["image"]))
    assert [(one["batch"], one["rounds"]) for one in found] == [(2, 2), (8, 2)]


def test_peak_memory_of_each_side(options: Options) -> None:
    """In a process of its own."""
    found = aion.memory("photometry", options, ["package fp32"], ["--quick", "--work", str(options.work)])
    one = found["package fp32"]
    assert one["peak_bytes"] > one["anonymous_bytes"] > 50 << 20


def test_the_sweep_tells_every_budget(options: Options, capsys: pytest.CaptureFixture[str]) -> None:
    before = dict(PASS_TOKENS)
    aion.sweep(options, [300, 1200], rounds=1)
    out = capsys.readouterr().out
    assert out.count("    300  ") == out.count("   1200  ") == 2
    assert "1.000 x the best" in out
    assert before == PASS_TOKENS
