"""What drafting has learned, kept beside the store, so that a restarted server drafts as well as before.

The file is a hint: one that is missing, damaged or of another version costs some hundred steps of learning, so it is
never an error.
"""

from __future__ import annotations

import logging
import os
from pathlib import Path

import numpy as np

from agentinfer.spec_sam.backend import DraftModel

logger = logging.getLogger(__name__)

FILE_NAME = "drafting.npy"


def load_learned(model: DraftModel, folder: Path) -> bool:
    """Whether the folder held something that fits the model."""
    path = folder / FILE_NAME
    try:
        values = np.load(path, allow_pickle=False)
        model.restore(np.ascontiguousarray(values.reshape(-1), dtype=np.float64))
    except FileNotFoundError:
        return False
    except (OSError, ValueError, EOFError) as error:
        logger.warning("%s cannot be used, so drafting learns anew: %s", path, error)
        return False
    return True


def save_learned(model: DraftModel, folder: Path) -> None:
    """Replaces the file in one step; a failure is logged and leaves the old one."""
    path = folder / FILE_NAME
    beside = path.with_suffix(f".{os.getpid()}.tmp")
    try:
        with beside.open("wb") as file:
            np.save(file, model.learned())
        os.replace(beside, path)
    except OSError as error:
        logger.warning("%s cannot be written, so what drafting learns is lost at the end: %s", path, error)
        beside.unlink(missing_ok=True)
