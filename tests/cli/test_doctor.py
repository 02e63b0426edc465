"""``edge-mbm doctor``."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from edge_mbm.runtime.doctor import Outcome, Probes, examine


@pytest.mark.needs("onnxruntime")
def test_this_machine(cli: Callable[..., Any]) -> None:
    """It really loads a bundle, names every package, and is 0 where a bundle runs."""
    done = cli("doctor")
    assert (done.code, done.err) == (0, "")
    assert "ran the tiny bundle on CPUExecutionProvider" in done.out
    for name in ("numpy", "msgspec", "onnxruntime", "cv2", "av", "soxr", "sounddevice", "tensorrt", "pycuda"):
        assert f"  {name} " in done.out
    for name in ("torch", "onnx", "onnxscript"):
        assert f"  {name} " in done.out
        assert name in sys.modules or importlib.util.find_spec(name) is None or "found, not imported" in done.out


def fake(monkeypatch: pytest.MonkeyPatch, probes: Probes) -> None:
    # The command looks at this machine; the test decides what that is.
    monkeypatch.setattr(sys.modules["edge_mbm.cli.doctor"], "examine", lambda: examine(probes))


def test_a_machine_that_runs_nothing_is_exit_code_7(cli: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """All is shown, and the error says what went wrong and what to type."""
    outcome = Outcome(code=-4, output="", errors="")
    fake(monkeypatch, Probes(run_python=lambda _: outcome, is_there=lambda name: name == "onnxruntime"))
    done = cli("doctor")
    assert done.code == 7
    assert "crashed with SIGILL" in done.out
    assert "pip install 'edge-mbm[cpu]'" in done.out
    assert done.err == (
        "error: this machine cannot run bundles: crashed with SIGILL. To mend it: pip install 'edge-mbm[cpu]'\n"
    )
    report = cli("doctor", "--json")
    assert (report.code, report.json["can_run"]) == (7, False)


def test_what_libraries_say_does_not_steer_the_terminal(
    cli: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Their messages are text from outside too."""
    outcome = Outcome(code=0, output="1.0 \x1b[2J[red]", errors="")
    fake(monkeypatch, Probes(run_python=lambda _: outcome))
    done = cli("doctor")
    assert done.code == 0
    assert "\x1b" not in done.out
    assert r"1.0 \x1b[2J[red]" in done.out


def test_a_jetsons_findings_are_shown_with_their_remedies(
    cli: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """For people and, the same, for scripts; a warning is no failure."""
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc/nv_tegra_release").write_text("# R36 (release), REVISION: 4.3, GCID: 38968081\n")
    hangs = Outcome(code=124, output="", errors="nothing happened for 10 s")
    fine = Outcome(code=0, output="1.0", errors="")
    fake(monkeypatch, Probes(run_python=lambda _: fine, run=lambda _: hangs, root=tmp_path))
    done = cli("doctor")
    assert done.code == 0
    assert "JetPack 6.2, L4T 36.4.3" in done.out
    assert "nvpmodel -q: nothing happened for 10 s" in done.out
    assert "-> sudo nvpmodel -q says more" in done.out
    [power] = [check for check in cli("doctor", "--json").json["system"] if check["name"] == "power mode"]
    assert power["status"] == "broken"
    assert power["detail"] in done.out
    assert power["remedy"] in done.out
