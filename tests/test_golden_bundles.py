"""Old bundles open for ever: ``tests/golden/`` keeps one of every format version that was ever shipped."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import edge_mbm
from edge_mbm.testing import tiny_bundle

GOLDEN = sorted((Path(__file__).parent / "golden").glob("*.mbm"))


def test_there_is_one_of_each_version() -> None:
    """The first format's bundle is among them and is never taken away."""
    assert "tiny-1.0.mbm" in {path.name for path in GOLDEN}


@pytest.mark.parametrize("path", GOLDEN, ids=lambda path: path.name)
def test_an_old_bundle_opens(path: Path) -> None:
    """Its manifest is understood, every byte is what was written, and it says the version of its file name."""
    bundle = edge_mbm.load(path)
    assert bundle.manifest.format_version == path.stem.rpartition("-")[2]
    assert bundle.manifest.heads()


@pytest.mark.needs("onnxruntime")
@pytest.mark.parametrize("path", GOLDEN, ids=lambda path: path.name)
def test_an_old_bundle_gives_the_old_answers(path: Path) -> None:
    """Run today, its golden inputs give the reference outputs that were computed when it was made."""
    bundle = edge_mbm.load(path)
    with bundle.session() as session:
        for sample in bundle.manifest.golden:
            got = session.run_components(**{k: bundle.read_array(v) for k, v in sample.inputs.items()})
            for name, reference in sample.outputs.items():
                np.testing.assert_allclose(got[name], bundle.read_array(reference), rtol=1e-5, atol=1e-6)


def test_the_shipped_tiny_bundle_is_the_golden_one() -> None:
    """As long as the format is 1.0, ``edge_mbm.testing`` ships the very bytes that are kept here."""
    assert tiny_bundle().read_bytes() == (Path(__file__).parent / "golden" / "tiny-1.0.mbm").read_bytes()
