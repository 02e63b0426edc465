"""The tables of a calibration set that say where its recordings are."""

from __future__ import annotations

from typing import Annotated, TypeAlias

from msgspec import Meta, Struct

from edge_mbm.errors import InputError, RecipeError
from edge_mbm.spec import Name

__all__ = ["ArrayRecordings", "FolderRecordings", "McapRecordings", "RecordingSource", "VideoRecordings"]

Seconds: TypeAlias = Annotated[float, Meta(gt=0, le=3600)]
Share: TypeAlias = Annotated[float, Meta(gt=0, le=1)]
Location: TypeAlias = Annotated[str, Meta(min_length=1)]

_DEFAULT_SPLITS = {"calibration": 0.5, "heldout": 0.45, "golden": 0.05}


class _Source(Struct, frozen=True, kw_only=True):
    path: Location | dict[str, Location]
    """From the calibration set's folder; files may be a pattern ("clips/*.mp4"). A table gives each split its own."""
    splits: dict[str, Share] = {}
    """Split -> share of the recordings; without it half calibrate, 45 % are held out and 5 % travel as golden."""

    def __post_init__(self) -> None:
        if isinstance(self.path, dict) and self.splits:
            raise InputError("'path' gives each split a place of its own, so 'splits' has nothing to divide: drop one")
        if sum(self.splits.values()) > 1 + 1e-9:
            raise InputError(f"the shares in 'splits' add up to {sum(self.splits.values()):g}: at most 1 is there")

    def location(self, split: str) -> str:
        """Where a split's recordings are, or those of all splits.

        Raises:
            RecipeError: there is no such split.
        """
        known = self.path if isinstance(self.path, dict) else self.shares()
        if split not in known:
            raise RecipeError(f"{self} has no split '{split}': there are {', '.join(known)}")
        return self.path[split] if isinstance(self.path, dict) else self.path

    def shares(self) -> dict[str, float]:
        """Split -> share of what is at one place, in order; empty where each split has a place of its own."""
        return {} if isinstance(self.path, dict) else (self.splits or _DEFAULT_SPLITS)

    def __str__(self) -> str:
        path = self.path if isinstance(self.path, str) else ", ".join(self.path.values())
        return f"recordings from {self.__struct_config__.tag} '{path}'"


class _Clips(_Source, frozen=True, kw_only=True):
    every_s: Seconds
    """Least time between two recordings; longer, where more would be there than are wanted."""
    window_s: Seconds = 1.0
    """Length of sound, up to the recording's moment."""


class McapRecordings(_Clips, frozen=True, kw_only=True, tag="mcap", tag_field="from"):
    """``{ from = "mcap", path = "session.mcap", pivot = "image", every_s = 0.5, window_s = 1.0 }``."""

    pivot: Name
    """The modality whose samples say when."""


class VideoRecordings(_Clips, frozen=True, kw_only=True, tag="video", tag_field="from"):
    """``{ from = "video", path = "clips/*.mp4", every_s = 0.5, window_s = 1.0 }``: a frame and the sound before it."""


class FolderRecordings(_Source, frozen=True, kw_only=True, tag="folder", tag_field="from"):
    """``{ from = "folder", path = "photos" }``: one file per recording, or one per modality."""

    folders: dict[Name, str] = {}
    """Modality -> its folder inside ``path``; files of the same name belong together."""


class ArrayRecordings(_Source, frozen=True, kw_only=True, tag="arrays", tag_field="from"):
    """``{ from = "arrays", path = "data.npz" }``: modality -> array[N, ...], and labels if there is a "label"."""


RecordingSource: TypeAlias = McapRecordings | VideoRecordings | FolderRecordings | ArrayRecordings
