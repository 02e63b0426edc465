"""What quantization costs and gives: edge-mbm's export beside its peers, on the same calibration and evaluation data.

    python benchmarks/quantization.py [--models efficientnet_lite0,...] [--peers nncf,modelopt] [--json FILE]

Every model is exported by its recipe in ``export/``; a peer gets the same float graph and the same calibration calls,
and all are judged by the same figures on the recipe's held-out recordings: through the rest of the model, against the
framework. Speed is a ratio to the float graph on ONNX Runtime, one thread, in turn with it. Peers run in environments
of their own, made on first use (``--peers ''`` for none).
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

import edge_mbm
from edge_mbm.errors import EdgeMbmError
from edge_mbm.export import export_bundle
from edge_mbm.export.chain import Chain, GraphRunner
from edge_mbm.export.draft import Draft, given
from edge_mbm.export.measure import HeldOut, Placed, speed_of
from edge_mbm.export.origin import Origin
from edge_mbm.export.progress import Silent
from edge_mbm.export.recipe import Split, load_recipe
from edge_mbm.export.recordings import importable, recordings
from edge_mbm.export.stages import STAGES
from edge_mbm.export.tokenizers import tokenizer_files
from edge_mbm.runtime.bench import bench_bundle
from edge_mbm.spec import ErrorFigures

_ROOT = Path(__file__).resolve().parents[1]
_PEERS_FOLDER = Path(__file__).resolve().parent / "peers"
sys.path[:0] = [str(_PEERS_FOLDER), str(_ROOT / "examples")]
from sides import Unavailable, environment  # noqa: E402

_CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "edge-mbm" / "peers"
_TIMEOUT_S = 1800
_SCRIPTS = {
    "onnxruntime": ("quantize_with_ort.py", None),
    "nncf": ("quantize_with_nncf.py", "nncf"),
    "openvino": ("quantize_with_openvino.py", "nncf"),
    "modelopt": ("quantize_with_modelopt.py", "modelopt"),
}
"""Peer -> its script, and whose environment it needs; None for this one."""


@dataclass(frozen=True)
class Case:
    """One model.

    Args:
        key: the recipe's name in ``export/``.
        component: which of its components is quantized here.
        kind: what a peer must be told of it.
        reach: what is asked for, in words.
    """

    key: str
    component: str
    kind: str
    reach: str


CASES = (
    Case("efficientnet_lite0", "image_encoder", "convnet", "agreement >= .97 at >= 1.9x"),
    Case("sentence_embedding", "encoder", "transformer", "cosine >= .995 at >= 1.8x"),
    Case("whisper_encoder", "encoder", "transformer", "word accuracy within 1 % relative at >= 1.3x"),
    Case("speech_embedding", "encoder", "convnet", "accuracy within 1 % relative at >= 1.3x"),
    Case("speaker", "speaker", "recurrent", "1 - EER within 1 % relative at >= 1.3x"),
)


@dataclass(frozen=True)
class Row:
    """One way to quantize one model."""

    side: str
    way: str
    error: ErrorFigures | None = None
    speedup: float | None = None
    seconds: float | None = None
    """Of making the graph."""
    note: str = ""


def main() -> int:
    """Measure, and print a table for each model."""
    options = _options()
    console = Console(width=160)
    found: dict[str, Any] = {}
    wanted = options.models.split(",") if options.models else [case.key for case in CASES]
    for case in (case for case in CASES if case.key in wanted):
        rows = list(_rows(case, [peer for peer in options.peers.split(",") if peer]))
        console.print(_table(case, rows))
        found[case.key] = [_as_json(row) for row in rows]
        _keep(found, options.json)
    if options.fused:
        found["fused"] = _fused()
        console.print(found["fused"])
        _keep(found, options.json)
    return 0


def _keep(found: Mapping[str, Any], path: str | None) -> None:
    """Write what is known so far: the whole takes hours, and may be cut off."""
    if path:
        Path(path).write_text(json.dumps(found, indent=1) + "\n")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", default="", help="recipes in export/, separated by commas; all by default")
    parser.add_argument("--peers", default=",".join(_SCRIPTS), help="separated by commas; '' for none")
    parser.add_argument("--fused", action="store_true", help="the audio-visual digits too, exported twice")
    parser.add_argument("--json", help="where to write all figures")
    return parser.parse_args()


# --- one model -------------------------------------------------------------------------------------------------------


def _rows(case: Case, peers: Sequence[str]) -> Iterator[Row]:
    loaded = load_recipe(_ROOT / "export" / f"{case.key}.toml")
    with importable(loaded.python_path()), tempfile.TemporaryDirectory() as folder:
        started = time.perf_counter()
        draft = Draft(loaded, Origin(loaded))
        for stage in STAGES:
            draft = stage(draft, Silent())
        yield from _ours(case, draft, time.perf_counter() - started)
        job = _job(case, draft, Path(folder))
        for peer in peers:
            yield from _peer(case, draft, peer, job)


def _ours(case: Case, draft: Draft, seconds: float) -> Iterator[Row]:
    name = case.component
    figures = HeldOut(draft)
    fp32 = figures.error(name, Placed(given(draft.fp32)[name], here=True))
    yield Row("float", "ONNX Runtime", fp32, 1.0)
    searched = given(draft.search).get((name, "x86-cpu-int8"))
    for candidate in searched.candidates if searched else ():
        if candidate.error is None:
            continue
        speedup = candidate.speed.speedup if candidate.speed else None
        way = f"{candidate.preset}{', distilled' if candidate.tuned else ''}, {len(candidate.float_nodes)} nodes float"
        note = "chosen" if searched is not None and candidate == searched.chosen else "; ".join(candidate.faults)[:60]
        yield Row("edge-mbm", way, candidate.error, speedup, note=note)
    decision = given(draft.decisions).get((name, "x86-cpu-int8"))
    if decision is not None:
        verdict = "kept" if decision.kept else "float kept"
        yield Row("edge-mbm", "decision", seconds=seconds, note=f"{verdict}: {decision.reason}")


def _job(case: Case, draft: Draft, folder: Path) -> dict[str, str]:
    """The component's float graph and its real calls, as files."""
    name, graph = case.component, given(draft.calibrated).graphs[case.component]
    (folder / "float.onnx").write_bytes(graph)
    data = draft.loaded.data
    for purpose, split in (("calibration", data.calibration), ("evaluation", data.heldout)):
        np.savez(folder / f"{purpose}.npz", **_calls(draft, name, split))
    return {
        "graph": str(folder / "float.onnx"),
        "calibration": str(folder / "calibration.npz"),
        "evaluation": str(folder / "evaluation.npz"),
        "kind": case.kind,
        "out": str(folder),
    }


def _calls(draft: Draft, name: str, split: Split) -> dict[str, np.ndarray]:
    calls: list[Mapping[str, np.ndarray]] = []
    chain = Chain(given(draft.components), tokenizer_files(draft.loaded))
    runners = _float_runners(draft)
    for recording in recordings(draft.loaded, split):
        chain.run(recording, runners, on_call=lambda n, given_: calls.append(given_) if n == name else None)
    return {key: np.concatenate([call[key] for call in calls]) for key in calls[0]}


def _float_runners(draft: Draft) -> dict[str, Any]:
    return {name: GraphRunner(graph, name) for name, graph in given(draft.fp32).items()}


# --- peers -----------------------------------------------------------------------------------------------------------


def _peer(case: Case, draft: Draft, peer: str, job: Mapping[str, str]) -> Iterator[Row]:
    script, environment_of = _SCRIPTS[peer]
    try:
        python = environment(environment_of, _CACHE, None) if environment_of else sys.executable
        answer = _answer(python, script, job)
    except (Unavailable, OSError, subprocess.SubprocessError, ValueError) as error:
        yield Row(peer, "-", note=f"could not be run: {error}"[:160])
        return
    for way, row in answer["rows"].items():
        yield _judged(case, draft, answer["version"], way, row)


def _answer(python: str, script: str, job: Mapping[str, str]) -> dict[str, Any]:
    done = subprocess.run(
        [python, _PEERS_FOLDER / script],
        input=json.dumps(dict(job)),
        capture_output=True,
        text=True,
        timeout=_TIMEOUT_S,
        check=False,
        env={key: value for key, value in os.environ.items() if key != "PYTHONPATH"},
    )
    for line in done.stdout.splitlines():
        if line.startswith('{"version"'):
            answer: dict[str, Any] = json.loads(line)
            return answer
    raise ValueError((done.stderr.strip().splitlines() or [f"ended with code {done.returncode}"])[-1])


def _judged(case: Case, draft: Draft, side: str, way: str, row: Mapping[str, Any]) -> Row:
    if "fault" in row:
        return Row(side, way, seconds=row["seconds"], note=row["fault"][:120])
    try:
        if "graph" in row:
            graph = Path(row["graph"]).read_bytes()
            error = HeldOut(draft).error(case.component, Placed(graph, here=True))
            speedup = speed_of(draft, case.component, "peer", graph)["peer"].speedup
        else:
            error = HeldOut(draft).judged(case.component, _Replayed(row["outputs"]))
            speedup = row["speedup"]
    except EdgeMbmError as fault:
        return Row(side, way, seconds=row["seconds"], note=str(fault)[:120])
    return Row(side, way, error, speedup, row["seconds"])


class _Replayed:
    """A ``Runner`` that answers with outputs computed elsewhere, call by call in the same order."""

    def __init__(self, path: str) -> None:
        with np.load(path, allow_pickle=False) as stored:
            self._outputs = {key: stored[key] for key in stored.files}
        self._next = 0

    def __call__(self, inputs: Mapping[str, Any]) -> dict[str, Any]:  # noqa: ARG002 - a Runner's
        index, self._next = self._next, self._next + 1
        return {key: value[index : index + 1] for key, value in self._outputs.items()}


# --- the fused model -------------------------------------------------------------------------------------------------


def _fused() -> dict[str, Any]:
    """The audio-visual digits, whole: export with an empty cache and again, bytes, accuracy, a session's speed."""
    recipe = _ROOT / "export" / "av_digits.toml"
    with tempfile.TemporaryDirectory() as folder:
        seconds, bundles = [], [Path(folder, f"{index}.mbm") for index in range(2)]
        for bundle in bundles:
            started = time.perf_counter()
            manifest = export_bundle(recipe, bundle)
            seconds.append(round(time.perf_counter() - started, 1))
        with edge_mbm.load(bundles[0]) as opened:
            report = bench_bundle(opened, compare="fp32", seconds=5)
        kept = {n: [v for v, made in c.variants.items() if made.decision.kept] for n, c in manifest.components.items()}
        return {
            "export_s": seconds,
            "same_bytes": bundles[0].read_bytes() == bundles[1].read_bytes(),
            "kept": kept,
            "session_us": {run.variant: run.end_to_end.p50_us for run in report.runs},
            "session_speedup_of_fp32": report.speedup,
        }


# --- printing --------------------------------------------------------------------------------------------------------


def _table(case: Case, rows: Sequence[Row]) -> Table:
    table = Table(title=f"{case.key} {case.component}: {case.reach}", title_justify="left")
    for column in ("side", "way", "cosine", "SQNR dB", "agreement", "metric", "speed", "made in s", ""):
        table.add_column(column, justify="left" if column in ("side", "way", "") else "right", no_wrap=column == "side")
    for row in rows:
        error = row.error
        table.add_row(
            row.side,
            row.way,
            _number(error.cosine if error else None, 4),
            _number(error.sqnr_db if error else None, 1),
            _number(error.agreement if error else None, 3),
            _number(error.accuracy if error else None, 3),
            "" if row.speedup is None else f"{row.speedup:.2f}x",
            _number(row.seconds, 0),
            row.note,
        )
    return table


def _number(value: float | None, digits: int) -> str:
    return "" if value is None else f"{value:.{digits}f}"


def _as_json(row: Row) -> dict[str, Any]:
    error = {key: getattr(row.error, key) for key in row.error.__struct_fields__} if row.error else None
    return {**{key: value for key, value in vars(row).items() if key != "error"}, "error": error}


if __name__ == "__main__":
    sys.exit(main())
