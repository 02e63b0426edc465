"""Fusion heads do without what is missing."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from edge_mbm.errors import InputError
from edge_mbm.models import (
    AttentionFusion,
    BottleneckFusion,
    ConcatFusion,
    GatedFusion,
    MultimodalModel,
    SumFusion,
)

HEADS = (ConcatFusion, SumFusion, AttentionFusion, GatedFusion, BottleneckFusion)
BATCH, DIM, CLASSES = 4, 6, 3


def head(kind: type[nn.Module], modalities: int) -> nn.Module:
    torch.manual_seed(0)
    return kind(modalities=modalities, dim=DIM, classes=CLASSES, hidden=8).eval()


def embeddings(modalities: int, seed: int = 1) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(BATCH, DIM, generator=generator) for _ in range(modalities)]


@pytest.mark.parametrize("kind", HEADS)
@pytest.mark.parametrize("garbage", [0.0, -7.5, 3e38, float("inf"), float("nan")])
@settings(deadline=None, max_examples=10)
@given(mask=st.lists(st.lists(st.booleans(), min_size=3, max_size=3), min_size=BATCH, max_size=BATCH))
def test_a_missing_modality_has_no_influence(kind: type[nn.Module], garbage: float, mask: list[list[bool]]) -> None:
    """Whatever stands in a missing embedding, the output is the same bit for bit."""
    fusion, present = head(kind, 3), torch.tensor(mask).float()
    clean = embeddings(3)
    spoiled = [torch.where(present[:, index, None] > 0, tensor, garbage) for index, tensor in enumerate(clean)]
    assert torch.equal(fusion(*clean, present), fusion(*spoiled, present))


@pytest.mark.parametrize("kind", HEADS)
def test_a_present_modality_has_influence(kind: type[nn.Module]) -> None:
    """Each present embedding changes the output, so the mask is not read the wrong way round."""
    fusion, present = head(kind, 3), torch.ones(BATCH, 3)
    clean, other = embeddings(3), embeddings(3, seed=2)
    for index in range(3):
        changed = [*clean[:index], other[index], *clean[index + 1 :]]
        assert (fusion(*changed, present) != fusion(*clean, present)).any(dim=1).all()


@pytest.mark.parametrize("kind", HEADS)
def test_nothing_present_is_finite(kind: type[nn.Module]) -> None:
    """With every modality missing there is an answer, the same for each row, and no NaN."""
    logits = head(kind, 2)(*embeddings(2), torch.zeros(BATCH, 2))
    assert torch.isfinite(logits).all()
    assert torch.equal(logits, logits[:1].expand_as(logits))


@pytest.mark.parametrize("kind", HEADS)
def test_rows_do_not_mix(kind: type[nn.Module]) -> None:
    """A batch gives what its rows give one by one, each with its own mask."""
    fusion, tensors = head(kind, 2), embeddings(2)
    present = torch.tensor([[1.0, 1.0], [0.0, 1.0], [1.0, 0.0], [0.0, 0.0]])
    rows = [fusion(*(tensor[row : row + 1] for tensor in tensors), present[row : row + 1]) for row in range(BATCH)]
    torch.testing.assert_close(fusion(*tensors, present), torch.cat(rows), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", HEADS)
def test_gradients_are_finite_beside_garbage(kind: type[nn.Module]) -> None:
    """A NaN in a missing embedding does not reach the weights."""
    fusion = head(kind, 2)
    image, audio = embeddings(2)
    fusion(image, audio * float("nan"), torch.tensor([[1.0, 0.0]]).expand(BATCH, 2)).sum().backward()
    gradients = [weight.grad for weight in fusion.parameters() if weight.grad is not None]
    assert gradients
    assert all(torch.isfinite(gradient).all() for gradient in gradients)


def test_attention_agrees_with_torch() -> None:
    """Over what is present, the weighting is torch's own scaled dot-product attention."""
    fusion, tensors = head(AttentionFusion, 3), embeddings(3)
    assert isinstance(fusion, AttentionFusion)
    present = torch.tensor([[1.0, 1.0, 0.0]]).expand(BATCH, 3)
    keys = torch.stack([layer(tensor) for layer, tensor in zip(fusion.key[:2], tensors, strict=False)], 1)
    values = torch.stack([layer(tensor) for layer, tensor in zip(fusion.value[:2], tensors, strict=False)], 1)
    queries = fusion.query.expand(BATCH, -1, -1)
    expected = nn.functional.scaled_dot_product_attention(queries, keys, values).flatten(1)
    torch.testing.assert_close(fusion(*tensors, present), fusion.classify(expected), rtol=1e-4, atol=1e-5)


def test_gates_are_the_papers_for_two_modalities() -> None:
    """With two modalities the unit is z h1 + (1 - z) h2, z a sigmoid of both, as Arevalo et al. write it."""
    fusion, (image, audio) = head(GatedFusion, 2), embeddings(2)
    assert isinstance(fusion, GatedFusion)
    seen = torch.cat([image, torch.ones(BATCH, 1), audio, torch.ones(BATCH, 1)], dim=1)
    first, second = fusion.gate(seen).chunk(2, dim=1)
    z = torch.sigmoid(first - second)
    h1, h2 = (torch.tanh(layer(x)) for layer, x in zip(fusion.transform, (image, audio), strict=True))
    expected = fusion.classify(z * h1 + (1 - z) * h2)
    torch.testing.assert_close(fusion(image, audio, torch.ones(BATCH, 2)), expected, rtol=1e-5, atol=1e-6)


def test_a_gate_knows_missing_from_zero() -> None:
    """An embedding of zeros that was measured is not taken for one that is missing."""
    fusion, (image, audio) = head(GatedFusion, 2), embeddings(2)
    zeros, alone = torch.zeros_like(audio), torch.tensor([[1.0, 0.0]]).expand(BATCH, 2)
    assert not torch.allclose(fusion(image, zeros, torch.ones(BATCH, 2)), fusion(image, audio, alone))


def torch_layer(layer: nn.Module, hidden: int, attention_heads: int) -> nn.TransformerEncoderLayer:
    """torch's own layer with the weights of ours."""
    theirs = nn.TransformerEncoderLayer(
        hidden, attention_heads, 2 * hidden, dropout=0.0, batch_first=True, norm_first=True
    )
    ours = dict(layer.named_parameters())
    theirs.load_state_dict(
        {
            "self_attn.in_proj_weight": ours["attend.weight"],
            "self_attn.in_proj_bias": ours["attend.bias"],
            "self_attn.out_proj.weight": ours["join.weight"],
            "self_attn.out_proj.bias": ours["join.bias"],
            "linear1.weight": ours["think.0.weight"],
            "linear1.bias": ours["think.0.bias"],
            "linear2.weight": ours["think.2.weight"],
            "linear2.bias": ours["think.2.bias"],
        }
        | {key: ours[key] for key in ("norm1.weight", "norm1.bias", "norm2.weight", "norm2.bias")}
    )
    return theirs.eval()


@pytest.mark.parametrize("present", [[1.0, 1.0], [1.0, 0.0]])
def test_the_bottleneck_agrees_with_torchs_transformer(present: list[float]) -> None:
    """Layers of torch's own, run modality by modality with the bottleneck's mean between them, give the same."""
    torch.manual_seed(0)
    fusion = BottleneckFusion(modalities=2, dim=DIM, classes=CLASSES, hidden=8, tokens=(3, 1), bottlenecks=2).eval()
    sequence, embedding = torch.randn(BATCH, 3, DIM), torch.randn(BATCH, DIM)
    streams = [
        embed(tokens) + place
        for embed, place, tokens in zip(fusion.embed, fusion.place, (sequence, embedding[:, None]), strict=True)
    ]
    there = [index for index, value in enumerate(present) if value]
    shared = fusion.bottleneck.expand(BATCH, -1, -1)
    for layer in fusion.layers:
        joined = [torch_layer(layer.parts[i], 8, 4)(torch.cat([streams[i], shared], 1)) for i in there]
        shared = torch.stack([both[:, -2:] for both in joined]).mean(0)
        streams = [both[:, :-2] for both in joined] + streams[len(there) :]
    expected = torch.stack([fusion.classify[i](streams[i].mean(1)) for i in there]).mean(0)
    mask = torch.tensor([present]).expand(BATCH, 2)
    torch.testing.assert_close(fusion(sequence, embedding, mask), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("options", [{"layers": 1}, {"hidden": 10}, {"tokens": (1, 1, 1)}])
def test_a_bottleneck_that_cannot_work_is_refused(options: dict[str, Any]) -> None:
    """One layer would exchange nothing; the error shows all that was given."""
    with pytest.raises(InputError, match="a bottleneck needs 2 layers or more"):
        BottleneckFusion(modalities=2, dim=DIM, classes=CLASSES, **options)


@pytest.mark.parametrize("kind", HEADS)
def test_another_number_of_embeddings_is_refused(kind: type[nn.Module]) -> None:
    """The error says how many are joined and how many came."""
    with pytest.raises(InputError, match="joins 2 embeddings and a mask, got 3"):
        head(kind, 2)(*embeddings(3), torch.ones(BATCH, 2))


def test_the_composed_model_is_addressed_by_name() -> None:
    """A recipe's module path finds each part, and the heads get the embeddings in the encoders' order."""
    concat = head(ConcatFusion, 2)
    model = MultimodalModel({"image": nn.Identity(), "audio": nn.Identity()}, {"concat": concat})
    assert model.get_submodule("heads.concat") is concat
    image, audio = embeddings(2)
    present = torch.ones(BATCH, 2)
    assert torch.equal(model({"audio": audio, "image": image}, present)["concat"], concat(image, audio, present))
