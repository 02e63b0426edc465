"""The report: a page that stands alone, and the same as data."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from edge_mbm.calibration import Histogram, Percentile
from edge_mbm.errors import MissingDependencyError
from edge_mbm.export import evidence as records
from edge_mbm.export.draft import Finding, GroupEffect, LayerError
from edge_mbm.export.evidence import (
    CandidateEvidence,
    ComponentEvidence,
    Evidence,
    HeadEvidence,
    HistogramEvidence,
    RecoveryEvidence,
    SearchEvidence,
    TargetEvidence,
    TensorEvidence,
    VariantEvidence,
    decode_evidence,
    encode_evidence,
)
from edge_mbm.export.recipe import Budget
from edge_mbm.export.report import matters, page
from edge_mbm.runtime.plan import choose_variant
from edge_mbm.spec import CalibrationRecord, Decision, ErrorFigures, ParserCheck, SpeedFigures

HOSTILE = """<script>alert(1)</script>"'><img src=x onerror=alert(2)>$x^{$ {{ 7 * 7 }} ]]>&amp; #010101"""
VOID = {"meta", "br", "link", "img", "hr", "input"}


def errors(cosine: float = 0.998, accuracy: float | None = 0.928) -> ErrorFigures:
    return ErrorFigures(samples=40, cosine=cosine, sqnr_db=24.9, max_abs=0.1, agreement=0.985, accuracy=accuracy)


def speed(median: float, speedup: float) -> SpeedFigures:
    return SpeedFigures(host="Some CPU, 1 thread", median_us=float(median), iqr_us=1.0, speedup=speedup)


def search(name: str = "conv") -> SearchEvidence:
    layers = tuple(
        LayerError(node=f"{name}_{k}", op="Conv", sqnr_db=db) for k, db in enumerate((41.0, 17.5, 30.0, 12.0))
    )
    candidates = (
        CandidateEvidence(preset="plain", sqnr_db=15.0, speed=speed(50, 2.0), error=errors(), faults=("too far",)),
        CandidateEvidence(preset="broken", faults=(f"it cannot load {name}",)),
        CandidateEvidence(
            preset="plain",
            reverted=(f"{name}_1 (+2)",),
            float_nodes=3,
            sqnr_db=25.0,
            speed=speed(60, 1.7),
            error=errors(),
        ),
        CandidateEvidence(preset="smooth", sqnr_db=14.0),
    )
    return SearchEvidence(
        candidates=candidates,
        front=(0, 2),
        chosen=2,
        evaluations=9,
        groups=(GroupEffect(group=f"{name}_1 (+2)", nodes=("a", "b", "c"), sqnr_db=18.0, share=0.2),),
        layers=layers,
        first_bad_layer=layers[1],
        recovery=RecoveryEvidence(steps=300, before_db=19.0, after_db=25.0),
    )


def tensor(name: str, low: float = -1.0, high: float = 3.0, *, asleep: bool = False) -> TensorEvidence:
    histogram = HistogramEvidence(start=-2.0, width=0.5, counts=tuple(range(1, 13)))
    return TensorEvidence(
        tensor=name, low=low, high=high, minimum=-2.0, maximum=4.0, all_zero=asleep, histogram=histogram
    )


def component(name: str = "conv", tensors: int = 5) -> ComponentEvidence:
    fp32 = VariantEvidence(
        target="any",
        precision="fp32",
        decision=Decision(kept=True, reason="the reference"),
        bytes=400_000,
        error=errors(1.0),
        speed=speed(100, 1.0),
    )
    int8 = VariantEvidence(
        target="x86-cpu",
        precision="int8",
        decision=Decision(kept=True, reason="within budget"),
        bytes=110_000,
        made_by=f"preset 'plain', {name}_1 left in float",
        error=errors(),
        speed=speed(60, 1.7),
        search=search(name),
    )
    arm = VariantEvidence(
        target="arm-cpu",
        precision="int8",
        decision=Decision(kept=False, reason=f"agreement 0.9 at {name}"),
        bytes=120_000,
    )
    half = VariantEvidence(
        target="tensorrt",
        precision="fp16",
        decision=Decision(kept=True, reason="within budget"),
        bytes=200_000,
        parsed=(ParserCheck(where="a parser", accepted=True),),
    )
    return ComponentEvidence(
        kind="encoder",
        budget=Budget(),
        exporter="dynamo",
        variants={"fp32": fp32, "x86-cpu-int8": int8, "arm-cpu-int8": arm, "trt-fp16": half},
        ranges=tuple(tensor(f"{name}_{k}", asleep=k == 3) for k in range(tensors)),
    )


def whole(name: str = "conv", components: tuple[str, ...] = ("image_encoder", "head"), tensors: int = 5) -> Evidence:
    return Evidence(
        name=name,
        description=f"About {name}",
        heldout="heldout",
        heads=(HeadEvidence(head="head", error=errors(), original=errors(1.0, 0.93), required_accuracy=0.75),),
        components={key: component(name, tensors) for key in components},
        targets={
            "x86-cpu": TargetEvidence(title="x86", family="x86-cpu", runs=dict.fromkeys(components, "x86-cpu-int8")),
            "jetson-orin": TargetEvidence(title="Orin", family="tensorrt", runs=dict.fromkeys(components, "trt-fp16")),
        },
        method=Percentile(99.99),
        calibration=CalibrationRecord(samples=64, data_sha256="a" * 64, method="percentile", description=name),
        recipe_sha256="b" * 64,
        model_sha256="c" * 64,
        versions={"torch": "2.13.0"},
    )


class Page(HTMLParser):
    """Tags, attributes and text, and whether the tags nest."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str, str]] = []
        self.texts: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(tag, key, value or "") for key, value in attrs]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(tag, key, value or "") for key, value in attrs]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag, f"</{tag}> closes something else"

    def handle_data(self, data: str) -> None:
        self.texts.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.texts).split())

    @property
    def plots(self) -> list[str]:
        return [value for tag, key, value in self.attributes if (tag, key) == ("svg", "aria-label")]


@pytest.fixture(scope="module")
def text() -> str:
    return page(whole())


@pytest.fixture(scope="module")
def shown(text: str) -> Page:
    return Page(text)


def test_the_page_is_whole_and_stands_alone(text: str, shown: Page) -> None:
    """Every tag is closed in turn; no script, and nothing is fetched: references are to its own parts only."""
    assert not shown.open
    assert not {"script", "img", "image", "link", "iframe", "object", "embed", "base"} & set(shown.tags)
    references = [value for _, key, value in shown.attributes if key in ("href", "xlink:href", "src", "srcset", "data")]
    assert references
    assert all(value.startswith("#") for value in references)
    assert not re.search(r"https?:|@import|@font-face|url\((?!#)", text)
    assert not [key for _, key, _ in shown.attributes if key.startswith("on")]


def test_what_a_plot_refers_to_is_there_once(shown: Page) -> None:
    """Drawings share one document: an id that two had would give one the other's clipping."""
    ids = [value for _, key, value in shown.attributes if key == "id"]
    used = {value[1:] for _, key, value in shown.attributes if key == "href"}
    used |= {ref for _, _, value in shown.attributes for ref in re.findall(r"url\(#([^)]*)\)", value)}
    assert used <= set(ids)
    assert len(ids) == len(set(ids))


def test_hostile_names_are_text() -> None:
    """Of the bundle, its tensors, nodes, presets and reasons: they arrive as they are, as nothing but text."""
    evidence = whole(HOSTILE)
    refused = ParserCheck(where=HOSTILE, accepted=False, problem=HOSTILE)
    finding = Finding(HOSTILE, HOSTILE, "error", HOSTILE, HOSTILE, HOSTILE)
    hit = evidence.components["head"]
    half = replace(hit.variants["trt-fp16"], parsed=(refused,), findings=(finding,), unparsed=HOSTILE)
    hit = replace(hit, exporter=HOSTILE, repairs=(HOSTILE,), variants=hit.variants | {"trt-fp16": half})
    evidence = replace(evidence, components={**evidence.components, "head": hit}, versions={HOSTILE: HOSTILE})
    parsed = Page(page(evidence))
    assert not parsed.open
    assert not {"script", "img"} & set(parsed.tags)
    assert parsed.text.count(HOSTILE) >= 10
    assert "49" not in parsed.text.split(HOSTILE)[0]


def test_what_was_repaired_is_said() -> None:
    """Of a component that came as ONNX; others have no such line."""
    evidence = whole()
    component = replace(evidence.components["head"], repairs=("'x' was declared [10], and is ['batch']", "NHWC"))
    repaired = Page(page(replace(evidence, components={**evidence.components, "head": component})))
    assert "Repaired on the way in: 'x' was declared [10], and is ['batch']; NHWC." in repaired.text
    assert "Repaired" not in Page(page(evidence)).text


def test_control_characters_do_not_break_a_plot() -> None:
    """Escapes, NULs, marks that turn the direction, and letters that the font lacks."""
    name = "a\x1b[31m\x00\u202e\u4e2d\ud7ff\U0001f600"
    parsed = Page(page(whole(name)))
    assert not parsed.open
    assert "\x00" not in "".join(t for t in parsed.texts if "first bad" in t)


def test_every_component_has_its_plots(shown: Page) -> None:
    """Sizes and speeds, ranges, the search and the layers of what was searched; and the heads once."""
    for name in ("image_encoder", "head"):
        assert f"sizes and speeds of {name}" in shown.plots
        assert f"calibration ranges of {name}" in shown.plots
        assert f"SQNR by layer of {name} x86-cpu-int8" in shown.plots
        assert f"search for {name} x86-cpu-int8" in shown.plots
    assert shown.plots.count("heads before and after") == 1


def test_the_first_bad_layer_is_marked(shown: Page) -> None:
    """The first below 20 dB, not the worst."""
    assert "first bad: conv_1" in shown.texts
    assert "first bad: conv_3" not in shown.texts


def test_colours_are_the_pages(text: str) -> None:
    """Plots name no colour of their own, so that dark and light both suit them; both are there."""
    assert not re.findall(r"#[0-9a-fA-F]{6}", text[text.index("<main>") :])
    assert "prefers-color-scheme: dark" in text
    used = set(re.findall(r"var\((--[a-z-]+)\)", text))
    light, dark = (re.search(pattern, text, re.DOTALL) for pattern in (r":root {(.*?)}", r"dark\) {\s*:root {(.*?)}"))
    assert light is not None
    assert dark is not None
    for scheme in (light[1], dark[1]):
        assert used <= set(re.findall(r"(--[a-z-]+):", scheme))


def test_the_first_screen_answers(shown: Page) -> None:
    """Whether it passed, what runs where, what it cost, what failed and what to do."""
    first, _, rest = shown.text.partition("What failed")
    assert "Passed Everything that the recipe requires holds" in first
    assert "6 of 8 variants ship" in first
    assert "Accuracy of head: 0.928, required 0.750" in first
    assert "x86-cpu-int8 1.70\u00d7 fp32 trt-fp16 unmeasured" in first
    assert "215 KiB fp32: 781 KiB one call of each: 1.67\u00d7" in first
    assert "head 0.930 0.928 0.985 0.99800" in first
    assert "image_encoder arm-cpu-int8, head arm-cpu-int8 agreement 0.9 at conv" in rest


def test_what_a_target_refuses_is_said_first() -> None:
    """The verdict counts it, and it stands before what merely does not ship."""
    evidence = whole()
    refused = ParserCheck(where="a parser", accepted=False, problem="no such node")
    head = evidence.components["head"]
    half = replace(head.variants["trt-fp16"], parsed=(refused,))
    head = replace(head, variants={**head.variants, "trt-fp16": half})
    evidence = replace(evidence, components={**evidence.components, "head": head})
    assert "Passed, with 1 thing to mend" in Page(page(evidence)).text
    found = matters(evidence)
    assert (found[0].weight, found[0].where, found[0].what) == ("error", ("head trt-fp16",), "a parser: no such node")
    assert [matter.weight for matter in found] == sorted((m.weight for m in found), key=("error", "lost", "note").index)


def test_what_does_not_ship_has_nothing_to_mend() -> None:
    """A target's refusal of a variant that was left out for it is said once, with the remedy, and is no alarm."""
    evidence = whole(components=("head",))
    head = evidence.components["head"]
    finding = Finding("jetson-orin", "free-axis", "error", "state", "axis 1 is free", "export with a fixed size")
    lost = replace(
        head.variants["trt-fp16"], decision=Decision(kept=False, reason="Orin refuses it"), findings=(finding,)
    )
    head = replace(head, variants={**head.variants, "trt-fp16": lost})
    found = matters(replace(evidence, components={"head": head}))
    [said] = [matter for matter in found if "head trt-fp16" in matter.where]
    assert (said.weight, said.what, said.remedy) == ("lost", "Orin refuses it", "export with a fixed size")


def test_what_is_said_of_several_places_is_said_once() -> None:
    """Tensors that slept in two components, by the same names."""
    [asleep] = [matter for matter in matters(whole()) if "zero in every recording" in matter.what]
    assert asleep.where == ("image_encoder", "head")
    assert asleep.what.endswith(": conv_3")


def test_a_bundle_without_labels_or_searches_has_a_page() -> None:
    """No accuracy, no candidates, no speed: nothing of it is needed."""
    plain = VariantEvidence(target="any", precision="fp32", decision=Decision(kept=True, reason="x"), bytes=None)
    bare = ComponentEvidence(kind="head", budget=Budget(), exporter="x", variants={"fp32": plain}, ranges=())
    blind = msgspec.structs.replace(errors(accuracy=None), agreement=None)
    evidence = replace(
        whole(),
        components={"head": bare},
        heads=(HeadEvidence(head="head", error=blind, original=blind),),
        targets={"x86-cpu": TargetEvidence(title="x86", family="x86-cpu", runs={"head": "fp32"})},
    )
    parsed = Page(page(evidence))
    assert parsed.plots == ["heads before and after", "sizes and speeds of head"]
    assert "What failed, and what to do Nothing." in parsed.text


def test_a_bundle_without_heads_has_a_page() -> None:
    """An encoder alone: nothing is fused, and nothing is said of it."""
    parsed = Page(page(replace(whole(components=("image_encoder",)), heads=())))
    assert not parsed.open
    assert "What it cost" not in parsed.text


def test_the_data_reads_back_as_it_was() -> None:
    """Through JSON and back, equal; and the encoding is of one form."""
    evidence = whole(HOSTILE)
    data = encode_evidence(evidence)
    assert decode_evidence(data) == evidence
    assert encode_evidence(decode_evidence(data)) == data


def test_the_same_evidence_gives_the_same_bytes_in_another_process(tmp_path: Path, text: str) -> None:
    """Whatever the hash seed, the locale and the user's own settings of matplotlib are."""
    (tmp_path / "report.json").write_bytes(encode_evidence(whole()))
    (tmp_path / "matplotlibrc").write_text("font.size: 30\nsvg.fonttype: path\naxes.grid: True\n")
    code = (
        "import sys; from pathlib import Path\n"
        "from edge_mbm.export.evidence import decode_evidence\n"
        "from edge_mbm.export.report import page\n"
        "Path(sys.argv[2]).write_text(page(decode_evidence(Path(sys.argv[1]).read_bytes())), 'utf-8')\n"
    )
    environment = os.environ | {"PYTHONHASHSEED": "77", "MATPLOTLIBRC": str(tmp_path), "LC_ALL": "C"}
    command = [sys.executable, "-c", code, str(tmp_path / "report.json"), str(tmp_path / "report.html")]
    subprocess.run(command, check=True, env=environment, cwd=tmp_path)
    assert (tmp_path / "report.html").read_text("utf-8") == text


def test_five_components_make_a_page_of_bearable_size() -> None:
    """Below 600 KB, with 200 tensors and all plots each."""
    names = ("image_encoder", "audio_encoder", "text_encoder", "concat", "head")
    assert len(page(whole(components=names, tensors=200)).encode()) < 600_000


@pytest.mark.parametrize("module", ["matplotlib", "jinja2"])
def test_what_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch, module: str) -> None:
    """With the line that installs it."""
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(MissingDependencyError, match=rf"'{module}'.*pip install 'edge-mbm\[export\]'"):
        page(whole())


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.floats(-1e6, 1e6, width=32), min_size=1, max_size=40),
    st.sampled_from([1e-9, 1.0, 1e9]),
)
def test_a_coarse_histogram_loses_no_value(values: list[float], scale: float) -> None:
    """At most 32 bins that cover all values; as many below zero as there are, and zero is an edge."""
    array = (np.array(values) * scale).astype(np.float64)
    histogram = Histogram()
    histogram.update(array)
    coarse = records._coarse(histogram)
    edges = coarse.start + coarse.width * np.arange(len(coarse.counts) + 1)
    assert len(coarse.counts) <= 32
    assert sum(coarse.counts) == len(values)
    assert edges[0] <= array.min()
    assert array.max() <= edges[-1]
    assert sum(count for count, edge in zip(coarse.counts, edges, strict=False) if edge < 0) == (array < 0).sum()


# --- of a real export ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def found(exported: Any) -> Evidence:
    return decode_evidence(exported.files.read(exported.manifest.assets["report_data"].path))


def test_the_report_says_what_the_manifest_says(exported: Any, found: Evidence) -> None:
    """The same decisions, figures and sizes; and of what does not ship too, there are figures."""
    manifest = exported.manifest
    assert found.components.keys() == manifest.components.keys()
    for name, part in manifest.components.items():
        assert found.components[name].variants.keys() == part.variants.keys()
        for key, variant in part.variants.items():
            told = found.components[name].variants[key]
            assert (told.decision, told.error, told.speed) == (variant.decision, variant.error, variant.speed)
            if variant.graph is not None:
                assert told.bytes == manifest.files[variant.graph].size
    assert found.calibration == manifest.provenance.calibration


def test_what_runs_where_is_what_the_device_chooses(exported: Any, found: Evidence) -> None:
    """By the runtime's own rule, on an x86 CPU."""
    for name, part in exported.manifest.components.items():
        assert found.targets["x86-cpu"].runs[name] == choose_variant(name, part, machine="x86_64")


def test_ranges_hold_what_the_calibration_saw(found: Evidence) -> None:
    """Every activation of every component, its range around zero, within what was seen, and a distribution."""
    for part in found.components.values():
        assert part.ranges
        for seen in part.ranges:
            assert seen.low <= 0 <= seen.high
            assert seen.all_zero or min(seen.minimum, 0) <= seen.low <= seen.high <= max(seen.maximum, 0)
            assert sum(seen.histogram.counts) > 0


def test_the_bundles_page_is_of_its_data(exported: Any, found: Evidence) -> None:
    """Drawn again from report.json, it is the same text."""
    assert exported.files.read(exported.manifest.assets["report"].path).decode() == page(found)
