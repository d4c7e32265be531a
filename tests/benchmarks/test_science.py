"""The page of science on a small planted task: every contender answers, a stopped run goes on, the page tells it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from albireo.models import head_training, rivals
from albireo.models.engine import Tokens
from albireo.models.torch_engine import TorchEngine
from albireo.models.untrained import untrained
from albireo.observations.observation import Observation, Scalar, Spectrum
from albireo.tokenizers.checkpoint import MINI
from benchmarks import neighbourhoods, questions, science_page
from benchmarks.encoding import Codes, Encoder
from benchmarks.judging import judged
from benchmarks.labelled import Dataset
from benchmarks.questions import QUESTIONS, Question
from benchmarks.science_runs import CONTENDERS, ENCODER, TEMPLATES, TRIVIAL, UNTRAINED, Records, Setting, answer

LINEAR = (("mean_per_modality", "linear"),)
KEYS = ("tok_flux_g", "tok_flux_r", "tok_flux_z")


def planted(n: int, name: str = "planted", test_only: bool = False, first: int = 0) -> Dataset:
    """Objects whose label is a colour, and whose class is whether it is large."""
    rng = np.random.default_rng(first)
    colour, bright = rng.uniform(0.0, 2.0, n), rng.uniform(17.0, 20.0, n)
    flux = 10.0 ** (0.4 * (22.5 - np.array([bright + colour, bright, bright - 0.4 * colour])))
    rows = tuple(
        Observation(
            f"{first + k}",
            {key: Scalar(float(flux[j, k]), "nanomaggy") for j, key in enumerate(KEYS)} | {"tok_z": Scalar(0.1, "")},
            metadata={"redshift": 9.0},
        )
        for k in range(n)
    )
    labels = {"colour": np.where(np.arange(n) % 50 == 7, np.nan, colour), "class": np.where(colour > 1, "red", "blue"),
              "redshift": 0.2 + 0.3 * colour}  # fmt: skip
    return Dataset(name, rows, labels, tuple(one.id for one in rows), test_only, "made here")


def question(task: str = "regression", target: str = "colour", **more: object) -> Question:
    values = {"sizes": (100, None), "fitted": "planted", "tested": "planted", **more}
    return Question(f"q_{task}", "A planted task", task, {target: ""}, keys=KEYS, needed=(KEYS,), **values)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def engine() -> TorchEngine:
    return TorchEngine.open(MINI)


def both(engine: TorchEngine, folder: Path) -> dict[str, Encoder]:
    codes = Codes(engine)
    return {
        ENCODER: Encoder("encoder", engine, folder / "states", codes),
        UNTRAINED: Encoder("untrained", untrained(engine, 0), folder / "states", codes),
    }


def test_labels_and_other_modalities_are_taken_away() -> None:
    setting = Setting.of(question(), lambda name: planted(150), 0)
    for one in (*setting.pool.observations, *setting.test.observations):
        assert set(one.data) == set(KEYS)
        assert not one.metadata
        assert not one.extras
    assert len(setting.pool) + len(setting.test) == 147, "three have no label"
    assert len(setting.test) == pytest.approx(0.2 * 147, abs=1)
    few, more = (setting.given(size).observations for size in (20, 60))
    assert few == more[:20]
    assert setting.sizes() == [100, None]


def test_spectra_of_different_range_and_unit_are_made_alike() -> None:
    x = np.arange(3600.0, 9000.0, 2.0)

    def spectra(name: str, end: float, unit: float) -> Dataset:
        there = x < end
        flux = np.where(x > 7000, 50.0, 1.0)[there] * unit
        bad = (x == 5000.0)[there]
        one = Spectrum(x[there], flux.astype(np.float32), np.full(there.sum(), 4 / unit**2, np.float32), bad,
                       "1e-17 erg / (s cm2 Angstrom)", "heliocentric")  # fmt: skip
        rows = tuple(Observation(f"{name}-{k}", {"tok_spectrum_sdss": one}) for k in range(3))
        return Dataset(name, rows, {"colour": np.arange(3.0)}, tuple(row.id for row in rows), name == "other", "")

    sets = {"planted": spectra("planted", 7400.0, 1.0), "other": spectra("other", 9000.0, 300.0)}
    keys: tuple[str, ...] = ("tok_spectrum_sdss",)
    asked = replace(question(tested="other"), keys=keys, needed=(keys,), window=(4000.0, 6998.0))
    setting = Setting.of(asked, sets.__getitem__, 0)
    assert (setting.pool.name, setting.test.name) == ("planted from 4000 to 6998 A", "other from 4000 to 6998 A")
    a, b = (part.observations[0].data["tok_spectrum_sdss"] for part in (setting.pool, setting.test))
    assert isinstance(a, Spectrum)
    assert isinstance(b, Spectrum)
    for one in (a, b):
        assert (one.wavelength[0], one.wavelength[-1]) == (4000.0, 6998.0)
        assert one.wavelength[one.mask].tolist() == [5000.0]
        np.testing.assert_allclose(one.flux, questions.RELATIVE, rtol=1e-6)
        np.testing.assert_allclose(one.ivar, 4 / questions.RELATIVE**2, rtol=1e-6)


def test_nothing_is_fitted_to_what_is_for_testing() -> None:
    with pytest.raises(AssertionError, match="for testing only"):
        Setting.of(question(), lambda name: planted(100, test_only=True), 0)
    sets = {"planted": planted(100), "other": planted(40, "other", True, first=1000)}
    setting = Setting.of(question(tested="other"), sets.__getitem__, 0)
    assert (len(setting.pool), len(setting.test)) == (98, 39)
    with pytest.raises(AssertionError):
        Setting.of(question(tested="other"), lambda name: planted(100, name), 0)


def test_every_question_is_well_posed() -> None:
    for name, one in QUESTIONS.items():
        assert name == one.name
        assert one.beside in ("", *QUESTIONS)
        assert any(set(group) & set(one.keys) for group in one.needed)
        assert not {"tok_z", "tok_ra", "tok_dec"} & set(one.keys)
        assert one.main in science_page.COLUMNS[one.task]
        assert questions.SIZES[-1] is None


@pytest.mark.parametrize(
    ("task", "target"),
    [
        ("regression", "colour"),
        pytest.param("redshift", "redshift", marks=pytest.mark.slow),
        pytest.param("classification", "class", marks=pytest.mark.slow),
    ],
)
def test_every_contender_answers_and_a_stopped_run_goes_on(
    engine: TorchEngine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, task: str, target: str
) -> None:
    monkeypatch.setattr(head_training, "FEW", 0)  # no choice among weight decays: a third of the time
    asked = question(task, target, sizes=(None,))
    setting = Setting.of(asked, lambda name: planted(200), 0)
    records = Records(tmp_path / "records", "abc123", engine.checkpoint.fingerprint)
    encoders = both(engine, tmp_path)
    said: list[str] = []
    answer(setting, encoders, records, 0, said.append, LINEAR)
    asked_ones = [who for who in CONTENDERS if who != TEMPLATES]
    assert len(said) == 2 * len(asked_ones), "inputs, and all labels"
    found = {who: records.read(asked.name, who, None) for who in CONTENDERS}
    main = {who: one["targets"][target]["metrics"][asked.main] for who, one in found.items() if one}
    assert list(main) == asked_ones
    for who in asked_ones:
        assert main[who][1] <= main[who][0] <= main[who][2]
        worse, better = (main[who][0], main[TRIVIAL][0]) if task == "redshift" else (main[TRIVIAL][0], main[who][0])
        assert who in (TRIVIAL, UNTRAINED) or worse < better, who
        if task != "classification":
            told = found[who]["targets"][target]["metrics"]  # type: ignore[index]
            assert abs(told["coverage_68%"][0] - 0.68) < 0.3, "40 test objects"
            assert told["crps"][0] > 0
    before = {path: path.read_bytes() for path in (tmp_path / "records").rglob("*.json")}
    records.path(asked.name, TRIVIAL, None).unlink()
    said.clear()
    answer(setting, encoders, records, 0, said.append, LINEAR)
    assert {line.split(",")[0] for line in said} == {f"{asked.name}: trivial"}
    assert {path: path.read_bytes() for path in before} == before, "the same is measured again"

    records.note("planted", "made here")
    text = science_page.page(records, {"checkpoint": engine.name}, tmp_path / "science", {asked.name: asked})
    assert "code: abc123" in text
    assert "**planted**: made here." in text
    for who in asked_ones:
        assert f"| {science_page.NAMES[who]} |" in text
    for picture in [part.split(")")[0] for part in text.split("](")[1:]]:
        assert (tmp_path / picture).read_bytes()[:4] == b"\x89PNG"


def test_inputs_that_a_checkpoint_does_not_read(engine: TorchEngine, tmp_path: Path) -> None:
    """Rivals answer, the encoder does not, and the page says so."""
    asked = Question("q", "Stars", "regression", {"colour": ""}, "planted", "planted", ("spectrum_lamost",),
                     (("spectrum_lamost",),))  # fmt: skip
    encoder = Encoder("encoder", engine, tmp_path)
    assert not encoder.reads(asked)
    assert encoder.reads(question())


def test_an_object_is_tokenized_and_embedded_once(engine: TorchEngine, tmp_path: Path) -> None:
    """For all questions with the same modalities; of others, its tokens are known."""
    dataset = planted(12)
    codes = Codes(engine)
    few, all_ = KEYS[:1], KEYS
    for one in Setting.of(question(), lambda name: planted(150), 0).pool.observations[:5]:
        part = codes.of("planted", replace(one, data={key: one.data[key] for key in few}))
        whole = codes.of("planted", one)
        (alone,) = engine.tokenize([one])
        assert isinstance(part, Tokens)
        assert isinstance(whole, Tokens)
        assert isinstance(alone, Tokens)
        assert set(part.ids) == set(few)
        assert all((whole.ids[key] == alone.ids[key]).all() for key in all_)
    encoder = Encoder("encoder", engine, tmp_path, codes)
    first = encoder.states(dataset.subset(np.arange(5)), KEYS)
    more = encoder.states(dataset, KEYS)
    assert more.ids[:5] == first.ids
    assert sorted(more.ids) == sorted(one.id for one in dataset.observations)
    np.testing.assert_array_equal(more.rows(2)[0], first.rows(2)[0])
    assert encoder.states(dataset.subset(np.arange(3)), KEYS[:1]).rows(0)[1] == KEYS[:1]
    assert encoder.states(dataset).rows(0)[1] == tuple(key for key in engine.inputs if key in KEYS)


def test_tokens_stand_for_numbers_near_those_given(engine: TorchEngine, tmp_path: Path) -> None:
    dataset = Setting.of(question(), lambda name: planted(40), 0).pool
    kept = Encoder("encoder", engine, tmp_path).quantised(dataset)
    for before, after in zip(dataset.observations, kept.observations, strict=True):
        for key in KEYS:
            a, b = before.data[key], after.data[key]
            assert isinstance(a, Scalar)
            assert isinstance(b, Scalar)
            assert abs(np.log10(b.value / a.value)) < 0.2
    assert any(a.data[KEYS[0]] != b.data[KEYS[0]] for a, b in zip(dataset.observations, kept.observations, strict=True))


def test_metrics_of_one_contender() -> None:
    test = planted(200)
    truth = test.labels["redshift"]
    got = judged(question("redshift", "redshift"), test, {"redshift": {"value": truth + 0.01 * (1 + truth)}}, 0)
    assert got["redshift"]["metrics"]["bias"] == pytest.approx([0.01] * 3)
    assert got["redshift"]["n"] == 200
    wrong = {"class": {"classes": ("blue", "red"), "probability": np.tile([0.9, 0.1], (200, 1))}}
    found = judged(question("classification", "class"), test, wrong, 0)["class"]
    assert found["metrics"]["balanced_accuracy"] == [0.5, 0.5, 0.5]
    assert found["found"]["red"].startswith("0 of ")
    json.dumps(found)


def test_neighbours(engine: TorchEngine, tmp_path: Path) -> None:
    """Vectors that are the class and the redshift find them; the query itself is no neighbour."""
    dataset = planted(120)
    z = dataset.labels["redshift"]
    angle = np.where(dataset.labels["class"] == "red", 0.0, 1.5) + 2.0 * z
    good = neighbourhoods.scores(dataset, np.stack([np.cos(angle), np.sin(angle)], axis=1).astype(np.float32), 0)
    chance = neighbourhoods.scores(dataset, np.random.default_rng(0).normal(size=(120, 8)).astype(np.float32), 0)
    assert good["class"][0] > 0.95
    assert good["ndcg"][0] > 0.95
    assert good["redshift"][0] > 0.95
    assert 0.3 < chance["class"][0] < 0.7
    assert "same set over chance" not in good, "nothing was given by lot"
    assert rivals.principal(dataset.observations, 4, 0).shape == (120, 4)
    records = Records(tmp_path / "records", "abc", engine.checkpoint.fingerprint)
    neighbourhoods.measure(dataset, both(engine, tmp_path), records, 0)
    found = {who: records.read(neighbourhoods.question("planted"), who, None) for who in neighbourhoods.ROWS}
    assert all(one is not None and one["objects"] == 120 for one in found.values())


def test_neighbours_of_objects_that_are_given_by_lot() -> None:
    """What each set of modalities adds to the embedding keeps objects apart; `aligned` takes it away, and what they are
    stays."""
    rng = np.random.default_rng(0)
    lots = list(neighbourhoods.LOTS)

    def seen(hidden: np.ndarray, lot: int) -> np.ndarray:
        """Four hidden numbers, turned, stretched, moved and blurred by the set of modalities."""
        own = np.random.default_rng(lot + 1)
        turned = np.tanh(hidden) @ own.normal(size=(4, 24)) * own.uniform(0.5, 2.0)
        return (turned + own.normal(size=24) * 3 + 0.2 * rng.normal(size=(len(hidden), 24))).astype(np.float32)

    known, hidden = rng.normal(size=(300, 4)), rng.normal(size=(480, 4))
    references = {name: seen(known, k) for k, name in enumerate(lots)}
    drawn = np.array(lots)[np.arange(480) % len(lots)]
    dataset = planted(480)
    dataset.labels["redshift"][:] = 0.3 + 0.1 * hidden[:, 0]
    dataset.labels["class"][:] = np.where(hidden[:, 1] > 0, "red", "blue")
    found = {}
    for pooling in neighbourhoods.POOLINGS:
        parts = {
            name: neighbourhoods.pooled(references, name, seen(hidden[drawn == name], k), pooling)
            for k, name in enumerate(lots)
        }
        table = np.empty((480, parts["all"].shape[1]), np.float32)
        for name, part in parts.items():
            table[drawn == name] = part
        found[pooling] = neighbourhoods.scores(dataset, table, 0, drawn.tolist())
    same = {pooling: one["same set over chance"][0] for pooling, one in found.items()}
    assert same["mean"] > 5
    assert same["aligned"] < 1.2
    assert found["aligned"]["class"][0] > found["centred"]["class"][0] + 0.05
