"""Heads in words for a terminal: cards, metrics with their intervals. Imports nothing heavy."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from albireo.service.printing import plural

STATISTICS = ("min", "low", "median", "high", "max")
"""Of the labels of a number, as in a card: low and high are 0.1 and 99.9 %."""


def card_lines(about: Mapping[str, Any]) -> Iterator[str]:
    """A head for a person: what it tells, from what, how well, and for which model."""
    card = about["card"]
    version = f", version {about['version']}" if about["version"] else ""
    yield f"{about['name']}: {about['task']} ({about['origin']}{version})"
    yield f"  space     {about['space']}"
    if not about["fits"]:
        yield "            the model that is loaded gives other states: name the head's own with --model"
    if card is None:
        yield "  tells     redshift, as the model's own token of it: not calibrated, with a prior that nobody knows"
        return
    plan, data = card["plan"], card["data"]
    targets = [
        f"{name} ({unit})" if unit else name for name, unit in zip(about["targets"], about["units"], strict=True)
    ]
    yield f"  tells     {', '.join(about['classes']) or ', '.join(targets)}"
    yield f"  reads     {_shares(card['coverage']['modalities'])}"
    epochs = f"epoch {plan['best_epoch']} of {plan['epochs']} kept"
    yield f"  network   pooling {card['pooling']}, {card['network']}, {epochs}"
    yield f"  labels    {data['labels']}, column {', '.join(plan['targets'])}, sha256 {card['labels_sha256'][:12]}"
    parts = ", ".join(f"{count} {part}" for part, count in data["objects"].items())
    yield f"  objects   {parts}; split by {plan['group']}, seed {card['seed']}"
    left_out = [
        f"{data[key]} {key.replace('_', ' ')}"
        for key in ("without_label", "without_object", "without_value", "failed")
        if data.get(key)
    ]
    if left_out:
        yield f"  left out  {', '.join(left_out)}"
    yield "  labels of the training part"
    yield from (f"    {line}" for line in _label_lines(about["task"], card["labels"]))
    yield "  metrics, with 95 % intervals"
    for part, metrics in card["metrics"].items():
        yield from (f"    {part}: {line}" for line in metric_lines(metrics))
    if not card["metrics"]:
        yield "    none: no object was kept for a test"
    yield "  made by   " + ", ".join(f"{name} {number}" for name, number in card["versions"].items())


def metric_lines(metrics: Mapping[str, Mapping[str, Sequence[float]]]) -> Iterator[str]:
    """Target by target: each metric, and between which values it lies by bootstrap."""
    for target, found in metrics.items():
        for name, (value, low, high) in found.items():
            span = f"  ({low + 0.0:.4g} to {high + 0.0:.4g})" if name != "n" else ""
            yield f"{target}  {name:<18} {value + 0.0:.4g}{span}"  # Not -0.


def _label_lines(task: str, labels: Mapping[str, Mapping[str, float]]) -> Iterator[str]:
    for name, found in labels.items():
        if task == "classification":
            yield f"{name}: {plural(int(found['n']), 'object')}"
        else:
            spread = ", ".join(f"{key} {found[key]:.5g}" for key in STATISTICS)
            yield f"{name}: {int(found['n'])} labels, {spread}"


def _shares(modalities: Mapping[str, float], most: int = 8) -> str:
    """ "image.legacysurvey 100 %, legacysurvey.flux_g 98 % and 12 more"."""
    from albireo.observations.modalities import MODALITIES

    words = [f"{MODALITIES[key].name} {share:.0%}" for key, share in modalities.items()]
    return ", ".join(words[:most]) + (f" and {len(words) - most} more" if len(words) > most else "")
