"""Where models come from: what each kind of origin computes, and how it becomes a graph."""

from edge_mbm.export.origins.component import ComponentOrigin, Model

__all__ = ["ComponentOrigin", "Model"]
