"""Where somebody speaks, as silero hears it: a telephone system's prompts, and what is no speech.

Only the detector is real here. The listener says how loud an utterance is, and the writer writes nothing.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import edge_mbm
from edge_mbm import Session
from edge_mbm.bundle import write_bundle
from edge_mbm.export.origins.onnx_model import load_onnx
from edge_mbm.export.recipe import EncoderRecipe, OnnxModel, StateRecipe
from edge_mbm.runtime import Engine, OnnxRuntimeEngine, Segment
from edge_mbm.spec import (
    Asset,
    AudioModality,
    Component,
    Decision,
    Decoder,
    Embedding,
    Encoder,
    Input,
    Manifest,
    Output,
    Regression,
    State,
    TensorSpec,
    Tokens,
    Utterances,
    Variant,
    Window,
)
from edge_mbm.testing import NullEngine

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "examples"))

from zoo import speech

pytestmark = pytest.mark.needs("silero_vad")
RATE = speech.RATE
PAUSE = np.zeros(RATE, np.float32)
PROMPTS = ("vm-goodbye", "tt-weasels", "demo-thanks")


def floats(*shape: int | str) -> TensorSpec:
    return TensorSpec(dtype="float32", shape=("batch", *shape))


def silero() -> bytes:
    """The package's graph as an export takes it in."""
    spec = find_spec("silero_vad")
    assert spec is not None
    folder = Path(next(iter(spec.submodule_search_locations or ())))
    recipe = EncoderRecipe(
        inputs={"input": "audio"},
        outputs={"output": Regression()},
        states=(StateRecipe(input="state", output="stateN", shape=(2, "batch", 128)),),
    )
    model = OnnxModel(path="data/silero_vad.onnx", constants={"sr": 16000})
    origin = load_onnx(model, folder, "model", 20).component("voice", recipe)
    origin.run({"input": np.zeros((2, 576), np.float32), "state": np.zeros((2, 2, 128), np.float32)})
    return origin.repaired.graph


def manifest() -> Manifest:
    kept = Decision(kept=True, reason="-")

    def variants(graph: str) -> dict[str, Variant]:
        return {"fp32": Variant(target="any", precision="fp32", opset=20, decision=kept, graph=graph)}

    state = TensorSpec(dtype="float32", shape=(2, "batch", 128))
    return Manifest(
        name="voice",
        modalities={"audio": AudioModality(sample_rate=RATE)},
        components={
            "voice": Encoder(
                inputs={"input": Input(source="audio", tensor=floats(576))},
                outputs={"output": Output(tensor=floats(1), task=Regression())},
                states=(State(input="state", output="stateN", tensor=state),),
                variants=variants("voice.onnx"),
                window=Window(length=576, hop=512),
            ),
            "listener": Encoder(
                inputs={"audio": Input(source="audio", tensor=floats(10 * RATE))},
                outputs={"loudness": Output(tensor=floats(1), task=Embedding())},
                variants=variants("none"),
                window=Window(length=10 * RATE, hop=RATE),
                utterances=Utterances(source="voice.output", partials=False),
            ),
            "writer": Decoder(
                inputs={"loudness": Input(source="listener.loudness", tensor=floats(1))},
                outputs={"text": Output(tensor=floats(3), task=Tokens(tokenizer="words"))},
                variants=variants("none"),
                algorithm="autoregressive",
                tokenizer="words",
                max_tokens=2,
                start=(2,),
                end=0,
            ),
        },
        assets={"words": Asset(kind="tokenizer", path="words.txt")},
        files={},
    )


def engine(name: str, component: Component, graph: bytes) -> Engine:
    if name == "voice":
        return OnnxRuntimeEngine(name, component, graph)

    def compute(inputs: Mapping[str, Any], outputs: Mapping[str, Any]) -> None:
        if name == "listener":
            outputs["loudness"][...] = np.abs(inputs["audio"]).max()

    return NullEngine(name, component, compute=compute)


@pytest.fixture(scope="module")
def session(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Session]:
    path = tmp_path_factory.mktemp("voice") / "voice.mbm"
    write_bundle(path, manifest(), {"voice.onnx": silero(), "none": b"", "words.txt": b"word\n"})
    with edge_mbm.load(path) as bundle, bundle.session(load_engine=engine) as made:
        yield made


def segments(session: Session, sound: np.ndarray) -> list[Segment]:
    session.reset()
    found = []
    for begin in range(0, len(sound), 320):
        session.push("audio", sound[begin : begin + 320], begin * 1_000_000_000 // RATE)
        found += session.poll()
    return [result.segment for result in [*found, *session.finish()] if result.segment is not None]


def conversation() -> tuple[np.ndarray, list[tuple[float, float]]]:
    """Prompts with a second of silence around each, and where each begins and ends, s."""
    sound, spans = [PAUSE], []
    for name in PROMPTS:
        clip = speech.read_wave(speech.prompt(name).read_bytes())
        begin = sum(map(len, sound)) / RATE
        spans.append((begin, begin + len(clip) / RATE))
        sound += [clip, PAUSE]
    return np.concatenate(sound), spans


@pytest.mark.parametrize("gain", [1.0, 0.3, 30.0])
def test_every_prompt_is_heard_whatever_its_level(session: Session, gain: float) -> None:
    """Soft, as recorded, and clipped: each prompt is in some utterance, and no utterance is of silence alone."""
    sound, spans = conversation()
    found = [(s.start / 1e9, s.end / 1e9) for s in segments(session, (sound * gain).clip(-1, 1).astype(np.float32))]
    for begin, end in spans:
        assert any(start < end and stop > begin for start, stop in found)
    for start, stop in found:
        assert any(start < end and stop > begin for begin, end in spans)


@pytest.mark.parametrize("what", ["silence", "hum", "noise", "chord"])
def test_what_is_no_speech_gives_no_utterance(session: Session, what: str) -> None:
    """Five seconds each."""
    t = np.arange(5 * RATE) / RATE
    sounds = {
        "silence": np.zeros_like(t),
        "hum": 0.3 * np.sin(2 * np.pi * 50 * t),
        "noise": np.random.default_rng(0).normal(0, 0.05, t.size),
        "chord": 0.1 * sum(np.sin(2 * np.pi * f * t) for f in (261.6, 329.6, 392.0)),
    }
    assert segments(session, sounds[what].astype(np.float32)) == []
