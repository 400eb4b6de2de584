"""The noise is normal, secret, and never the same twice, whatever the seed, process or thread."""

import inspect
import multiprocessing
import os
import threading

import numpy as np
import pytest
import torch
from budget import budget
from scipy import stats

from federated import noise, private_training
from federated.noise import SecretNormals, normal


def test_draws_are_standard_normal():
    draws = normal(budget(200_000, 1_000_000))
    assert stats.kstest(draws, "norm").pvalue > 1e-4
    # The tails, where the test above looks least: 2.7 in a thousand lie beyond 3.
    assert abs((np.abs(draws) > 3).mean() / 0.0026998 - 1) < 0.25
    assert abs(draws.std() - 1) < 0.01


def test_draws_are_independent_of_their_neighbours():
    draws = normal(100_000)
    for lag in (1, 2, 3):
        assert abs(np.corrcoef(draws[:-lag], draws[lag:])[0, 1]) < 0.02


def test_uniforms_never_reach_the_ends():
    draws = SecretNormals().uniform(200_000)
    assert 0 < draws.min() < 1e-3
    assert 1 - 1e-3 < draws.max() < 1
    assert stats.kstest(draws, "uniform").pvalue > 1e-4


def test_two_runs_differ():
    assert not np.array_equal(normal(100), normal(100))
    assert not np.array_equal(SecretNormals().normal(100), SecretNormals().normal(100))


def test_no_librarys_seed_repeats_the_noise():
    def seeded() -> np.ndarray:
        torch.manual_seed(7)
        np.random.seed(7)  # noqa: NPY002  (the old global generator is the point)
        return normal(100)

    assert not np.array_equal(seeded(), seeded())


def test_there_is_no_seed_to_give():
    names = {
        name
        for function in (
            noise.normal,
            noise.SecretNormals,
            private_training.private_gradient,
        )
        for name in inspect.signature(function).parameters
    }
    assert not names & {"seed", "rng", "generator", "random_state"}


def _child(pipe) -> None:
    pipe.send(normal(50))
    pipe.close()


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_forked_child_draws_its_own():
    normal(1)  # the parent's stream exists and would be copied
    context = multiprocessing.get_context("fork")
    drawn = []
    for _ in range(2):
        ours, theirs = context.Pipe()
        child = context.Process(target=_child, args=(theirs,))
        child.start()
        drawn.append(ours.recv())
        child.join()
    drawn.append(normal(50))
    assert len({draw.tobytes() for draw in drawn}) == 3


def test_a_copied_stream_is_replaced_in_another_process(monkeypatch: pytest.MonkeyPatch):
    source = SecretNormals()
    before = source._stream
    monkeypatch.setattr(os, "getpid", lambda: 1)
    source.normal(1)
    assert source._stream is not before


def test_a_stream_is_replaced_long_before_its_counter_wraps():
    source = SecretNormals()
    before, source._left = source._stream, 7
    source.uniform(1)
    assert source._stream is not before


def test_threads_never_share_a_draw():
    drawn: list[bytes] = []
    threads = [
        threading.Thread(target=lambda: drawn.extend(normal(8).tobytes() for _ in range(200)))
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(drawn)) == 800


def test_the_number_of_draws_is_limited():
    assert normal(0).shape == (0,)
    with pytest.raises(ValueError, match="count"):
        normal(2**24 + 1)
