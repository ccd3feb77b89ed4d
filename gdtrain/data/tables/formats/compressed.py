"""Files as they are or compressed by gzip, bzip2 or zstd, told by their first bytes."""

from __future__ import annotations

import io
from contextlib import ExitStack
from pathlib import Path
from typing import Any, BinaryIO

from gdtrain.data.checks import check_file
from gdtrain.errors import DataError

_CODECS = {b"\x1f\x8b": "gzip", b"BZh": "bz2", b"\x28\xb5\x2f\xfd": "zstd"}


class Unpacked(io.RawIOBase):
    """The bytes of a file, unpacked if need be; ``position`` is that in the file as it is.

    Raises DataError for a file that can't be read, or is damaged.
    """

    def __init__(self, path: str) -> None:
        import pyarrow as pa

        self.path = path
        try:
            check_file(path)
            with ExitStack() as stack:
                self._file: BinaryIO = stack.enter_context(Path(path).open("rb"))
                start = self._file.read(4)
                self._file.seek(0)
                stack.pop_all()  # it stays open
        except OSError as error:
            raise DataError(f"{path}: can't be read: {error.strerror}") from error
        self.codec = next((name for magic, name in _CODECS.items() if start.startswith(magic)), "")
        self._stream: Any = self._file
        if self.codec:
            self._stream = pa.CompressedInputStream(pa.PythonFile(self._file, "r"), self.codec)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        block = self.read(len(buffer))
        buffer[: len(block)] = block
        return len(block)

    def read(self, size: int = -1) -> bytes:
        """Up to ``size`` bytes; none at the end."""
        try:
            block: bytes = self._stream.read(None if size < 0 else size)
        except (OSError, ValueError) as error:
            what = f"is damaged, or no {self.codec} file: {error}" if self.codec else str(error)
            raise DataError(f"{self.path}: {what}") from error
        return block

    @property
    def position(self) -> int:
        """Bytes of the file, as it is, that have been read."""
        return self._file.tell()

    def close(self) -> None:
        if not self.closed and hasattr(self, "_stream"):
            self._stream.close()
            self._file.close()
        super().close()
