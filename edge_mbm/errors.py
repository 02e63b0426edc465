"""Every exception edge-mbm raises on purpose.

::

    EdgeMbmError
    ├── BundleError               the bundle itself
    │   ├── BundleIntegrityError    a file is missing, truncated, altered or not allowed
    │   ├── BundleVersionError      written by a newer major version
    │   └── ManifestError           the manifest contradicts itself or its graphs
    ├── RecipeError               the export recipe: unknown key, wrong value, missing file
    ├── ExportError               a stage of the export failed
    │   ├── TraceError              a component would not become an ONNX graph
    │   ├── ParityError             a graph does not compute what its origin computes
    │   └── BudgetError             the accuracy or speed that the recipe asks for cannot be met
    ├── CalibrationError          the calibration data is missing, empty, or not finite
    ├── DeviceError            on the device
    │   ├── EngineError             an engine could not load or run a graph
    │   │   └── DeviceLostError       the GPU does not answer any more: the session is closed
    │   ├── SourceError             a camera, microphone or file could not be opened or stopped giving data
    │   ├── SessionClosedError      used after close
    │   └── VerificationError       this machine does not compute what the framework computed
    ├── InputError                data handed in has the wrong shape, dtype, time or value   (also a ValueError)
    └── MissingDependencyError    an optional package is not installed                       (also an ImportError)

A message says what was wrong, where, and what to do next. ``exit_code`` is what the command line returns for it.
"""

from __future__ import annotations

__all__ = [
    "BudgetError",
    "BundleError",
    "BundleIntegrityError",
    "BundleVersionError",
    "CalibrationError",
    "DeviceError",
    "DeviceLostError",
    "EdgeMbmError",
    "EngineError",
    "ExportError",
    "InputError",
    "ManifestError",
    "MissingDependencyError",
    "ParityError",
    "RecipeError",
    "SessionClosedError",
    "SourceError",
    "TraceError",
    "VerificationError",
]


class EdgeMbmError(Exception):
    """Base of all: catch this to catch everything edge-mbm raises on purpose."""

    exit_code = 1


class BundleError(EdgeMbmError):
    """The bundle cannot be used."""

    exit_code = 3


class BundleIntegrityError(BundleError):
    """A file of the bundle is missing, truncated, altered, too large, or of a kind that is not allowed."""


class BundleVersionError(BundleError):
    """The bundle's format is of a major version this edge-mbm does not know."""


class ManifestError(BundleError):
    """The manifest contradicts itself, or does not describe its graphs."""


class RecipeError(EdgeMbmError):
    """The export recipe has an unknown key, a wrong value, or names something that is not there."""

    exit_code = 2


class ExportError(EdgeMbmError):
    """A stage of the export failed."""

    exit_code = 4


class TraceError(ExportError):
    """A component could not be turned into an ONNX graph."""


class ParityError(ExportError):
    """An exported graph does not compute what its origin computes."""


class BudgetError(ExportError):
    """The accuracy or speed that the recipe asks for cannot be met."""

    exit_code = 5


class CalibrationError(EdgeMbmError):
    """The calibration data is missing, empty, or not finite."""

    exit_code = 4


class DeviceError(EdgeMbmError):
    """Something failed while running on the device."""

    exit_code = 6


class EngineError(DeviceError):
    """An engine could not load or run a graph."""


class DeviceLostError(EngineError):
    """The GPU does not answer any more (an Xid, a reset, a cable): only a new process can use it again."""


class SourceError(DeviceError):
    """A camera, microphone or file could not be opened, or stopped giving data."""


class SessionClosedError(DeviceError):
    """A session or live stream was used after it was closed."""


class VerificationError(DeviceError):
    """The bundle's bytes are right, and yet this machine does not compute the reference outputs in it."""

    exit_code = 8


class InputError(EdgeMbmError, ValueError):
    """Data handed in has the wrong shape, dtype, time or value."""

    exit_code = 2


class MissingDependencyError(EdgeMbmError, ImportError):
    """An optional package is not installed; the message has the line that installs it."""

    exit_code = 7

    def __init__(self, module: str, purpose: str, remedy: str) -> None:
        super().__init__(f"{purpose} needs the Python module '{module}', which is not installed. To mend it: {remedy}")
        self.module = module
        self.remedy = remedy
