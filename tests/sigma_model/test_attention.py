"""Who sees whom: one rule, against the formula written a second way; every backend computes just that."""

from __future__ import annotations

import importlib.machinery
import sys
import types
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.sequences import SPECIALS, Case, case, cases, generator, one_thread, pack, sequence_order  # noqa: F401
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask

from sigma_data.errors import ConfigError
from sigma_data.loading.batch import Item, PackedBatch, Widths
from sigma_data.loading.collate import collate
from sigma_data.sample import Turn
from sigma_data.sequence.layout import Kind, Segment
from sigma_model import attention
from sigma_model.attention import (
    Attention,
    Backend,
    FullAttention,
    attention_for,
    flash_available,
    spans_of,
)
from sigma_model.attention_mask import block_mask, block_tables, dense_mask

pytestmark = pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")

some_packs = settings(max_examples=20, deadline=None)
packs = st.lists(cases(max_turns=2, max_references=2), min_size=1, max_size=3)
plain_packs = st.lists(cases(attributes=False, max_turns=2, max_references=2), min_size=1, max_size=3)

EDITING = [
    case(
        Turn("<style> a <image_2> <pose> b <image_1> <id> c", target=3, bindings=((2, 2),)),
        Turn("<subject> red <image_3> <icon>", response="a red cat"),
        Turn("next to <style> <image_1>", target=4),
        pictures=4,
    ),
    case("paint a cat", pictures=1),
    case("<image_1> <image_3> <image_2> <style> red", pictures=4),
]


@dataclass(frozen=True)
class Token:
    """What the rules speak of, for one token of a sequence."""

    sample: int
    segment: int
    place: int
    kind: Kind
    attribute: bool
    group: int


def tokens(packed: list[Case]) -> list[Token]:
    """Read off the layouts: in the order of the sequences, not of the batch."""
    found = []
    for sample, one in enumerate(packed):
        place = 0
        for number, segment in enumerate(one.layout()):
            bound = dict(segment.bound)
            for index in range(segment.length):
                attribute = not segment.kind.image and index - 1 in bound
                group = bound[index - 1] if attribute else segment.group
                found.append(Token(sample, number, place, segment.kind, attribute, group))
                place += 1
    return found


def oracle(packed: list[Case], *, group_mask: bool) -> Tensor:
    """The rules of SIGMA's paper, section 3, and BAGEL's, pair by pair: allowed = (C and M) or S."""
    every = tokens(packed)
    allowed = torch.zeros(len(every), len(every), dtype=torch.bool)
    for row, q in enumerate(every):
        for column, k in enumerate(every):
            if q.sample != k.sample:
                continue  # samples never see one another
            same = q.segment == k.segment
            if same and q.kind.image:
                s, c = True, True  # inside one picture
            elif k.kind is Kind.TARGET and not same:
                s, c = False, False  # a noised target is seen by nobody else
            else:
                s, c = False, k.place <= q.place
            of_reference = k.kind in (Kind.LATENT, Kind.PATCH)
            m = not (group_mask and q.attribute and of_reference and q.group != k.group)
            allowed[row, column] = (c and m) or s
    return allowed


def bagel(packed: list[Case]) -> Tensor:
    """BAGEL's mask alone, segment by segment: causal or full, and what comes before but for noise."""
    masks = []
    for one in packed:
        segments = one.layout()
        total = sum(segment.length for segment in segments)
        mask = torch.zeros(total, total, dtype=torch.bool)
        start = 0
        for segment in segments:
            end = start + segment.length
            mask[start:end, :start] = True
            square = torch.ones(segment.length, segment.length, dtype=torch.bool)
            mask[start:end, start:end] = square if segment.kind.image else square.tril()
            start = end
        start = 0
        for segment in segments:
            if segment.kind is Kind.TARGET:
                mask[start + segment.length :, start : start + segment.length] = False
            start += segment.length
        masks.append(mask)
    return torch.block_diag(*(mask.int() for mask in masks)).bool()


def in_sequence(mask: Tensor, batch: PackedBatch) -> Tensor:
    order = sequence_order(batch)
    return mask[order][:, order]


def from_block_mask(batch: PackedBatch, block: int, *, group_mask: bool) -> Tensor:
    """The dense mask that flex attention computes under: full blocks whole, partial ones by the mask function."""
    mask = block_mask(batch.runs, batch.tags, group_mask=group_mask, block=block)
    dense = torch.zeros(batch.tokens, batch.tokens, dtype=torch.bool)
    nothing = torch.tensor(0)
    kinds = (
        (mask.kv_num_blocks, mask.kv_indices, False),
        (mask.full_kv_num_blocks, mask.full_kv_indices, True),
    )
    for counts, indices, full in kinds:
        assert counts is not None and indices is not None
        for row, count in enumerate(counts[0, 0].tolist()):
            listed = indices[0, 0, row, :count].tolist()
            assert listed == sorted(set(listed))
            for column in listed:
                q = torch.arange(row * block, min((row + 1) * block, batch.tokens))
                k = torch.arange(column * block, min((column + 1) * block, batch.tokens))
                assert not dense[q[:, None], k].any(), "a block is listed once"
                part = mask.mask_mod(nothing, nothing, q[:, None], k[None, :])
                dense[q[:, None], k] = torch.ones_like(part) if full else part
    return dense


def by_blocks(mask: Tensor, block: int) -> tuple[Tensor, Tensor]:
    """(any, all) of a dense mask's blocks; what pads the last block does not count."""
    blocks = [slice(start, start + block) for start in range(0, len(mask), block)]
    some = torch.tensor([[bool(mask[q, k].any()) for k in blocks] for q in blocks])
    all_ = torch.tensor([[bool(mask[q, k].all()) for k in blocks] for q in blocks])
    return some, all_


def softmax_attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
    """[n, H, Dh], [m, K, Dh], [m, K, Dh] under [n, m], in float64, head by head."""
    out = torch.zeros(q.shape, dtype=torch.float64)
    share = q.shape[1] // k.shape[1]  # neighbouring query heads share a key head
    for head in range(q.shape[1]):
        keys, values = k[:, head // share].double(), v[:, head // share].double()
        scores = q[:, head].double() @ keys.T / q.shape[2] ** 0.5
        out[:, head] = scores.masked_fill(~mask, -torch.inf).softmax(-1) @ values
    return out.to(q.dtype)


def projections(count: int, keys: int | None = None, *, dtype: torch.dtype = torch.float32) -> tuple[Tensor, ...]:
    """Random q, k, v with 4 query and 2 key heads of width 8."""
    shapes = ((count, 4, 8), (keys or count, 2, 8), (keys or count, 2, 8))
    return tuple(torch.randn(s, generator=generator("qkv", i, s)).to(dtype) for i, s in enumerate(shapes))


# The rule -------------------------------------------------------------------------------------------


@pytest.mark.slow
@some_packs
@given(packs, st.booleans())
def test_the_dense_mask_is_the_formula(packed: list[Case], group_mask: bool) -> None:
    batch = pack(packed)
    found = in_sequence(dense_mask(batch.tags, group_mask=group_mask), batch)
    assert torch.equal(found, oracle(packed, group_mask=group_mask))


@pytest.mark.parametrize("group_mask", [True, False])
def test_the_dense_mask_is_the_formula_for_several_edited_references(group_mask: bool) -> None:
    batch = pack(EDITING)
    found = in_sequence(dense_mask(batch.tags, group_mask=group_mask), batch)
    assert torch.equal(found, oracle(EDITING, group_mask=group_mask))


@some_packs
@given(plain_packs)
def test_without_attribute_tokens_the_mask_is_bagel_s(packed: list[Case]) -> None:
    batch = pack(packed)
    found = in_sequence(dense_mask(batch.tags, group_mask=True), batch)
    assert torch.equal(found, bagel(packed))


@some_packs
@given(packs)
def test_without_the_group_mask_attribute_tokens_are_ordinary_text(packed: list[Case]) -> None:
    batch = pack(packed)
    found = in_sequence(dense_mask(batch.tags, group_mask=False), batch)
    assert torch.equal(found, bagel(packed))


def test_the_group_mask_hides_other_references_from_an_attribute_token_and_nothing_else() -> None:
    one = case("<image_1> <image_2> a <style> red <image_3>", pictures=4)  # style belongs to 3
    bound = case(
        Turn("<image_1> <image_2> a <style> red <image_3>", target=4, bindings=((0, 2),)), pictures=4
    )  # and now to 2
    for packed, hidden in ((one, {1, 2}), (bound, {1})):
        batch = pack([packed])
        on, off = (in_sequence(dense_mask(batch.tags, group_mask=flag), batch) for flag in (True, False))
        every = tokens([packed])
        changed = {(q, k) for q, k in (on != off).nonzero().tolist()}
        rows = [index for index, token in enumerate(every) if token.attribute]
        columns = [index for index, token in enumerate(every) if token.group in hidden and token.kind is not Kind.TEXT]
        assert len(rows) == 1 and changed == {(rows[0], column) for column in columns}


@pytest.mark.slow
@some_packs
@given(st.lists(cases(max_turns=2, max_references=2), min_size=2, max_size=3), st.booleans())
def test_samples_never_see_one_another(packed: list[Case], group_mask: bool) -> None:
    batch = pack(packed)
    mask = dense_mask(batch.tags, group_mask=group_mask)
    across = batch.tags.sample[:, None] != batch.tags.sample[None, :]
    assert not mask[across].any()
    alone = [in_sequence(dense_mask(one.tags, group_mask=group_mask), one) for one in (pack([c]) for c in packed)]
    assert torch.equal(in_sequence(mask, batch), torch.block_diag(*(m.int() for m in alone)).bool())


# Blocks ---------------------------------------------------------------------------------------------


@pytest.mark.slow
@some_packs
@given(packs, st.booleans(), st.sampled_from([1, 3, 4, 16, 128]))
def test_block_tables_are_the_dense_mask_by_blocks(packed: list[Case], group_mask: bool, block: int) -> None:
    batch = pack(packed)
    some, all_ = block_tables(batch.runs, batch.tokens, group_mask=group_mask, block=block)
    expected = by_blocks(dense_mask(batch.tags, group_mask=group_mask), block)
    assert np.array_equal(some, expected[0].numpy())
    assert np.array_equal(all_, expected[1].numpy())


@pytest.mark.slow
@some_packs
@given(packs, st.booleans(), st.sampled_from([4, 16, 128]))
def test_the_block_mask_is_the_dense_mask(packed: list[Case], group_mask: bool, block: int) -> None:
    batch = pack(packed)
    dense = dense_mask(batch.tags, group_mask=group_mask)
    assert torch.equal(from_block_mask(batch, block, group_mask=group_mask), dense)
    listed = block_mask(batch.runs, batch.tags, group_mask=group_mask, block=block).to_dense()
    assert torch.equal(listed[0, 0].bool(), by_blocks(dense, block)[0])


def large_batch() -> PackedBatch:
    """Pictures of several blocks of 128 tokens, and texts across the borders of blocks; no content."""
    segments = [
        Segment(Kind.TEXT, 9, 0, ids=(20,) * 7, bound=((0, 1), (3, 2))),
        Segment(Kind.LATENT, 202, 0, image=1, grid=(20, 10)),
        Segment(Kind.PATCH, 302, 0, image=1, grid=(20, 15)),
        Segment(Kind.TEXT, 152, 0, ids=(20,) * 150, bound=((1, 2), (70, 1), (149, 2))),
        Segment(Kind.LATENT, 52, 0, image=2, grid=(1, 50)),
        Segment(Kind.TARGET, 172, 0, image=3, grid=(17, 10)),
        Segment(Kind.ANSWER, 12, 0, ids=(20,) * 10),
        Segment(Kind.LATENT, 172, 0, image=3, grid=(17, 10)),
    ]
    latents = {1: torch.zeros(1, 20, 10), 2: torch.zeros(1, 1, 50), 3: torch.zeros(1, 17, 10)}
    shown = {"latents": latents, "patches": {1: torch.zeros(300, 1)}, "noise": {3: torch.zeros(170, 1)}, "u": {3: 0.0}}
    items = [Item(chosen, **shown) for chosen in (segments, segments[:2], segments[3:6])]
    return collate(items, SPECIALS, Widths(latent=1, patch=1, latent_grid=200, patch_grid=200))


@pytest.mark.slow
@pytest.mark.parametrize("group_mask", [True, False])
@pytest.mark.parametrize("block", [16, 100, 128])
def test_the_block_mask_is_the_dense_mask_where_blocks_are_full_empty_and_partial(block: int, group_mask: bool) -> None:
    batch = large_batch()
    dense = dense_mask(batch.tags, group_mask=group_mask)
    some, all_ = block_tables(batch.runs, batch.tokens, group_mask=group_mask, block=block)
    expected = by_blocks(dense, block)
    assert np.array_equal(some, expected[0].numpy()) and np.array_equal(all_, expected[1].numpy())
    assert all_.sum() >= 4 and (some & ~all_).sum() >= 4 and (~some).sum() >= 4
    assert torch.equal(from_block_mask(batch, block, group_mask=group_mask), dense)


def test_the_order_in_which_runs_are_listed_does_not_matter() -> None:
    batch = pack(EDITING)
    forward = block_tables(batch.runs, batch.tokens, group_mask=True, block=16)
    backward = block_tables(batch.runs[::-1], batch.tokens, group_mask=True, block=16)
    assert all(np.array_equal(one, other) for one, other in zip(forward, backward, strict=True))


# Backends -------------------------------------------------------------------------------------------


def attend_all(attend: Attention, packed: PackedBatch) -> tuple[Tensor, tuple[Tensor, ...]]:
    parts = projections(packed.tokens)
    return attend(*parts), parts


@some_packs
@given(packs, st.booleans())
def test_sdpa_is_softmax_attention_under_the_dense_mask(packed: list[Case], group_mask: bool) -> None:
    batch = pack(packed)
    found, (q, k, v) = attend_all(attention_for(batch, group_mask=group_mask, backend=Backend.SDPA), batch)
    expected = softmax_attention(q, k, v, dense_mask(batch.tags, group_mask=group_mask))
    torch.testing.assert_close(found, expected, atol=2e-6, rtol=2e-5)


@pytest.mark.slow
@settings(max_examples=5, deadline=None)
@given(packs, st.booleans())
def test_flex_is_softmax_attention_under_the_dense_mask(packed: list[Case], group_mask: bool) -> None:
    batch = pack(packed)
    with torch.no_grad():
        found, (q, k, v) = attend_all(attention_for(batch, group_mask=group_mask, backend=Backend.FLEX), batch)
    expected = softmax_attention(q, k, v, dense_mask(batch.tags, group_mask=group_mask))
    torch.testing.assert_close(found, expected, atol=2e-6, rtol=2e-5)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("backend", [Backend.SDPA, Backend.FLEX])
@pytest.mark.parametrize("large", [False, True])
def test_what_an_attribute_token_does_not_see_does_not_move_it_by_a_bit(
    backend: Backend, dtype: torch.dtype, large: bool
) -> None:
    batch = large_batch() if large else pack(EDITING)
    mask = dense_mask(batch.tags, group_mask=True)
    q, k, v = projections(batch.tokens, dtype=dtype)
    with torch.no_grad():
        attend = attention_for(batch, group_mask=True, backend=backend)
        before = attend(q, k, v)
        for row in batch.tags.attribute.nonzero().flatten().tolist()[-3:]:
            hidden = ~mask[row][:, None, None]
            after = attend(q, torch.where(hidden, 100 * k.flip(0), k), torch.where(hidden, 100 * v.flip(0), v))
            assert torch.equal(before[row], after[row])
            assert not torch.equal(before, after)


def test_automatic_choice_on_a_cpu_can_be_trained_through() -> None:
    batch = pack(EDITING)
    q, k, v = (part.requires_grad_() for part in projections(batch.tokens))
    attention_for(batch, group_mask=True)(q, k, v).sum().backward()
    assert all(part.grad is not None and part.grad.isfinite().all() for part in (q, k, v))


def test_flash_leaves_what_needs_a_mask_to_another_and_says_where_it_cannot_serve() -> None:
    batch = pack(EDITING[1:2])
    q, k, v = projections(batch.tokens)
    masked = [attention_for(batch, group_mask=False, backend=b)(q, k, v) for b in (Backend.FLASH, Backend.SDPA)]
    assert torch.equal(*masked)
    with pytest.raises(ConfigError, match="needs a GPU.*attention=auto"):
        FullAttention([4], [(0, 4)], device="cpu", backend=Backend.FLASH)


def test_flex_is_refused_where_it_has_no_backward_pass() -> None:
    with pytest.raises(ConfigError, match="no backward pass on a CPU: use attention=sdpa"):
        attention_for(pack(EDITING[1:2]), group_mask=False, backend=Backend.FLEX)


@torch.no_grad()
@pytest.mark.parametrize("backend", [Backend.SDPA, Backend.FLEX])
def test_a_batch_of_no_tokens_is_attended_to(backend: Backend) -> None:
    empty = pack([])
    assert attention_for(empty, group_mask=True, backend=backend)(*projections(0)).shape[0] == 0


@pytest.mark.parametrize("backend", [Backend.SDPA, Backend.FLEX])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_backend_keeps_shape_and_type(backend: Backend, dtype: torch.dtype) -> None:
    batch = pack(EDITING)
    q, k, v = projections(batch.tokens, dtype=dtype)
    with torch.no_grad():
        found = attention_for(batch, group_mask=True, backend=backend)(q, k, v)
    expected = softmax_attention(q, k, v, dense_mask(batch.tags, group_mask=True))
    assert found.shape == q.shape and found.dtype == dtype
    torch.testing.assert_close(found, expected, atol=2e-2 if dtype is torch.bfloat16 else 2e-6, rtol=2e-2)


# Without a mask -------------------------------------------------------------------------------------

LENGTHS = [
    pytest.param([5], [(0, 5)], id="one"),
    pytest.param([3, 1, 4], [(0, 3), (3, 4), (4, 8)], id="side by side"),
    pytest.param([2, 3, 1], [(0, 6), (6, 15), (15, 16)], id="more keys than queries"),
    pytest.param([2, 3, 2], [(1, 6), (9, 12), (20, 27)], id="gaps between the keys"),
]


@pytest.mark.parametrize(("lengths", "spans"), LENGTHS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_full_attention_is_softmax_attention_sequence_by_sequence(
    lengths: list[int], spans: list[tuple[int, int]], dtype: torch.dtype
) -> None:
    q, k, v = projections(sum(lengths), 30, dtype=dtype)
    mask = torch.zeros(sum(lengths), 30, dtype=torch.bool)
    for (start, end), (first, last) in zip(spans_of(lengths), spans, strict=True):
        mask[start:end, first:last] = True
    found = FullAttention(lengths, spans, device="cpu")(q, k, v)
    bound = 2e-2 if dtype is torch.bfloat16 else 2e-6
    torch.testing.assert_close(found, softmax_attention(q, k, v, mask), atol=bound, rtol=bound)


def test_spans_lie_one_behind_another() -> None:
    assert spans_of([3, 1, 4]) == [(0, 3), (3, 4), (4, 8)]
    assert spans_of([]) == []


@pytest.fixture
def flash_calls(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[dict[str, Any]]]:
    """A stand-in for flash-attn that computes what the real one documents; tensors for "cuda" stay here."""
    calls: list[dict[str, Any]] = []

    def flash_attn_varlen_func(
        q: Tensor, k: Tensor, v: Tensor, cu_q: Tensor, cu_k: Tensor, max_q: int, max_k: int, causal: bool = False
    ) -> Tensor:
        calls.append({"k": k, "v": v, "cu_q": cu_q, "cu_k": cu_k, "max_q": max_q, "max_k": max_k, "causal": causal})
        out = torch.empty_like(q)
        for a, b, c, d in zip(cu_q[:-1], cu_q[1:], cu_k[:-1], cu_k[1:], strict=True):
            out[a:b] = softmax_attention(q[a:b], k[c:d], v[c:d], torch.ones(int(b - a), int(d - c), dtype=torch.bool))
        return out

    module = types.ModuleType("flash_attn")
    module.__spec__ = importlib.machinery.ModuleSpec("flash_attn", None)
    vars(module)["flash_attn_varlen_func"] = flash_attn_varlen_func
    monkeypatch.setitem(sys.modules, "flash_attn", module)
    real = torch.tensor

    def tensor(*values: Any, device: Any = None, **options: Any) -> Tensor:
        return real(*values, **options)

    monkeypatch.setattr(attention.torch, "tensor", tensor)
    flash_available.cache_clear()
    yield calls
    flash_available.cache_clear()


@pytest.mark.parametrize(("lengths", "spans"), LENGTHS)
def test_flash_attention_gets_the_sequences_packed_and_gives_the_same(
    flash_calls: list[dict[str, Any]], lengths: list[int], spans: list[tuple[int, int]]
) -> None:
    q, k, v = projections(sum(lengths), 30, dtype=torch.bfloat16)
    found = FullAttention(lengths, spans, device="cuda")(q, k, v)
    torch.testing.assert_close(found, FullAttention(lengths, spans, device="cpu")(q, k, v), atol=2e-2, rtol=2e-2)
    (call,) = flash_calls
    k_lengths = [last - first for first, last in spans]
    assert call["cu_q"].tolist() == [0, *np.cumsum(lengths)] and call["cu_q"].dtype == torch.int32
    assert call["cu_k"].tolist() == [0, *np.cumsum(k_lengths)] and call["cu_k"].dtype == torch.int32
    assert (call["max_q"], call["max_k"], call["causal"]) == (max(lengths), max(k_lengths), False)
    for packed, whole in ((call["k"], k), (call["v"], v)):
        assert torch.equal(packed, torch.cat([whole[first:last] for first, last in spans]))


def test_flash_attention_is_for_half_precision_on_a_gpu_only(flash_calls: list[dict[str, Any]]) -> None:
    single, half = projections(4), projections(4, dtype=torch.bfloat16)
    FullAttention([4], [(0, 4)], device="cuda")(*single)
    FullAttention([4], [(0, 4)], device="cpu")(*half)
    assert not flash_calls
    FullAttention([4], [(0, 4)], device="cuda", backend=Backend.SDPA)(*half)
    assert not flash_calls
    FullAttention([4], [(0, 4)], device="cuda")(*half)
    assert len(flash_calls) == 1
    FullAttention([4], [(0, 4)], device="cuda", backend=Backend.FLASH)(*half)
    assert len(flash_calls) == 2


@pytest.mark.parametrize("block", [16, 128])
def test_the_lists_of_the_block_mask_are_those_that_torch_makes_of_its_rows(block: int) -> None:
    batch = large_batch()
    ours = block_mask(batch.runs, batch.tags, group_mask=True, block=block)
    theirs = BlockMask.from_kv_blocks(
        ours.kv_num_blocks, ours.kv_indices, ours.full_kv_num_blocks, ours.full_kv_indices,
        BLOCK_SIZE=block, mask_mod=ours.mask_mod, seq_lengths=ours.seq_lengths,
    )  # fmt: skip
    for name in ("q_num_blocks", "q_indices", "full_q_num_blocks", "full_q_indices"):
        assert torch.equal(getattr(ours, name), getattr(theirs, name)), name
