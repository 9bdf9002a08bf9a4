"""Files that a command writes results to. What goes wrong with them is the user's to mend: one line."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TypeVar

from ..errors import ConfigError

_AnyOutput = TypeVar("_AnyOutput", "Output", "BinaryOutput")


class user_error:  # noqa: N801 - used as a function
    """A full disk or the like under one of our outputs is the user's to mend; a reader that left is no error."""

    __slots__ = ("what",)

    def __init__(self, what: str) -> None:
        self.what = what

    def __enter__(self) -> None:
        pass

    def __exit__(self, _kind: object, error: BaseException | None, _where: object) -> None:
        if isinstance(error, OSError) and not isinstance(error, BrokenPipeError):
            raise ConfigError(f"{self.what}: {error.strerror}") from None


class Output:
    """A text file whose errors are the user's."""

    def __init__(self, path: str) -> None:
        self.path = path
        with user_error(path):
            self._file = sys.stdout if path == "-" else open(path, "w", encoding="utf-8")  # noqa: SIM115

    def write(self, text: str) -> None:
        with user_error(self.path):
            self._file.write(text)

    def flush(self) -> None:
        with user_error(self.path):
            self._file.flush()

    def close(self) -> None:
        if self._file is not sys.stdout:
            with user_error(self.path):
                self._file.close()


class BinaryOutput:
    """A file of records whose errors are the user's. Each write reaches the system at once."""

    def __init__(self, path: str) -> None:
        self.path = path
        with user_error(path):
            self._file = open(path, "wb", buffering=0)  # noqa: SIM115

    def write(self, data: bytes) -> None:
        view = memoryview(data)
        with user_error(self.path):
            while view:
                view = view[self._file.write(view) :]

    def close(self) -> None:
        with user_error(self.path):
            self._file.close()


@contextmanager
def output_file(path: str) -> Iterator[Output]:
    """Open a text file; `-` is standard output."""
    with _closing(Output(path)) as output:
        yield output


@contextmanager
def binary_file(path: str) -> Iterator[BinaryOutput]:
    """Open a file of records."""
    with _closing(BinaryOutput(path)) as output:
        yield output


@contextmanager
def _closing(output: _AnyOutput) -> Iterator[_AnyOutput]:
    try:
        yield output
    except BaseException:
        with suppress(ConfigError):
            output.close()
        raise
    output.close()
