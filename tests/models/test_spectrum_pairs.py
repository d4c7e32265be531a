"""What a codec of spectra learns from: the network's input and the noiseless flux behind it, in the same units."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from albireo.models import mini, spectrum_pairs
from albireo.models.codec_training import spectrum_loss
from albireo.observations.modalities import MODALITIES
from albireo.observations.observation import Spectrum
from albireo.observations.simulation.survey import spectra
from albireo.tokenizers.bank import build
from albireo.tokenizers.spectrum import SpectrumTokenizer


@pytest.fixture(scope="module")
def tokenizer() -> SpectrumTokenizer:
    torch.manual_seed(0)
    one = build(MODALITIES["tok_spectrum_desi"], mini.SPECTRUM)
    assert isinstance(one, SpectrumTokenizer)
    return one


def spectrum(tokenizer: SpectrumTokenizer, flux: np.ndarray, ivar: float) -> Spectrum:
    grid = np.asarray(tokenizer.wavelength, np.float64)
    n = len(grid)
    return Spectrum(grid, flux.astype(np.float32), np.full(n, ivar, np.float32), np.zeros(n, bool), "", "heliocentric")


def test_two_spectra_of_an_object_and_the_truth_behind_them() -> None:
    observed = spectra(3, 11)
    assert len(observed) == 2
    for one, again in zip(observed, spectra(3, 11), strict=True):
        assert np.array_equal(one.truth, again.truth)
        assert np.array_equal(one.spectrum.flux, again.spectrum.flux)
        good = one.spectrum.ivar > 0
        chi = (one.spectrum.flux[good] - one.truth[good]) * np.sqrt(one.spectrum.ivar[good])
        assert abs(np.median(chi)) < 0.1
        assert 0.9 < 1.4826 * np.median(np.abs(chi)) < 1.15


def test_input_and_truth_have_one_unit(tokenizer: SpectrumTokenizer) -> None:
    grid = np.asarray(tokenizer.wavelength, np.float64)
    flux = 5.0 + np.sin(grid / 300.0)
    x, truth = spectrum_pairs.network_arrays(tokenizer, [spectrum(tokenizer, flux, 4.0)], [flux])
    without_noise = torch.sinh(x[0, 0].float()) / tokenizer.input_scaling
    torch.testing.assert_close(truth[0].float(), without_noise, atol=3e-3, rtol=3e-3)
    snr = torch.sinh(x[0, 1].float()) / tokenizer.input_scaling
    torch.testing.assert_close(snr, torch.full_like(snr, 5.0 * 2.0), rtol=0.02, atol=0.0)


def test_the_loss_counts_what_is_sharp_again(tokenizer: SpectrumTokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    """A line that is missed costs more than the same distance spread over everything."""
    length = len(tokenizer.wavelength)
    x = torch.zeros(1, 2, length)
    x[:, 1] = float(np.arcsinh(0.2 * 8.0))
    smooth, line = torch.zeros(1, length), torch.zeros(1, length)
    line[:, 4000:4010] = 0.5
    smooth[:] = line.mean()
    losses = {}
    for name, given in (("smooth", smooth), ("line", line)):
        monkeypatch.setattr(tokenizer, "reconstruct", lambda signs, given=given: torch.stack([given, given], dim=1))
        with torch.no_grad():
            losses[name] = float(spectrum_loss(tokenizer, x, torch.zeros(1, length)))
    monkeypatch.setattr(tokenizer, "reconstruct", lambda signs: torch.zeros(1, 2, length))
    with torch.no_grad():
        nothing = float(spectrum_loss(tokenizer, x, torch.zeros(1, length)))
    assert losses["line"] - nothing > 10 * (losses["smooth"] - nothing) > -1e-6


def test_shards_are_made_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spectrum_pairs, "SHARD", 2)
    paths = spectrum_pairs.make(tmp_path, 4, seed=1, workers=2)
    assert [path.name for path in paths] == ["00000.safetensors", "00001.safetensors"]
    first = paths[0].read_bytes()
    paths[1].unlink()
    spectrum_pairs.make(tmp_path, 4, seed=1, workers=1)
    assert paths[0].read_bytes() == first
    x, truth = spectrum_pairs.load(paths)
    assert x.shape == (8, 2, 8704)
    assert truth.shape == (8, 8704)
    assert torch.isfinite(x).all()
    assert torch.isfinite(truth).all()
