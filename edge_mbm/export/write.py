"""From a finished draft to the bundle: manifest, graphs, labels, golden samples, report."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
import onnx
import onnxruntime
import torch

from edge_mbm.bundle import BundleFiles, write_bundle
from edge_mbm.export.draft import Draft, given
from edge_mbm.export.report import REPORT_DATA, REPORT_PAGE, report
from edge_mbm.export.tokenizers import tokenizer_files, tokenizer_path
from edge_mbm.export.variants import DIALECTS
from edge_mbm.spec import Asset, Component, GoldenSample, Manifest, Provenance, Variant

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["write"]

_LIBRARIES: tuple[Any, ...] = (np, onnx, onnxruntime, torch)


def write(draft: Draft, target: Path) -> Manifest:
    """Write the bundle whole or not at all, and read it back.

    Raises:
        BundleError: it cannot be written there.
        ManifestError: what was made contradicts itself.
    """
    contents: dict[str, bytes] = {}
    recipe = draft.loaded.recipe
    manifest = Manifest(
        name=recipe.name,
        description=recipe.description,
        modalities=recipe.modalities,
        components=_components(draft, contents),
        default_heads=recipe.default_heads,
        assets=_assets(draft, contents),
        golden=_golden(draft, contents),
        files={},
        provenance=Provenance(
            recipe_sha256=draft.loaded.sha256,
            model_sha256=draft.origin.sha256(),
            versions=_versions(),
            calibration=given(draft.calibrated).record,
        ),
    )
    contents |= report(draft, manifest)
    written = write_bundle(target, manifest, contents)
    with BundleFiles(target):  # every byte of it, as a device will
        return written


def _versions() -> dict[str, str]:
    # What runs, not what is installed under some name: there is more than one package that gives onnxruntime.
    return {"edge-mbm": version("edge-mbm"), **{lib.__name__: str(lib.__version__) for lib in _LIBRARIES}}


def _components(draft: Draft, contents: dict[str, bytes]) -> dict[str, Component]:
    made: dict[str, Component] = {}
    for name in draft.loaded.recipe.components:
        tried = [variant for component, variant in given(draft.decisions) if component == name]
        variants = {variant: _variant(draft, name, variant, contents) for variant in tried}
        made[name] = msgspec.structs.replace(given(draft.components)[name], variants=variants)
    return made


def _variant(draft: Draft, name: str, variant: str, contents: dict[str, bytes]) -> Variant:
    key, decision = (name, variant), given(draft.decisions)[name, variant]
    dialect = None if variant == "fp32" else DIALECTS[variant]
    path = f"graphs/{name}.{variant}.onnx" if decision.kept else None
    if path is not None:
        contents[path] = given(draft.graphs)[key]
    return Variant(
        target=dialect.family if dialect else "any",
        precision=dialect.precision if dialect else "fp32",
        decision=decision,
        opset=draft.loaded.recipe.opset,
        graph=path,
        error=given(draft.errors).get(key),
        speed=given(draft.speeds).get(key),
        made_by=draft.made_by.get(key, ""),
        parsed=given(draft.checks)[key].parsed if key in given(draft.checks) else (),
    )


def _assets(draft: Draft, contents: dict[str, bytes]) -> dict[str, Asset]:
    assets = {}
    for name, labels in draft.loaded.recipe.labels.items():
        contents[f"labels/{name}.txt"] = "".join(f"{label}\n" for label in labels).encode()
        assets[name] = Asset(kind="labels", path=f"labels/{name}.txt")
    for name, tokenizer in tokenizer_files(draft.loaded).items():
        path = tokenizer_path(name, tokenizer)
        contents[path] = tokenizer
        assets[name] = Asset(kind="tokenizer", path=path)
    listing = json.dumps(dict(given(draft.data).calibration.entries), indent=1) + "\n"
    contents["calibration/samples.json"] = listing.encode()
    assets["calibration_samples"] = Asset(kind="other", path="calibration/samples.json")
    assets["report"] = Asset(kind="report", path=REPORT_PAGE)
    assets["report_data"] = Asset(kind="report", path=REPORT_DATA)
    return assets


def _golden(draft: Draft, contents: dict[str, bytes]) -> tuple[GoldenSample, ...]:
    """A few real inputs with what the framework makes of them."""
    samples = []
    for index, (recording, outputs) in enumerate(given(draft.reference).golden):
        paths = _arrays(f"golden/{index}", recording.inputs, contents)
        references = _arrays(f"golden/{index}.reference", outputs, contents)
        samples.append(GoldenSample(id=recording.id, inputs=paths, outputs=references))
    return tuple(samples)


def _arrays(prefix: str, values: Mapping[str, NDArray[Any] | str], contents: dict[str, bytes]) -> dict[str, str]:
    paths = {}
    for key, value in values.items():
        text = _text(value)
        paths[key] = f"{prefix}.{key}.{'npy' if text is None else 'txt'}"
        contents[paths[key]] = _npy(np.asarray(value)) if text is None else text.encode()
    return paths


def _text(value: NDArray[Any] | str) -> str | None:
    """A modality's text, or a decoder's; None of numbers."""
    if isinstance(value, str):
        return value
    return str(value[0]) if value.dtype.kind == "U" else None


def _npy(array: NDArray[Any]) -> bytes:
    stream = io.BytesIO()
    np.save(stream, np.ascontiguousarray(array), allow_pickle=False)
    return stream.getvalue()
