"""Reading a GGUF file: its metadata, and its tensors as float32 a few rows at a time.

The header is parsed here because the `gguf` package's reader makes one array per vocabulary entry (12 s for Gemma's
262,144). The bit layouts of the quantised blocks are the package's: it is llama.cpp's own.
Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt
from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType
from gguf.quants import dequantize

from agentinfer.errors import ModelError

Rows = npt.NDArray[np.float32]

_MAGIC = b"GGUF"
_SCALARS = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q", 12: "<d"}
_STRING, _ARRAY = 8, 9


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """Where a tensor lies. `shape` is in numpy order, the row last; `offset` counts bytes from the file's start."""

    name: str
    shape: tuple[int, ...]
    quantization: GGMLQuantizationType
    offset: int

    @property
    def num_rows(self) -> int:
        return int(np.prod(self.shape[:-1], dtype=np.int64))

    @property
    def row_bytes(self) -> int:
        block_elements, block_bytes = GGML_QUANT_SIZES[self.quantization]
        return self.shape[-1] // int(block_elements) * int(block_bytes)


class GgufFile:
    """An open GGUF file, memory-mapped; use as a context manager.

    Raises `ModelError` when the file is not GGUF version 2 or 3 or ends early.
    """

    def __init__(self, path: Path) -> None:
        self._at = 0
        try:
            with path.open("rb") as file:
                self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            self.metadata, self.tensors = self._read_header()
        except (struct.error, UnicodeDecodeError, KeyError, ValueError) as error:
            raise ModelError(
                f"{path}: not a readable GGUF file (at byte {self._at} of {path.stat().st_size}: {error}); "
                "expected GGUF version 2 or 3, whole. Reinstall the model's package"
            ) from error

    def __enter__(self) -> GgufFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # Not `self._map.close()`: it raises while a caller's array still looks into it. The last reference frees it.
        del self._map

    def rows(
        self, tensor: TensorInfo, order: npt.NDArray[np.intp] | None = None, *, max_elements: int = 1 << 22
    ) -> Iterator[Rows]:
        """The tensor's rows as float32 blocks of at most `max_elements`, so that memory does not follow tensor size.

        `order` lists the row numbers to give, in that order. Quantisation blocks never cross a row, so
        reordering is free.
        """
        raw = np.frombuffer(self._map, np.uint8, tensor.num_rows * tensor.row_bytes, tensor.offset)
        raw = raw.reshape(tensor.num_rows, tensor.row_bytes)
        step = max(1, max_elements // tensor.shape[-1])
        for start in range(0, tensor.num_rows, step):
            block = raw[start : start + step] if order is None else raw[order[start : start + step]]
            yield np.asarray(dequantize(block, tensor.quantization), dtype=np.float32)

    def _read_header(self) -> tuple[dict[str, Any], tuple[TensorInfo, ...]]:
        magic = self._map[:4]
        if magic != _MAGIC:
            raise ValueError(f"starts with {magic!r}, expected {_MAGIC!r}")
        self._at = 4
        version = self._scalar("<I")
        if version not in (2, 3):
            raise ValueError(f"GGUF version {version}")
        num_tensors, num_keys = self._scalar("<Q"), self._scalar("<Q")
        metadata = {}
        for _ in range(num_keys):
            key = self._string()
            metadata[key] = self._value(self._scalar("<I"))
        listed = [self._tensor() for _ in range(num_tensors)]
        alignment = metadata.get("general.alignment", 32)
        data_start = -(-self._at // alignment) * alignment
        tensors = tuple(TensorInfo(name, shape, kind, data_start + offset) for name, shape, kind, offset in listed)
        for tensor in tensors:
            end = tensor.offset + tensor.num_rows * tensor.row_bytes
            if end > len(self._map):
                raise ValueError(f"tensor {tensor.name} ends at byte {end}")
        return metadata, tensors

    def _tensor(self) -> tuple[str, tuple[int, ...], GGMLQuantizationType, int]:
        name = self._string()
        # ggml lists the fastest-varying dimension first.
        shape = tuple(reversed([self._scalar("<Q") for _ in range(self._scalar("<I"))]))
        return name, shape, GGMLQuantizationType(self._scalar("<I")), self._scalar("<Q")

    def _value(self, kind: int) -> Any:
        if kind == _STRING:
            return self._string()
        if kind != _ARRAY:
            return self._scalar(_SCALARS[kind])
        item_kind, count = self._scalar("<I"), self._scalar("<Q")
        if item_kind in (_STRING, _ARRAY):
            return [self._value(item_kind) for _ in range(count)]
        layout = f"<{count}{_SCALARS[item_kind][1]}"
        values = struct.unpack_from(layout, self._map, self._at)
        self._at += struct.calcsize(layout)
        return list(values)

    def _scalar(self, layout: str) -> Any:
        (value,) = struct.unpack_from(layout, self._map, self._at)
        self._at += struct.calcsize(layout)
        return value

    def _string(self) -> str:
        size_bytes = self._scalar("<Q")
        start = self._at
        if start + size_bytes > len(self._map):
            raise ValueError(f"a string of {size_bytes} bytes")
        self._at += size_bytes
        return self._map[start : self._at].decode("utf-8")
