"""Messages whose arrays go through shared memory."""

import errno
import multiprocessing
import os

import numpy as np
import pytest

from lightning_ript.envs.channel import Channel, shared_file


@pytest.fixture
def ends():
    ours, theirs = multiprocessing.Pipe()
    memory = shared_file()
    ends = Channel(ours, memory), Channel(theirs, os.dup(memory))
    yield ends
    for end in ends:
        end.close()


def test_arrays_arrive_as_they_were_and_keep_their_values(ends):
    ours, theirs = ends
    image = np.arange(2 * 3 * 3, dtype=np.uint8).reshape(2, 3, 3)
    sent = {"image": image, "turned": image.transpose(2, 0, 1)[:, ::-1], "none": np.zeros((0, 4))}
    ours.send(("reset", sent, 1.5))
    method, received, number = theirs.receive()
    assert (method, number) == ("reset", 1.5)
    for name, value in sent.items():
        np.testing.assert_array_equal(received[name], value)
        assert received[name].dtype == value.dtype
    theirs.send(np.zeros(100))  # over the same memory
    ours.receive()
    np.testing.assert_array_equal(received["image"], image)
    received["image"][:] = 0  # a copy of one's own


def test_the_memory_grows_with_the_messages(ends):
    ours, theirs = ends
    for size in (10, 100_000, 10, 1_000_000):
        values = np.random.default_rng(size).random(size)
        ours.send(values)
        np.testing.assert_array_equal(theirs.receive(), values)
        theirs.send(-values)
        np.testing.assert_array_equal(ours.receive(), -values)


def test_arrays_do_not_go_through_the_pipe(ends):
    ours, theirs = ends
    ours.send(np.zeros(1_000_000))  # would block: nobody reads the other end yet
    assert len(theirs.connection.recv_bytes()) < 1000


def test_an_end_that_is_gone_is_noticed(ends):
    ours, theirs = ends
    theirs.close()
    with pytest.raises(EOFError):
        ours.receive()
    with pytest.raises(BrokenPipeError):
        ours.send(1)


def test_memory_that_is_full_is_said(ends, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(OSError, match=r"has no room for .* bytes .*--shm-size"):
        ends[0].send(np.zeros(1000))
