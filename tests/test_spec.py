"""The manifest: everything it can say is read back as written, and everything wrong in it is refused in words."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_mbm import spec
from edge_mbm.errors import BundleError, BundleVersionError, ManifestError
from edge_mbm.spec import Manifest, decode_manifest, encode_manifest, safe_path

GRAPH = "graphs/any.onnx"
DIGEST = "0" * 64
RAW = {"preprocess": {"steps": "raw"}}


def tensor(*shape: int | str, dtype: str = "float32", **more: Any) -> dict[str, Any]:
    return {"dtype": dtype, "shape": list(shape), **more}


def variants() -> dict[str, Any]:
    kept = {"kept": True, "reason": "reference"}
    return {"fp32": {"target": "any", "precision": "fp32", "opset": 20, "decision": kept, "graph": GRAPH}}


def embedding(*shape: int | str) -> dict[str, Any]:
    return {"tensor": tensor(*shape), "task": {"task": "embedding"}}


def everything() -> dict[str, Any]:
    """A manifest that uses every kind of component, modality, step and task, and most fields."""
    frame = tensor("batch", 8, 8, 3, dtype="uint8", layout="NHWC", unit="rgb 0..255")
    crop = {"steps": "image", "height": 8, "width": 8, "color": "bgr", "fit": "letterbox"}
    places = [[0.3, 0.3], [0.7, 0.3], [0.5, 0.5], [0.35, 0.7], [0.65, 0.7]]
    aligned = {"steps": "crop", "height": 8, "width": 8, "color": "gray", "landmarks": places}
    face = tensor("n", 8, 8, 1, dtype="uint8")
    mel = {
        "steps": "log_mel",
        "sample_rate": 16000,
        "window_length": 400,
        "hop_length": 160,
        "n_fft": 512,
        "n_mels": 40,
        "f_min": 20.0,
        "f_max": 7600.0,
        "floor": 1e-5,
    }
    error = {"samples": 9, "cosine": 0.99, "sqnr_db": 31.5, "max_abs": 0.1, "agreement": 0.97, "accuracy": 0.9}
    speed = {"host": "cpu, 1 thread", "median_us": 10.5, "iqr_us": 0.5, "speedup": 1.7}
    kinds = variants() | {
        "x86-cpu-int8": {
            "target": "x86-cpu",
            "precision": "int8",
            "opset": 20,
            "decision": {"kept": True, "reason": "1.7x"},
            "graph": "graphs/small.onnx",
            "error": error,
            "speed": speed,
        },
        "trt-fp16": {
            "target": "tensorrt",
            "precision": "fp16",
            "opset": 20,
            "decision": {"kept": False, "reason": "too far off"},
        },
    }
    return {
        "format": "edge-mbm",
        "format_version": "1.0",
        "name": "everything",
        "description": "all kinds",
        "modalities": {
            "image": {"kind": "image"},
            "video": {"kind": "video", "rate": 25.0},
            "audio": {"kind": "audio", "sample_rate": 16000},
            "text": {"kind": "text"},
            "imu": {"kind": "sensor", "shape": [6], "unit": "m/s2"},
        },
        "components": {
            "faces": {
                "kind": "detector",
                "inputs": {"image": {"source": "image", "tensor": frame, "preprocess": crop}},
                "outputs": {"boxes": {"tensor": tensor(1, 4, 15), "task": {"task": "regions", "landmarks": 5}}},
                "variants": variants(),
                "max_regions": 4,
                "score_threshold": 0.3,
            },
            "face_encoder": {
                "kind": "encoder",
                "inputs": {"crops": {"source": "faces.boxes", "tensor": face, "preprocess": aligned}},
                "outputs": {"vector": {"tensor": tensor("n", 16), "task": {"task": "embedding", "normalized": True}}},
                "variants": kinds,
            },
            "clip_encoder": {
                "kind": "encoder",
                "inputs": {"frames": {"source": "video", **RAW, "tensor": tensor("batch", 4, 8, 8, 3, dtype="uint8")}},
                "outputs": {"saliency": {"tensor": tensor("batch", 4), "task": {"task": "saliency"}}},
                "variants": variants(),
                "window": {"length": 4, "hop": 2},
            },
            "audio_encoder": {
                "kind": "encoder",
                "inputs": {"mel": {"source": "audio", "tensor": tensor("batch", 98, 40), "preprocess": mel}},
                "outputs": {
                    "embedding": embedding("batch", 32),
                    "steps": {"tensor": tensor("batch", 98, 32), "task": {"task": "sequence"}},
                },
                "states": [{"input": "state", "output": "next_state", "tensor": tensor("batch", 32)}],
                "variants": variants(),
                "window": {"length": 16000, "hop": 1600},
                "gate": {"kind": "silence", "threshold_db": -50.0, "max_ns": 1_000_000_000},
            },
            "scene_encoder": {
                "kind": "encoder",
                "inputs": {"image": {"source": "image", "tensor": frame, "preprocess": crop}},
                "outputs": {"vector": embedding("batch", 16)},
                "variants": variants(),
                "gate": {"kind": "unchanged", "threshold": 2.0, "max_ns": 1_000_000_000},
            },
            "transcript": {
                "kind": "decoder",
                "inputs": {"steps": {"source": "audio_encoder.steps", **RAW, "tensor": tensor("batch", 98, 32)}},
                "outputs": {
                    "ids": {
                        "tensor": tensor("batch", 20, dtype="int64"),
                        "task": {"task": "tokens", "tokenizer": "words"},
                    }
                },
                "variants": variants(),
                "algorithm": "ctc",
                "tokenizer": "words",
                "max_tokens": 20,
            },
            "text_encoder": {
                "kind": "encoder",
                "inputs": {
                    "ids": {
                        "source": "text",
                        "tensor": tensor("batch", 16, dtype="int64"),
                        "preprocess": {"steps": "tokens", "asset": "words", "max_length": 16},
                    },
                    "mask": {
                        "source": "text",
                        "tensor": tensor("batch", 16, dtype="int64"),
                        "preprocess": {"steps": "tokens", "asset": "words", "max_length": 16, "gives": "mask"},
                    },
                },
                "outputs": {"vector": embedding("batch", 8)},
                "variants": variants(),
            },
            "motion_encoder": {
                "kind": "encoder",
                "inputs": {"imu": {"source": "imu", **RAW, "tensor": tensor("batch", 6)}},
                "outputs": {"vector": embedding("batch", 8)},
                "variants": variants(),
            },
            "who": {
                "kind": "head",
                "inputs": {
                    "face": {"source": "face_encoder.vector", **RAW, "tensor": tensor("batch", 4, 16)},
                    "voice": {"source": "audio_encoder.embedding", **RAW, "tensor": tensor("batch", 32)},
                    "words": {"source": "text_encoder.vector", **RAW, "tensor": tensor("batch", 8)},
                    "motion": {"source": "motion_encoder.vector", **RAW, "tensor": tensor("batch", 8)},
                },
                "outputs": {
                    "person": {
                        "tensor": tensor("batch", 3),
                        "task": {"task": "classification", "labels": "people", "activation": "sigmoid"},
                    },
                    "distance": {"tensor": tensor("batch", 1), "task": {"task": "regression", "unit": "m"}},
                },
                "variants": variants(),
                "pivot": "image",
                "deadline_ns": 100_000_000,
                "tolerance_ns": {"audio": 200_000_000, "imu": 10_000_000},
                "present": {"input": "present", "order": ["image", "audio", "text", "imu"]},
            },
        },
        "default_heads": ["who"],
        "assets": {
            "people": {"kind": "labels", "path": "labels.txt"},
            "words": {"kind": "tokenizer", "path": "words.json"},
        },
        "golden": [{"id": "one", "inputs": {"image": "0.npy"}, "outputs": {"who.person": "0.out.npy"}}],
        "files": {
            name: {"sha256": DIGEST, "size": 1}
            for name in (GRAPH, "graphs/small.onnx", "labels.txt", "words.json", "0.npy", "0.out.npy")
        },
        "provenance": {
            "recipe_sha256": DIGEST,
            "model_sha256": "f" * 64,
            "versions": {"torch": "2.13.0"},
            "calibration": {"samples": 5, "data_sha256": DIGEST, "method": "percentile", "description": "real"},
        },
    }


def decode(data: Any) -> Manifest:
    return decode_manifest(json.dumps(data).encode())


# --- reading back ----------------------------------------------------------------------------------------------------


def test_every_kind_of_thing_is_read_back_as_written() -> None:
    """Nothing of a manifest that uses every kind is lost or changed on the way through the types."""
    source = everything()
    written = json.loads(encode_manifest(decode(source)))
    assert written == source


def test_the_example_really_uses_every_kind() -> None:
    """The round trip above covers each tagged type that the manifest knows, so a new one must join it."""

    def tags(schema: Any) -> set[tuple[str, str]]:
        found = set()
        for definition in schema["$defs"].values():
            for field in ("kind", "steps", "task"):
                if "enum" in definition["properties"].get(field, {}):
                    found |= {(field, tag) for tag in definition["properties"][field]["enum"]}
        return found

    def used(value: Any) -> set[tuple[str, str]]:
        if isinstance(value, dict):
            own = {(k, v) for k, v in value.items() if k in ("kind", "steps", "task") and isinstance(v, str)}
            return own.union(*map(used, value.values()))
        return set().union(*map(used, value)) if isinstance(value, list) else set()

    everywhere = tags(spec.json_schema()) - {("kind", k) for k in ("labels", "report", "other", "tokenizer")}
    assert everywhere <= used(everything())


def test_equal_manifests_have_equal_bytes() -> None:
    """Encoding is canonical: reading and writing again changes no byte."""
    once = encode_manifest(decode(everything()))
    assert encode_manifest(decode_manifest(once)) == once


def test_components_are_ordered_after_what_they_use() -> None:
    """Whatever the manifest's order, a component comes after its inputs, and modalities are found through others."""
    data = everything()
    data["components"] = dict(reversed(data["components"].items()))
    manifest = decode(data)
    order = manifest.order()
    for name, component in manifest.components.items():
        for value in component.inputs.values():
            if "." in value.source:
                assert order.index(value.source.partition(".")[0]) < order.index(name)
    assert manifest.modalities_of("who") == ("image", "audio", "text", "imu")


def test_texts_without_a_tolerance_are_latched() -> None:
    """Those that a head depends on, but for its pivot and where it limits their age; nothing else ever is."""
    data = everything()
    assert decode(data).latched("who") == ("text",)
    data["components"]["who"]["tolerance_ns"]["text"] = 10
    assert decode(data).latched("who") == ()
    del data["components"]["who"]["tolerance_ns"]["text"]
    data["components"]["who"]["pivot"] = "text"
    data["components"]["who"]["tolerance_ns"]["image"] = 10
    assert decode(data).latched("who") == ()


def test_one_text_may_be_several_inputs() -> None:
    """Ids and mask of one source are no joining."""
    steps = [value.preprocess for value in decode(everything()).components["text_encoder"].inputs.values()]
    assert [step.gives for step in steps if isinstance(step, spec.TokenSteps)] == ["ids", "mask"]


# --- versions --------------------------------------------------------------------------------------------------------


def test_a_newer_minor_version_opens() -> None:
    """Fields that this version does not know, at any depth, are ignored."""
    data = everything()
    data["format_version"] = "1.7"
    data["hologram"] = {"depth": 3}
    data["components"]["who"]["mood"] = "sunny"
    data["modalities"]["image"]["stereo"] = True
    assert decode(data).heads().keys() == {"who"}


@pytest.mark.parametrize("version", ["2.0", "0.9", "11.0", "01.0"])
def test_another_major_version_is_refused(version: str) -> None:
    """The message has both versions, and it is not half understood first: the rest may be anything."""
    with pytest.raises(BundleVersionError, match=rf"{re.escape(version)}.*1\.x"):
        decode({"format": "edge-mbm", "format_version": version, "components": "quite different"})


# --- what is refused -------------------------------------------------------------------------------------------------


def at(data: Any, path: str) -> tuple[Any, str]:
    *parents, last = path.split("/")
    for key in parents:
        data = data[int(key)] if isinstance(data, list) else data[key]
    return data, last


def put(path: str, value: Any) -> Callable[[Any], None]:
    def change(data: Any) -> None:
        place, key = at(data, path)
        if isinstance(place, list):
            place[int(key)] = value
        else:
            place[key] = value

    return change


def drop(path: str) -> Callable[[Any], None]:
    def change(data: Any) -> None:
        place, key = at(data, path)
        del place[key]

    return change


WHO, AUDIO = "components/who", "components/audio_encoder"
BROKEN = {
    "no format": (drop("format"), "format"),
    "another format": (put("format", "onnx"), "format"),
    "version not a version": (put("format_version", "one"), "format_version"),
    "line break in version": (put("format_version", "1.0\n"), "format_version"),
    "no name": (put("name", ""), "name"),
    "no modality": (put("modalities", {}), "modalities is empty"),
    "bad modality name": (put("modalities/my image", {"kind": "image"}), "modalities"),
    "line break in a name": (put("modalities/eye\n", {"kind": "image"}), "modalities"),
    "unknown modality kind": (put("modalities/image/kind", "smell"), r"modalities.*smell|smell.*modalities"),
    "rate of nothing": (put("modalities/audio/sample_rate", 0), "modalities"),
    "bad component name": (put("components/a.b", everything()["components"]["who"]), "components"),
    "unknown component kind": (put(f"{WHO}/kind", "oracle"), "components"),
    "unknown dtype": (put(f"{WHO}/inputs/face/tensor/dtype", "float8"), "dtype"),
    "cycle": (put("components/faces/inputs/image/source", "face_encoder.vector"), "cycle.*face_encoder"),
    "feeds on itself": (put("components/faces/inputs/image/source", "faces.boxes"), "cycle.*faces"),
    "unknown modality": (put(f"{AUDIO}/inputs/mel/source", "sound"), "audio_encoder.inputs.mel.*'sound'"),
    "unknown component": (put(f"{WHO}/inputs/face/source", "nobody.vector"), "who.inputs.face.*'nobody'"),
    "unknown output": (put(f"{WHO}/inputs/face/source", "face_encoder.soul"), "face.*'face_encoder.soul'"),
    "unknown component further up": (
        put("components/face_encoder/inputs/crops/source", "nobody.boxes"),
        "face_encoder.inputs.crops takes crops of 'nobody.boxes'",
    ),
    "shape between components": (put(f"{WHO}/inputs/face/tensor/shape", ["batch", 17]), "who.inputs.face.*17.*16"),
    "rank between components": (put(f"{WHO}/inputs/face/tensor/shape", [16]), "who.inputs.face.*shape"),
    "dtype between components": (put(f"{WHO}/inputs/face/tensor/dtype", "float16"), "who.inputs.face.*float16"),
    "size of zero": (put(f"{WHO}/outputs/person/tensor/shape", ["batch", 0]), "who.outputs.person.*0"),
    "negative size": (put(f"{WHO}/outputs/person/tensor/shape", [-1, 3]), "who.outputs.person.*-1"),
    "huge size": (put(f"{WHO}/outputs/person/tensor/shape", [1 << 20, 1 << 20]), "2\\^31"),
    "size beyond 64 bits": (put(f"{WHO}/outputs/person/tensor/shape", [10**30]), "shape|person"),
    "too many axes": (put(f"{WHO}/outputs/person/tensor/shape", [1] * 9), "shape"),
    "no inputs": (put(f"{WHO}/inputs", {}), "components.who needs at least one input"),
    "no outputs": (put("components/motion_encoder/outputs", {}), "motion_encoder"),
    "tensor name twice": (put(f"{WHO}/present/input", "face"), "who uses the tensor name 'face' twice"),
    "state named as an input": (put(f"{AUDIO}/states/0/input", "mel"), "audio_encoder uses the tensor name 'mel'"),
    "no graph kept": (drop(f"{WHO}/variants/fp32"), "who.variants keeps no graph"),
    "graph not listed": (put(f"{WHO}/variants/fp32/graph", "graphs/gone.onnx"), "who.variants.fp32.*gone.onnx"),
    "kept without a graph": (
        put("components/face_encoder/variants/trt-fp16/decision/kept", True),
        "face_encoder.variants.trt-fp16.*kept",
    ),
    "decision without a reason": (put(f"{WHO}/variants/fp32/decision/reason", " "), "who.variants.fp32.*reason"),
    "variant name with an escape": (put(f"{WHO}/variants/\x1b[31m", {}), "variants"),
    "unknown labels": (put(f"{WHO}/outputs/person/task/labels", "cats"), "who.outputs.person.*'cats'"),
    "unknown tokenizer": (put("components/transcript/tokenizer", "runes"), "transcript.tokenizer.*'runes'"),
    "unknown token asset": (
        put("components/text_encoder/inputs/ids/preprocess/asset", "runes"),
        "text_encoder.inputs.ids.*'runes'",
    ),
    "asset not listed": (put("assets/people/path", "gone.txt"), "assets.people.path.*gone.txt"),
    "text as it comes": (
        drop("components/text_encoder/inputs/mask/preprocess"),
        "text_encoder.inputs.mask.preprocess is RawSteps, but 'text' is text",
    ),
    "unknown part of a token": (put("components/text_encoder/inputs/mask/preprocess/gives", "soul"), "soul|gives"),
    "tokens without end": (put("components/text_encoder/inputs/ids/preprocess/max_length", 1 << 17), "max_length"),
    "encoder of two sources": (
        put("components/text_encoder/inputs/mask", {"source": "imu", "tensor": tensor("batch", 6)}),
        r"text_encoder reads \['imu', 'text'\].*Make it a head",
    ),
    "windowed encoder of two sources": (
        put(f"{AUDIO}/inputs/motion", {"source": "motion_encoder.vector", "tensor": tensor("batch", 8)}),
        r"audio_encoder reads \['audio', 'motion_encoder'\]",
    ),
    "encoder of a head": (
        put("components/scene_encoder/inputs/image", {"source": "who.distance", "tensor": tensor("batch", 1)}),
        "scene_encoder.inputs.image.source is 'who.distance', a head's output",
    ),
    "head of a head": (
        put(
            "components/after",
            {
                **everything()["components"]["who"],
                "inputs": {"distance": {"source": "who.distance", "tensor": tensor("batch", 1)}},
            },
        ),
        "after.inputs.distance.source is 'who.distance', a head's output",
    ),
    "missing window": (drop(f"{AUDIO}/window"), "audio_encoder.*window"),
    "hop of zero": (put(f"{AUDIO}/window/hop", 0), "hop"),
    "window shorter than a frame": (put(f"{AUDIO}/window/length", 100), "audio_encoder.window"),
    "window gives other frames": (put(f"{AUDIO}/window/length", 8000), "audio_encoder.window gives 48 .* 98"),
    "log-mel of another rate": (put(f"{AUDIO}/inputs/mel/preprocess/sample_rate", 8000), "8000 Hz|filters"),
    "fft shorter than the window": (put(f"{AUDIO}/inputs/mel/preprocess/n_fft", 256), "mel.preprocess.n_fft is 256"),
    "filters above half the rate": (put(f"{AUDIO}/inputs/mel/preprocess/f_max", 9000.0), "mel.preprocess.*9000"),
    "filters that fall": (put(f"{AUDIO}/inputs/mel/preprocess/f_min", 7700.0), "mel.preprocess.*7700"),
    "image steps on sound": (
        put(f"{AUDIO}/inputs/mel/preprocess", {"steps": "image", "height": 8, "width": 8}),
        "audio_encoder.inputs.mel.preprocess is ImageSteps",
    ),
    "unknown steps": (put(f"{AUDIO}/inputs/mel/preprocess/steps", "magic"), "preprocess"),
    "head on a modality": (
        put(f"{WHO}/inputs/motion", {"source": "imu", "tensor": tensor("batch", 6)}),
        "components.who reads a modality directly",
    ),
    "pivot it does not see": (put(f"{WHO}/pivot", "video"), "who.pivot is 'video'"),
    "missing tolerance": (drop(f"{WHO}/tolerance_ns/imu"), "who.tolerance_ns lacks 'imu'"),
    "tolerance for a stranger": (put(f"{WHO}/tolerance_ns/video", 1), "who.tolerance_ns names 'video'"),
    "negative deadline": (put(f"{WHO}/deadline_ns", -1), "deadline_ns"),
    "no deadline": (drop(f"{WHO}/deadline_ns"), "deadline_ns"),
    "present of others": (put(f"{WHO}/present/order", ["image", "audio"]), "who.present.order"),
    "present twice": (put(f"{WHO}/present/order", ["image", "image", "audio", "text", "imu"]), "who.present.order"),
    "default head unknown": (put("default_heads", ["nobody"]), "default_heads names 'nobody'"),
    "default head of an encoder": (put("default_heads", ["face_encoder"]), "default_heads names 'face_encoder'"),
    "golden for a stranger": (put("golden/0/inputs/smell", "0.npy"), "golden 'one'.*'smell'"),
    "golden file not listed": (put("golden/0/inputs/image", "gone.npy"), "golden 'one'.*gone.npy"),
    "golden of nothing": (put("golden/0/outputs/who.soul", "0.npy"), "golden 'one'.*who.soul"),
    "digest too short": (put(f"files/{'words.json'}/sha256", "00"), "files"),
    "negative file size": (put("files/words.json/size", -1), "files"),
    "path out of the bundle": (put("files/..", {"sha256": DIGEST, "size": 1}), "files lists '..'"),
    "lists the manifest": (put("files/manifest.json", {"sha256": DIGEST, "size": 1}), "files lists 'manifest.json'"),
    "file and folder": (put("files/graphs", {"sha256": DIGEST, "size": 1}), "files lists .*'graphs'"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_manifest_is_refused_naming_the_place(name: str) -> None:
    """Each broken rule gives a ManifestError with the component or field in its message."""
    change, message = BROKEN[name]
    data = everything()
    change(data)
    with pytest.raises(ManifestError, match=message):
        decode(data)


@pytest.mark.parametrize("first", [False, True])
def test_a_broken_source_is_found_wherever_the_head_stands(first: bool) -> None:
    """A head listed before the encoder with the broken source does not stumble over it."""
    data = everything()
    data["components"]["motion_encoder"]["inputs"]["imu"]["source"] = "wind"
    if first:
        data["components"] = dict(reversed(data["components"].items()))
    with pytest.raises(ManifestError, match=r"motion_encoder\.inputs\.imu.*'wind'"):
        decode(data)


@pytest.mark.parametrize("number", ["1e999", "-1e999", "NaN", "Infinity"])
def test_numbers_that_are_not_finite_are_not_read(number: str) -> None:
    """Infinity by overflow looks like a JSON number, NaN is no JSON at all; both are refused."""
    text = json.dumps(everything()).replace("31.5", number)
    with pytest.raises(ManifestError, match=r"error\.sqnr_db|not an edge-mbm manifest"):
        decode_manifest(text.encode())


@pytest.mark.parametrize("number", [float("nan"), float("inf"), -float("inf")])
def test_numbers_that_are_not_finite_are_not_written(number: float) -> None:
    """An exporter that measured NaN learns where before anything is written."""
    manifest = decode(everything())
    error = manifest.components["face_encoder"].variants["x86-cpu-int8"].error
    msgspec.structs.force_setattr(error, "sqnr_db", number)
    with pytest.raises(ManifestError, match=r"face_encoder\.variants\.x86-cpu-int8\.error\.sqnr_db"):
        manifest.check()


@pytest.mark.parametrize("data", [b"", b"null", b"[]", b"{", b"\xff\xfe", b"[" * 100_000, b'{"a":' * 50_000])
def test_what_is_not_a_manifest_is_refused(data: bytes) -> None:
    """Empty, truncated, nested or foreign bytes are a ManifestError, not a stack overflow."""
    with pytest.raises(ManifestError):
        decode_manifest(data)


def test_invalid_text_in_an_unknown_field_is_refused_or_ignored() -> None:
    """Bytes that are no UTF-8 never escape as another exception, wherever they stand."""
    good = json.dumps({**everything(), "zzz": "Q"}).encode()
    for old in (b'"Q"', b'"all kinds"', b'"m/s2"'):
        try:
            decode_manifest(good.replace(old, b'"\xff\xc0"'))
        except ManifestError:
            continue


def test_damaged_bytes_raise_bundle_errors_only() -> None:
    """Ten thousand random edits of a manifest either still read or raise a BundleError; nothing else, and no hang."""
    good = encode_manifest(decode(everything()))
    chance = random.Random(7)
    refused = 0
    for _ in range(10_000):
        data = bytearray(good)
        for _ in range(chance.randint(1, 3)):
            start = chance.randrange(len(data))
            kind = chance.randrange(4)
            if kind == 0:
                data[start] = chance.randrange(256)
            elif kind == 1:
                del data[start : start + chance.randint(1, 200)]
            elif kind == 2:
                data[start:start] = chance.choice([b"-", b"9" * 40, b"1e999", b"null", b'"', b"{}", b"\x00", b"[[[["])
            else:
                end = start + chance.randint(1, 100)
                data[start:start] = data[start:end]
        try:
            decode_manifest(bytes(data))
        except BundleError:
            refused += 1
    assert refused > 5_000


@given(st.binary(max_size=200))
def test_random_bytes_raise_bundle_errors_only(data: bytes) -> None:
    """No bytes make the reader raise anything but a BundleError."""
    with pytest.raises(BundleError):
        decode_manifest(data)


def test_a_large_hostile_manifest_is_refused_in_time() -> None:
    """Repeated names, chains and giant shapes within the size limit cost no more than linear time."""
    chain = {
        f"c{i}": {
            "kind": "encoder",
            "inputs": {"x": {"source": f"c{i - 1}.y" if i else "image", "tensor": tensor(1)}},
            "outputs": {"y": embedding(1)},
            "variants": variants(),
        }
        for i in range(3000)
    }
    data = {**everything(), "components": chain}
    with pytest.raises(ManifestError, match=r"components|length"):
        decode(data)
    many = everything()
    many["components"]["who"]["present"]["order"] = ["image"] * 20_000
    many["components"]["motion_encoder"]["states"] = [
        {"input": "a", "output": "b", "tensor": tensor(2**31, 2**31)} for _ in range(20_000)
    ]
    with pytest.raises(ManifestError):
        decode(many)


# --- paths -----------------------------------------------------------------------------------------------------------


@given(st.text(alphabet=st.sampled_from("ab./\\~\0 \n:%é-_.."), max_size=12) | st.text(max_size=8))
@settings(max_examples=500)
def test_a_safe_path_stays_inside(path: str) -> None:
    """Joined to any folder a safe path is a plain name below it: never absolute, no '..', no hidden part."""
    if safe_path(path):
        parts = PurePosixPath("/bundle", path).parts
        assert parts[:2] == ("/", "bundle")
        assert len(parts) > 2
        assert "/".join(parts[2:]) == path
        assert not any(part.startswith(".") for part in parts)
        assert path.isascii()
        assert path.isprintable()
        assert "\\" not in path


@given(st.lists(st.from_regex(r"[A-Za-z0-9_][A-Za-z0-9_.\-]{0,8}", fullmatch=True), min_size=1, max_size=5))
def test_plain_names_are_safe_paths(parts: list[str]) -> None:
    """What exporters write is accepted."""
    assert safe_path("/".join(parts))


@pytest.mark.parametrize("path", ["", "/a", "../a", "a/../b", "a//b", "a/", ".a", "a/.b", "C:\\a", "a\n", "a" * 256])
def test_known_tricks_are_not_safe_paths(path: str) -> None:
    """The classic ways out of a folder are refused one by one."""
    assert not safe_path(path)


# --- the schema file -------------------------------------------------------------------------------------------------


def test_the_schema_file_is_current() -> None:
    """``manifest.schema.json`` is what the types say; ``json_schema`` has the line that makes it anew."""
    shipped = Path(spec.__file__).with_name("manifest.schema.json").read_bytes()
    assert json.loads(shipped) == json.loads(json.dumps(spec.json_schema()))


def test_records_cannot_be_changed() -> None:
    """A manifest that was checked stays what was checked."""
    manifest = decode(everything())
    with pytest.raises(AttributeError):
        manifest.name = "another"  # type: ignore[misc]
    assert msgspec.structs.replace(manifest, name="another").name == "another"
