"""Keeps out of the log what SGLang says at every start without a GPU, until it is of use to the one who reads it.

Of SGLang's model files about twenty need CUDA kernels or packages to be imported, and its registry warns of each in
every scheduler, whichever model is served. The warnings matter when the model asked for is one of those: then they are
logged after all, just before SGLang looks for another implementation. With `--log-level debug` they appear at once.
"""

from __future__ import annotations

import logging
import sys
import warnings
from typing import Any, Final

REGISTRY_LOGGER: Final = "sglang.srt.models.registry"
RESOLVE_TARGET: Final = "sglang.srt.model_loader.utils.resolve_transformers_arch"

_IGNORED_IMPORT: Final = "Ignore import error when loading "
# Said of code that is imported, not of anything that the user asked for.
_KNOWN_WARNINGS: Final = (
    r"Only CUDA, .* support (AWQ|GGUF) ",
    r"Triton is not supported on current platform, roll back to CPU",
)


class HeldBack(logging.Filter):
    """A filter on the registry's logger that keeps its warnings of failed imports, and lets everything else pass."""

    def __init__(self) -> None:
        super().__init__()
        self._records: list[logging.LogRecord] = []

    def filter(self, record: logging.LogRecord) -> bool:
        """False for a warning that is kept."""
        logger = logging.getLogger(record.name)
        if logger.isEnabledFor(logging.DEBUG) or not record.getMessage().startswith(_IGNORED_IMPORT):
            return True
        self._records.append(record)
        return False

    def release(self) -> None:
        """Logs what was kept, each once."""
        records, self._records = self._records, []
        for record in records:
            # Past the filter: it stands in `Logger.handle`.
            logging.getLogger(record.name).callHandlers(record)


def install() -> None:
    """Installs the filters in this process, once. A user who set Python's own warning options keeps them."""
    logger = logging.getLogger(REGISTRY_LOGGER)
    if _HELD_BACK not in logger.filters:
        logger.addFilter(_HELD_BACK)
        if not sys.warnoptions:
            for message in _KNOWN_WARNINGS:
                warnings.filterwarnings("ignore", message)


def before_resolving(*args: Any, **kwargs: Any) -> None:
    """BEFORE hook on the search for another implementation: the model asked for is none that could be imported."""
    _HELD_BACK.release()


_HELD_BACK: Final = HeldBack()
