"""Fusion heads do without what is missing."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from edge_mbm.errors import InputError
from edge_mbm.models import AttentionFusion, ConcatFusion, MultimodalModel, SumFusion

HEADS = (ConcatFusion, SumFusion, AttentionFusion)
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
