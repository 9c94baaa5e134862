"""Checking what callers hand in."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from agentinfer.spec_sam.store.errors import StoreError
from agentinfer.spec_sam.store.payloads import Tokens

_MAX_NAME_BYTES = 1024


def as_tokens(values: npt.ArrayLike, name: str) -> Tokens:
    """One row of int32 token ids. Raises StoreError."""
    array = np.asarray(values)
    if array.ndim != 1 or (len(array) and array.dtype.kind not in "iu"):
        raise StoreError(f"{name}: expected a list of token ids, got {array.dtype} of shape {array.shape}")
    if len(array) and not (int(array.min()) >= -(2**31) and int(array.max()) < 2**31):
        raise StoreError(f"{name}: expected 32-bit token ids, got {int(array.min())} to {int(array.max())}")
    return np.ascontiguousarray(array, dtype=np.int32)


def check_name(name: str, value: str) -> None:
    """Raises StoreError for one that is too long, or no text that can be stored."""
    try:
        size = len(value.encode())
    except UnicodeEncodeError:
        size = _MAX_NAME_BYTES + 1
    if size > _MAX_NAME_BYTES:
        raise StoreError(f"{name}: expected up to {_MAX_NAME_BYTES} bytes of UTF-8, got {value[:40]!r}...")


def check_number(name: str, value: int, high: int) -> None:
    if not 0 <= value <= high:
        raise StoreError(f"{name}: expected 0 to {high}, got {value}")
