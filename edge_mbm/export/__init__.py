"""The workstation side: a trained model -> ONNX -> variants -> one verified bundle."""

from edge_mbm.errors import MissingDependencyError

try:
    import jinja2  # noqa: F401 - all of these are asked for at the door, not in the middle of an export
    import matplotlib as mpl  # noqa: F401
    import onnx  # noqa: F401
    import onnxruntime  # noqa: F401
    import torch  # noqa: F401
except ImportError as absent:
    raise MissingDependencyError(absent.name or "torch", "exporting", "pip install 'edge-mbm[export]'") from None

from edge_mbm.export.pipeline import export_bundle
from edge_mbm.export.progress import Progress, Silent
from edge_mbm.export.recipe import CalibrationSet, Recipe, load_recipe

__all__ = ["CalibrationSet", "Progress", "Recipe", "Silent", "export_bundle", "load_recipe"]
