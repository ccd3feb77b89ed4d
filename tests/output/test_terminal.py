"""Text for people: what can't be printed is dropped, and nothing in it is obeyed by a terminal."""

import io
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TextIO

import pytest
from helpers.processes import run

from gdtrain.errors import StorageError
from gdtrain.output.terminal import (
    DroppingStream,
    ResultStream,
    check_results,
    printable,
    results_are_files,
)

with_full_device = pytest.mark.skipif(
    not Path("/dev/full").exists(), reason="needs the device /dev/full"
)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain, größer ∂J/∂θ\tand\n", "plain, größer ∂J/∂θ\tand\n"),
        ("\x1b]0;title\x07\x1b[31mred", r"\x1b]0;title\x07\x1b[31mred"),
        ("over\rwritten\x08", r"over\rwritten\x08"),
        ("\x9b31m\x7f", r"\x9b31m\x7f"),
        ("to\u202eleft \ud800", r"to\u202eleft \ud800"),
    ],
)
def test_control_characters_are_written_as_escapes(text: str, shown: str) -> None:
    assert printable(text) == shown


def closed_pipe() -> io.TextIOWrapper:
    reader, writer = os.pipe()
    os.close(reader)
    return os.fdopen(writer, "w")


def closed_file() -> io.StringIO:
    file = io.StringIO()
    file.close()
    return file


def full_device() -> io.TextIOWrapper:
    return os.fdopen(os.open("/dev/full", os.O_WRONLY), "w")


def full_standard_output() -> None:
    os.dup2(os.open("/dev/full", os.O_WRONLY), 1)


@contextmanager
def closed_later(stream: TextIO) -> Iterator[TextIO]:
    try:
        yield stream
    finally:
        with suppress(OSError):
            stream.close()


STREAMS = {"closed pipe": closed_pipe, "closed file": closed_file, "full": full_device}


@with_full_device
@pytest.mark.parametrize("kind", STREAMS)
def test_messages_that_cant_be_written_are_dropped(kind: str) -> None:
    with closed_later(STREAMS[kind]()) as file:
        stream = DroppingStream(file)
        for _ in range(3):
            print("x" * 10_000, file=stream, flush=True)
        assert not stream.isatty()


@with_full_device
def test_results_that_cant_be_written_are_told_of_in_the_end(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    full = r"^standard output could not be written: \[Errno 28\]"
    for make, kind, said in (
        (full_device, StorageError, full),
        (closed_pipe, BrokenPipeError, None),
    ):
        with closed_later(make()) as file, monkeypatch.context() as patch:
            patch.setattr(sys, "stdout", ResultStream(file))
            print("x")
            print("more", flush=True)
            with pytest.raises(kind, match=said):
                check_results()
            results_are_files()
            print("more", flush=True)
            check_results()


@with_full_device
def test_a_full_standard_output_is_told_of_in_a_line() -> None:
    done = run("-m", "gdtrain", "schema", before=full_standard_output)
    assert done.returncode == 1
    assert done.err == (
        "gdtrain: standard output could not be written: [Errno 28] No space left on device\n"
    )
