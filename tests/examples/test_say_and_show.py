"""Say and show without its weights: what weighs two modalities, what spoils them, and what is kept of listening."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.needs("torch", "onnxruntime", "cv2", "av", "tokenizers")
NAMES, WIDTH = 12, 6


@pytest.fixture(autouse=True)
def _examples(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "examples"))


def units(seed: int, *shape: int) -> np.ndarray:
    vectors = np.random.default_rng(seed).normal(size=shape).astype(np.float32)
    found: np.ndarray = vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)
    return found


def weigher(kind: str):
    """Each of the three, with random parameters."""
    import torch
    from zoo import say_and_show

    made = {
        "sum": say_and_show.Equal,
        "weighted": lambda: say_and_show.Confidence(2),
        "attention": lambda: say_and_show.Attention(2),
    }[kind]()
    generator = torch.Generator().manual_seed(3)
    for parameter in made.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator)
    return made


def run(head, seen: np.ndarray, said: np.ndarray, present: list[float]) -> np.ndarray:
    import torch

    with torch.inference_mode():
        mask = torch.tensor([present] * len(seen))
        found: np.ndarray = head(torch.from_numpy(seen), torch.from_numpy(said), mask).numpy()
    return found


KINDS = ("sum", "weighted", "attention")


@pytest.mark.parametrize("kind", KINDS)
def test_with_one_missing_the_other_decides(kind: str) -> None:
    """Exactly as it does alone, whatever stands in the missing one's place, NaN included."""
    import torch
    from zoo.say_and_show import Fused, Single

    names, seen, said = torch.from_numpy(units(0, NAMES, WIDTH)), units(1, 5, WIDTH), units(2, 5, WIDTH)
    head, alone = Fused(names, weigher(kind), 7.0), Single(names, 7.0)
    nothing = np.full_like(seen, np.nan)
    for points, present, left in (((seen, nothing), [1.0, 0.0], seen), ((nothing, said), [0.0, 1.0], said)):
        expected = alone(torch.from_numpy(left)).numpy()
        np.testing.assert_allclose(run(head, *points, present), expected, rtol=1e-5, atol=1e-5)


def test_a_sum_is_the_mean_of_directions() -> None:
    """Against the cosine with it in float64; lengths of what comes in do not count."""
    import torch
    from zoo.say_and_show import Equal, Fused

    names, seen, said = units(0, NAMES, WIDTH), units(1, 5, WIDTH), units(2, 5, WIDTH)
    got = run(Fused(torch.from_numpy(names), Equal(), 3.0), 4 * seen, 0.1 * said, [1.0, 1.0])
    mean = (seen.astype(float) + said) / 2
    expected = 3 * (mean / np.linalg.norm(mean, axis=1, keepdims=True)) @ names.T
    np.testing.assert_allclose(got, expected, atol=1e-5)


def test_confidences_weigh_as_probabilities_do() -> None:
    """Each point by its chance to be right, from its best cosine and the gap to the second: in float64, row by row."""
    import torch
    from zoo.say_and_show import Fused

    names, points = units(0, NAMES, WIDTH), (units(1, 5, WIDTH), units(2, 5, WIDTH))
    judge = weigher("weighted")
    got = run(Fused(torch.from_numpy(names), judge), *points, [1.0, 1.0])
    slopes, bias = judge.weight.detach().numpy().astype(float), judge.bias.detach().numpy().astype(float)
    for row in range(5):
        mixed = np.zeros(WIDTH)
        for modality in range(2):
            first, second = sorted(names @ points[modality][row])[:-3:-1]
            odds = slopes[modality] @ [first, first - second] + bias[modality]
            mixed += points[modality][row] / (1 + math.exp(-odds))
        np.testing.assert_allclose(got[row], names @ (mixed / np.linalg.norm(mixed)), atol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_no_name_is_known_by_its_place(kind: str) -> None:
    """Names in another order are the same answers in that order: so it can name what it never learnt from."""
    import torch
    from zoo.say_and_show import Fused

    names, seen, said = units(0, NAMES, WIDTH), units(1, 5, WIDTH), units(2, 5, WIDTH)
    order, judge = np.random.default_rng(4).permutation(NAMES), weigher(kind)
    before = run(Fused(torch.from_numpy(names), judge), seen, said, [1.0, 1.0])
    after = run(Fused(torch.from_numpy(names[order]), judge), seen, said, [1.0, 1.0])
    np.testing.assert_allclose(after, before[:, order], atol=1e-5)


def synthetic(count: int = 400):
    """Names of which the first half of the pairs is seen well and heard badly, and the second half the other way."""
    import torch
    from zoo.say_and_show import Pairs

    rng, names = np.random.default_rng(0), units(0, 40, 16)
    right = rng.integers(40, size=count)
    noise = np.where(np.arange(count) < count / 2, 0.2, 1.5)
    points = [names[right] + level[:, None] * rng.normal(size=(count, 16)) for level in (noise, noise[::-1])]
    unit = [torch.from_numpy((p / np.linalg.norm(p, axis=1, keepdims=True)).astype(np.float32)) for p in points]
    return torch.from_numpy(names), Pairs(*unit, torch.from_numpy(right))


def accuracy(head, given) -> float:
    found = run(head, given.seen.numpy(), given.said.numpy(), [1.0, 1.0]).argmax(1)
    return float((found == given.right.numpy()).mean())


def test_what_is_fitted_trusts_the_modality_that_is_sure() -> None:
    """Where either may be the bad one, both fitted weighings name more than equal weights do, and than each alone."""
    from zoo.say_and_show import Equal, Fused, Single, attention, confidence

    names, learnt = synthetic()
    alone = [Single(names)(points).argmax(1).eq(learnt.right).float().mean() for points in (learnt.seen, learnt.said)]
    equal = accuracy(Fused(names, Equal()), learnt)
    for head in (Fused(names, confidence(learnt, names)), attention(learnt, names, seed=0)):
        assert accuracy(head, learnt) > max(equal, *map(float, alone)) + 0.02


@pytest.mark.parametrize("factor", [0.5, 0.8, 1.25, 2.0])
def test_a_scale_makes_the_right_names_likeliest(factor: float) -> None:
    """No scale well beside it does better, and it changes no answer."""
    import torch
    from torch.nn.functional import cross_entropy
    from zoo.say_and_show import Single, logits, set_scale

    names, learnt = synthetic()
    head = Single(names)
    before = logits(head, "speech", learnt)
    set_scale(head, before, learnt.right)
    scores = logits(head, "speech", learnt)
    assert torch.equal(scores.argmax(1), before.argmax(1))
    assert cross_entropy(scores, learnt.right) < cross_entropy(scores * factor, learnt.right)


@given(st.integers(0, 500), st.integers(1, 500))
def test_wilsons_interval_holds_what_was_seen(right: int, more: int) -> None:
    """Within 0 and 1; a published figure: 8 of 10 is .490 to .943."""
    from zoo.say_and_show import wilson

    low, high = wilson(right, right + more)
    assert -1e-12 <= low <= right / (right + more) <= high <= 1
    assert wilson(8, 10) == pytest.approx((0.490, 0.943), abs=5e-4)


@pytest.mark.parametrize("snr_db", [10.0, 0.0])
def test_noise_is_as_loud_as_it_is_said_to_be(snr_db: float) -> None:
    """Power of the speech by that of what was added, over the speech; and the noise is there before it, too."""
    from zoo.things import noisy

    clip = np.sin(np.arange(32_000) / 20).astype(np.float32) * 0.3
    clean, spoiled = (noisy(clip, level, np.random.default_rng(0)) for level in (None, snr_db))
    added, speech = spoiled - clean, slice(3200, -3200)
    ratio = 10 * np.log10((clean[speech] ** 2).mean() / (added[speech] ** 2).mean())
    assert ratio == pytest.approx(snr_db, abs=0.5)
    assert added[:3200].any()
    assert not clean[:3200].any()


def test_a_spoiled_photograph_is_hidden_in_part_and_noisy_everywhere() -> None:
    """A square of three tenths of its side becomes grey; around it there is noise of a tenth of white."""
    from zoo.things import spoil

    white = np.full((100, 120, 3), 128, np.uint8)
    white[..., 0] = 0
    found = spoil(white, np.random.default_rng(1))
    hidden = found[..., 0] > 77
    assert hidden.sum() == pytest.approx(30 * 30, rel=0.1)
    assert found[..., 1].astype(float).std() / 255 == pytest.approx(0.1, abs=0.01)


def test_nothing_is_listened_to_twice(tmp_path: Path) -> None:
    """What was heard is in a file, and what a listener that fails halfway had heard is too."""
    from zoo.things import heard

    clips = {name: (lambda name=name: np.array([len(name)], np.float32)) for name in ("a", "bb", "ccc")}
    listened: list[int] = []

    def listen(sound: np.ndarray) -> str:
        listened.append(int(sound[0]))
        if sound[0] == 2 and len(listened) < 3:
            raise KeyboardInterrupt
        return "x" * int(sound[0])

    with pytest.raises(KeyboardInterrupt):
        heard(clips, listen, tmp_path / "kept.json")
    assert heard(clips, listen, tmp_path / "kept.json") == {"a": "x", "bb": "xx", "ccc": "xxx"}
    assert heard({"bb": clips["bb"]}, listen, tmp_path / "kept.json") == {"bb": "xx"}
    assert listened == [1, 2, 2, 3]


def test_a_head_becomes_a_graph_that_answers_alike() -> None:
    """All three on ONNX Runtime at batches 1 and 3, with either modality missing: a thousandth, and the same names."""
    import onnxruntime
    import torch
    from zoo.say_and_show import Fused

    def graph(head) -> bytes:
        batch = torch.export.Dim("batch", min=1, max=64)
        example = (torch.zeros(2, WIDTH), torch.zeros(2, WIDTH), torch.ones(2, 2))
        program = torch.onnx.export(
            head.eval(), example, dynamo=True, opset_version=20, external_data=False, verbose=False,
            dynamic_shapes=(tuple({0: batch} for _ in example),), input_names=["seen", "said", "present"],
        )  # fmt: skip
        assert program is not None
        stream = io.BytesIO()
        program.save(stream)
        return stream.getvalue()

    names = torch.from_numpy(units(0, NAMES, WIDTH))
    for kind in KINDS:
        head = Fused(names, weigher(kind), 5.0)
        session = onnxruntime.InferenceSession(graph(head))
        for count, present in ((1, [1.0, 1.0]), (3, [1.0, 0.0]), (3, [0.0, 1.0])):
            seen, said = units(5, count, WIDTH), units(6, count, WIDTH)
            mask = np.array([present] * count, np.float32)
            [got] = session.run(None, {"seen": seen, "said": said, "present": mask})
            np.testing.assert_allclose(got, run(head, seen, said, present), rtol=1e-3, atol=1e-4)


def test_a_recipe_whose_names_are_not_the_stamps_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """Before a bundle is held against the framework: its answers would be other things' names."""
    from zoo import say_and_show

    from edge_mbm.errors import InputError

    monkeypatch.setattr(say_and_show.things, "names", lambda: ("owl", "toucan"))
    say_and_show.check_names(("owl", "toucan"))
    with pytest.raises(InputError, match="export it again"):
        say_and_show.check_names(("toucan", "owl"))


def test_the_recipe_turns_speech_into_text_into_a_point() -> None:
    """In one bundle: the reader reads what the writer writes, and every name is there once."""
    from edge_mbm.export.recipe import DecoderRecipe, load_recipe

    recipe = load_recipe(ROOT / "export" / "say_and_show.toml").recipe
    components: Mapping = recipe.components
    assert isinstance(components["writer"], DecoderRecipe)
    assert {value.source for value in components["reader"].sources().values()} == {"writer.text"}
    assert len(set(recipe.labels["names"])) == len(recipe.labels["names"]) == 327
    for name in KINDS:
        assert components[name].present == ("image", "audio")
