"""What the overload benchmark tells of the time after a load."""

from __future__ import annotations

import pytest

from benchmarks.overload import RUN, Answer, normal_again, slow_share


def answers(took: list[float], status: int = 200) -> list[Answer]:
    """One after the other from second 100 on, each taking so long."""
    out, now = [], 100.0
    for seconds in took:
        out.append(Answer(now, now + seconds, status, 0.0, ""))
        now += seconds
    return out


def test_normal_from_the_start() -> None:
    assert normal_again(answers([1.0] * 20), 100.0, 1.5) == 0.0


def test_normal_after_some_slow_answers() -> None:
    # Of 2, 2, 2, 2, 1, 1, 1 ... the median of five is last 2 when three of them are slow: up to the sixth answer.
    assert normal_again(answers([2.0] * 4 + [1.0] * 20), 100.0, 1.5) == pytest.approx(10.0)


def test_one_slow_answer_is_not_a_slow_service() -> None:
    assert normal_again(answers([1.0] * 10 + [9.0] + [1.0] * 10), 100.0, 1.5) == 0.0


def test_what_is_refused_is_slow() -> None:
    assert normal_again(answers([0.1] * RUN, 429), 100.0, 1.5) == pytest.approx(0.1 * RUN)


def test_share_of_slow_answers() -> None:
    assert slow_share(answers([1.0, 1.0, 1.6, 1.4]), 1.0) == 0.25
    assert slow_share(answers([1.0], 500), 1.0) == 1.0
