"""The fakes that edge-mbm tests itself with: test your robot the way we test ours."""

from edge_mbm.testing.bundles import tiny_bundle
from edge_mbm.testing.clock import FakeClock
from edge_mbm.testing.engines import NullEngine
from edge_mbm.testing.sources import ScriptedSource

__all__ = ["FakeClock", "NullEngine", "ScriptedSource", "tiny_bundle"]
