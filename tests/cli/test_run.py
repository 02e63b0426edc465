"""``edge-mbm run``."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edge_mbm.cli.result_line import ResultLine
from edge_mbm.cli.run import Playing, ResultOutput, play
from edge_mbm.cli.run_report import RunReport, print_report
from edge_mbm.cli.terminal import human
from edge_mbm.runtime import (
    Bundle,
    ClassificationOutput,
    EmbeddingOutput,
    RegressionOutput,
    Result,
    Sample,
    load,
    open_live,
)
from edge_mbm.runtime.result import RegionsOutput, Segment, TaskOutput, TextOutput
from edge_mbm.runtime.summary import RunSummary
from edge_mbm.testing import ScriptedSource, tiny_bundle

needs_all = pytest.mark.needs("av", "cv2", "soxr", "onnxruntime")
TRUTH = {
    "segments": [
        {"start": 0.0, "end": 0.5, "label": "green", "answer_from": 0.2, "answer_to": 0.5, "spoiled": []},
        {"start": 0.5, "end": 1.0, "label": "loud", "answer_from": 0.6, "answer_to": 1.0, "spoiled": ["image"]},
    ]
}


def results_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def lines_of(out: str) -> list[str]:
    """The lines of results: those that begin with a time."""
    return [line for line in out.splitlines() if line.strip()[:1].isdigit() and "green" in line]


@needs_all
@pytest.mark.parametrize("fast", [True, False])
def test_each_result_is_a_line(cli: Callable[..., Any], clip: Path, fast: bool) -> None:
    """Time, head and answer below each other, then a summary; at real time ages too."""
    done = cli("run", tiny_bundle(), "--source", clip, "--head", "color", *(["--fast"] if fast else []))
    assert (done.code, done.err) == (0, "")
    lines = lines_of(done.out)
    assert all(line.split()[1:3] == ["color", "green"] for line in lines)
    times = [float(line.split()[0]) for line in lines]
    # At real time a busy machine drops frames, the first among them, which is what it should do.
    assert times == [k / 25 for k in range(25)] if fast else 0 <= times[0] < times[-1] < 1
    assert len({line.index("color") for line in lines}) == 1
    assert ("age p50 ms" in done.out, "compute p50 ms" in done.out) == (not fast, fast)
    assert "infer.image_encoder" in done.out
    assert "lost: " in done.out


@needs_all
def test_two_fast_runs_write_the_same_bytes(cli: Callable[..., Any], clip: Path, tmp_path: Path) -> None:
    """But for age and stage times, to the last digit of every score; times are media times."""
    seen = []
    for name in ("a.jsonl", "b.jsonl"):
        assert cli("run", tiny_bundle(), "--source", clip, "--fast", "-q", "-o", tmp_path / name).code == 0
        seen.append([{k: v for k, v in r.items() if k not in ("age", "stage_ns")} for r in results_of(tmp_path / name)])
    assert seen[0] == seen[1]
    assert [r["t_capture"] for r in seen[0]] == [k * 40_000_000 for k in range(25)]


@needs_all
def test_media_time_is_written_at_real_time_too(cli: Callable[..., Any], clip: Path, tmp_path: Path) -> None:
    """Not the clock's."""
    cli("run", tiny_bundle(), "--source", clip, "--head", "color", "-q", "-o", tmp_path / "r.jsonl", "--limit", 2)
    assert 0 <= results_of(tmp_path / "r.jsonl")[0]["t_capture"] < 1_000_000_000


@needs_all
def test_picture_and_sound_may_have_addresses_of_their_own(cli: Callable[..., Any], clip: Path) -> None:
    """The same file for both is played once; nothing at all, or everything twice, is refused."""
    together = cli("run", tiny_bundle(), "--source", clip, "--fast", "--quiet")
    apart = cli("run", tiny_bundle(), "--video", clip, "--audio", clip, "--fast", "--quiet")
    assert (apart.code, together.code) == (0, 0)
    assert apart.out.splitlines()[1].split()[:3] == together.out.splitlines()[1].split()[:3]
    assert cli("run", tiny_bundle()).code == 2
    assert cli("run", tiny_bundle(), "--source", clip, "--video", clip, "--audio", clip).code == 2


def test_what_came_and_what_was_answered_may_be_recorded(cli: Callable[..., Any], clip: Path, tmp_path: Path) -> None:
    """A replay of the recording gives as many answers at the same times."""
    made, again = tmp_path / "run.jsonl", tmp_path / "replay.jsonl"
    ran = cli("run", tiny_bundle(), "--source", clip, "--fast", "-q", "-o", made, "--record", tmp_path / "run.mcap")
    assert (ran.code, ran.err) == (0, "")
    replayed = cli("replay", tmp_path / "run.mcap", "--bundle", tiny_bundle(), "-q", "-o", again)
    assert replayed.code == 0
    times = [[json.loads(line)["t_capture"] for line in path.read_text().splitlines()] for path in (made, again)]
    assert times[0] == times[1]
    assert len(times[0]) > 10


def test_results_on_stdout_leave_people_stderr(cli: Callable[..., Any], clip: Path) -> None:
    """Every line of stdout is JSON; quiet leaves the summary."""
    done = cli("run", tiny_bundle(), "--source", clip, "--fast", "--output", "-")
    assert len([json.loads(line) for line in done.out.splitlines()]) == 25
    assert len(lines_of(done.err)) == 25
    quiet = cli("run", tiny_bundle(), "--source", clip, "--fast", "--output", "-", "--quiet")
    assert len(quiet.out.splitlines()) == 25
    assert not lines_of(quiet.err)
    assert "lost: " in quiet.err


@needs_all
def test_the_summary_as_json(cli: Callable[..., Any], clip: Path) -> None:
    """On stdout by itself; results in between go to stderr."""
    done = cli("run", tiny_bundle(), "--source", clip, "--fast", "--json", "--limit", 7)
    report = done.json
    assert report["summary"]["heads"]["event"]["results"] == 7
    assert report["summary"]["stages"]["infer.event"]["count"] == 7
    assert (report["finished"], report["realtime"], report["scores"]) == (False, False, None)
    assert report["losses"]["image.superseded"] == 0
    assert len(lines_of(done.err)) == 7


@pytest.mark.needs("av")
def test_one_stdout_is_for_one_script(cli: Callable[..., Any], clip: Path) -> None:
    """Results and summary both as JSON on stdout are refused."""
    done = cli("run", tiny_bundle(), "--source", clip, "--output", "-", "--json")
    assert (done.code, done.out) == (2, "")


@needs_all
def test_answers_are_held_against_the_truth_beside_the_clip(
    cli: Callable[..., Any], clip: Path, tmp_path: Path
) -> None:
    """The file NAME.truth.json is found by itself; the clip is green throughout, so "loud" is wrong."""
    copy = tmp_path / "copy.mov"
    copy.write_bytes(clip.read_bytes())
    (tmp_path / "copy.truth.json").write_text(json.dumps(TRUTH))
    score = cli("run", tiny_bundle(), "--source", copy, "--fast", "--json", "-q").json["scores"]["event"]
    assert score["all"] == {"segments": 2, "segments_right": 1, "unanswered": 0, "results": 18, "results_right": 8}
    assert score["by_spoiled"]["clean"]["segments_right"] == 1
    assert score["by_spoiled"]["image"]["segments_right"] == 0
    shown = cli("run", tiny_bundle(), "--source", copy, "--fast", "-q").out
    assert "8/18 = 44.4%" in shown
    assert "1/2 = 50.0%" in shown


@needs_all
def test_what_was_not_played_is_not_asked(cli: Callable[..., Any], clip: Path, tmp_path: Path) -> None:
    """After ten of 25 frames only the first segment counts."""
    truth = tmp_path / "truth.json"
    truth.write_text(json.dumps(TRUTH))
    arguments = ("run", tiny_bundle(), "--source", clip, "--truth", truth, "--fast", "--json", "-q", "--limit", 10)
    assert cli(*arguments).json["scores"]["event"]["all"]["segments"] == 1


@pytest.mark.needs("av")
@pytest.mark.parametrize(
    ("content", "message"), [(None, "cannot be read"), (b"{}", "segments"), (b"\xff", "not a truth file")]
)
def test_a_truth_file_that_was_asked_for_must_be_one(
    cli: Callable[..., Any], clip: Path, tmp_path: Path, content: bytes | None, message: str
) -> None:
    """Missing or wrong is exit code 2, before anything is played."""
    path = tmp_path / "truth.json"
    if content is not None:
        path.write_bytes(content)
    done = cli("run", tiny_bundle(), "--source", clip, "--truth", path)
    assert (done.code, done.out) == (2, "")
    assert message in done.err


@pytest.mark.needs("av")
@pytest.mark.parametrize("content", [None, b"", b"no video"])
def test_a_source_that_cannot_be_played_is_exit_code_6(
    cli: Callable[..., Any], tmp_path: Path, content: bytes | None
) -> None:
    """Missing, empty, or something else; with its path."""
    path = tmp_path / "clip.mp4"
    if content is not None:
        path.write_bytes(content)
    done = cli("run", tiny_bundle(), "--source", path)
    assert (done.code, done.out) == (6, "")
    assert str(path) in done.err


@pytest.mark.needs("av")
def test_a_source_with_a_name_longer_than_a_files_can_be_is_exit_code_6(cli: Callable[..., Any]) -> None:
    """As any other file that is not there."""
    done = cli("run", tiny_bundle(), "--source", "x" * 300 + ".mp4")
    assert (done.code, done.out) == (6, "")
    assert "cannot be played" in done.err


@pytest.mark.needs("onnxruntime")
def test_no_truth_is_looked_for_beside_an_address_that_no_file_can_have(capsys: pytest.CaptureFixture[str]) -> None:
    """A camera's, with its token, may be longer than a file's name."""
    frame = Sample("image", np.zeros((8, 8, 3), np.uint8), 0)
    address = "http://camera/stream?token=" + "x" * 300
    playing = Playing(address, None, None, ResultOutput(None, as_json=True, quiet=True), realtime=False)
    with load(tiny_bundle()) as bundle:
        play(bundle, open_live(bundle, ScriptedSource([frame]), realtime=False), playing)
    assert json.loads(capsys.readouterr().out)["summary"]["heads"]["event"]["results"] == 1


@needs_all
def test_a_head_that_is_not_there_is_exit_code_2(cli: Callable[..., Any], clip: Path) -> None:
    """With those that are."""
    done = cli("run", tiny_bundle(), "--source", clip, "--head", "smell")
    assert done.code == 2
    assert "['color', 'event']" in done.err


@needs_all
def test_a_place_that_cannot_be_written_is_exit_code_6(cli: Callable[..., Any], clip: Path, tmp_path: Path) -> None:
    """The message says which."""
    done = cli("run", tiny_bundle(), "--source", clip, "--fast", "-o", tmp_path / "no" / "r.jsonl")
    assert done.code == 6
    assert "results cannot be written to" in done.err


@needs_all
def test_ctrl_c_leaves_whole_lines_and_a_summary(long_clip: Path, tmp_path: Path) -> None:
    """The signal itself, in the middle: exit code 130, every line in the file whole, and the summary printed."""
    out = tmp_path / "r.jsonl"
    command = [sys.executable, "-u", "-m", "edge_mbm.cli", "run", str(tiny_bundle()), "--source", str(long_clip)]
    command += ["--head", "color", "-o", str(out)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    for _ in range(3):  # the header and two results
        process.stdout.readline()
    process.send_signal(signal.SIGINT)
    rest, errors = process.communicate(timeout=60)
    assert (process.returncode, errors) == (130, "")
    assert "infer.color" in rest
    assert len(results_of(out)) >= 2


@needs_all
def test_a_reader_that_leaves_ends_it_quietly(clip: Path) -> None:
    """As with ``--output - | head -1``."""
    reading, writing = os.pipe()
    os.close(reading)
    command = [sys.executable, "-m", "edge_mbm.cli", "run", str(tiny_bundle()), "--source", str(clip)]
    command += ["--fast", "--quiet", "--output", "-"]
    done = subprocess.run(command, stdout=writing, stderr=subprocess.PIPE, text=True, check=False)
    os.close(writing)
    assert (done.returncode, done.stderr) == (1, "")


@needs_all
def test_hostile_labels_do_not_steer_the_terminal(
    cli: Callable[..., Any], changed: Callable[..., Path], clip: Path
) -> None:
    """They are shown, cut where they are long, and the columns stay."""
    label = "\x1b[2J[red]" + "x" * 500
    path = changed({"labels/colors.txt": f"a\n{label}\nc\n".encode()})
    done = cli("run", path, "--source", clip, "--fast", "--head", "color")
    assert done.code == 0
    assert "\x1b" not in done.out
    assert r"\x1b[2J[red]xxx" in done.out
    assert max(map(len, done.out.splitlines())) < 200


# --- lines and summaries by themselves -------------------------------------------------------------------------------


@pytest.fixture
def bundle() -> Bundle:
    return load(tiny_bundle())


def result(output: TaskOutput, **changes: Any) -> Result:
    fields: dict[str, Any] = {
        "head": "event",
        "seq": 0,
        "t_capture": 5_000_000_000,
        "age": 12_340_000,
        "outputs": {"logits": output},
        "missing": (),
        "spread": 0,
        "dropped": 0,
        "stage_ns": {"preprocess.a": 1_000_000, "preprocess.b": 500_000, "infer.a": 2_000_000, "wait": 250_000},
        "provider": "x",
    }
    return Result(**fields | changes)


GREEN = ClassificationOutput("green", 0.987, 1, np.zeros(4, np.float32), ("red", "green", "blue", "loud"))


def test_a_line_holds_age_stages_and_losses(bundle: Bundle) -> None:
    """Media time, answer, age, preprocessing and inference summed, waiting, frames dropped, what was missing."""
    line = ResultLine(bundle, ["event"], origin=3_760_000_000, realtime=True)
    shown = line.line(result(GREEN, dropped=2, missing=("audio",)))
    assert shown.split() == ["1.240", "event", "green", "0.987", "12.34", "1.50", "2.00", "0.25", "2", "audio"]
    assert line.header().split()[-2:] == ["drop", "without"]
    assert line.header().index("drop") == shown.index("2  audio") - 3


@pytest.mark.parametrize(
    ("output", "shown"),
    [
        (EmbeddingOutput(np.array([0.5, -1, 0.25, 8, 16], np.float32)), "0.5 -1 0.25 8 ... (5 values)"),
        (RegressionOutput(np.array([[1.5], [2.5]], np.float32), "m/s"), "1.5 2.5 m/s"),
        (RegressionOutput(np.array(3.0, np.float32), None), "3"),
    ],
)
def test_vectors_and_quantities_are_shown(bundle: Bundle, output: TaskOutput, shown: str) -> None:
    """The first few values of an embedding; a regression with its unit."""
    line = ResultLine(bundle, ["event"], origin=0, realtime=False).line(result(output))
    assert f"event  {shown} " in line


def test_what_was_said_is_shown_whole(bundle: Bundle) -> None:
    """However long; of what is still being said only the beginning, marked as such."""
    said = TextOutput("so " * 40, (1,), -0.1, is_complete=True)
    over, going_on = (result(said, segment=Segment(0, 1, is_final=final)) for final in (True, False))
    lines = ResultLine(bundle, ["event"], origin=0, realtime=False)
    assert said.text in lines.line(over)
    assert said.text not in lines.line(going_on)
    assert "so ..." in lines.line(going_on)


def test_regions_are_counted_and_the_surest_is_placed(bundle: Bundle) -> None:
    """By its middle and size; none is an answer too, and so is how many were left out."""
    boxes = np.array([[10, 20, 30, 60], [0, 0, 5, 5]], np.float32)
    scores, marks = np.array([0.91, 0.6], np.float32), np.zeros((2, 0, 2), np.float32)
    lines = ResultLine(bundle, ["event"], origin=0, realtime=False)
    for count, left_out, shown in ((2, 0, "2: 0.91 at 20, 40, 20 x 40"), (2, 3, "2 of 5: 0.91"), (0, 0, "none")):
        found = RegionsOutput(boxes[:count], scores[:count], marks[:count], left_out, np.zeros((1, 2, 5), np.float32))
        assert f"event  {shown}" in lines.line(result(found))


def test_several_outputs_are_told_apart(bundle: Bundle) -> None:
    """By their names."""
    both = {"what": GREEN, "where": RegressionOutput(np.array([2.0], np.float32), "m")}
    assert "what: green 0.987, where: 2 m" in ResultLine(bundle, ["event"], origin=0, realtime=True).line(
        result(GREEN, outputs=both)
    )


def test_a_run_without_results_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    """And still what was lost."""
    report = RunReport(
        bundle="b",
        source="s",
        realtime=True,
        finished=True,
        summary=RunSummary().summary(),
        losses={"image.superseded": 3, "audio.gaps": 0},
        scores={},
    )
    print_report(report, human())
    out = capsys.readouterr().out
    assert "no results" in out
    assert "lost: image.superseded 3" in out
    assert "no head that ran gives a label" in out


def test_cuda_where_there_is_none_is_an_error(cli: Callable[..., Any], tiny: Path, clip: Path) -> None:
    """In one message, with what to install; nothing is computed on the CPU instead."""
    import onnxruntime

    if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        pytest.skip("this onnxruntime has CUDA")
    done = cli("run", tiny, "--source", clip, "--provider", "cuda", "--fast")
    assert (done.code, done.out) == (6, "")
    assert done.err.startswith("error: ")
    assert "built without" in done.err
    assert "onnxruntime-gpu" in done.err
