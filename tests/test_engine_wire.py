"""Frames say what was said, and nothing that is no frame gets through."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from probes.engine.base import Prompt, Scores
from probes.engine.wire import (
    MAX_FRAME_BYTES,
    BatchReport,
    Report,
    WireError,
    decode_prompts,
    decode_report,
    decode_scores,
    encode_prompts,
    encode_report,
    encode_scores,
)

TOKEN_IDS = st.lists(st.integers(-(2**31), 2**31 - 1), max_size=5).map(tuple)


@settings(deadline=None)
@given(st.data(), st.integers(0, 3), st.integers(1, 4), st.floats(allow_nan=False))
def test_prompts_travel_whole(data: st.DataObject, passes: int, n: int, left_s: float) -> None:
    prompts = [
        Prompt(tuple(data.draw(TOKEN_IDS) for _ in range(passes)), data.draw(st.text(max_size=5))) for _ in range(n)
    ]
    expected = [Prompt(one.token_ids, one.text.encode("utf-8", "replace").decode()) for one in prompts]
    assert decode_prompts(encode_prompts(prompts, left_s)) == (expected, left_s)


@settings(deadline=None)
@given(st.binary(max_size=80))
def test_garbage_is_told_from_prompts_scores_and_reports(payload: bytes) -> None:
    for decode in (decode_prompts, decode_scores, decode_report):
        try:
            decode(payload)  # whatever it is, it is read or refused
        except WireError:
            continue


@settings(deadline=None)
@given(st.data())
def test_prompts_that_were_tampered_with_are_refused_or_read(data: st.DataObject) -> None:
    payload = bytearray(encode_prompts([Prompt(((1, 2, 3), (4,)), "ä"), Prompt(((5,), (6, 7)), "")], 1.0))
    payload[data.draw(st.integers(0, len(payload) - 1))] = data.draw(st.integers(0, 255))
    try:
        prompts, _ = decode_prompts(bytes(payload))
    except WireError:
        return
    assert len(encode_prompts(prompts, 1.0)) <= len(payload)


@pytest.mark.parametrize("cut", [0, 3, 15, 17, 39])
def test_a_cut_payload_is_refused(cut: int) -> None:
    with pytest.raises(WireError, match="prompts that cannot be read"):
        decode_prompts(encode_prompts([Prompt(((1, 2, 3),), "text")], 1.0)[:cut])


def test_prompts_without_a_deadline_that_is_one_are_refused() -> None:
    with pytest.raises(WireError, match="no deadline"):
        decode_prompts(encode_prompts([Prompt(((1,),))], np.nan))


def test_what_cannot_be_sent_is_named() -> None:
    with pytest.raises(ValueError, match=r"token ids must be whole numbers below 2\*\*31"):
        encode_prompts([Prompt(((2**31,),))], 1.0)
    with pytest.raises(ValueError, match="go to an engine at once"):
        encode_prompts([Prompt((), "a" * MAX_FRAME_BYTES)], 1.0)


def test_scores_travel_whole() -> None:
    scores = Scores(*np.random.default_rng(0).normal(size=(3, 4, 5)))
    scores.output_tokens[2, 1] = np.nan
    found = decode_scores(encode_scores(scores))
    np.testing.assert_array_equal(found.success, scores.success)
    np.testing.assert_array_equal(found.output_tokens, scores.output_tokens)
    np.testing.assert_array_equal(found.activation_percentile, scores.activation_percentile)


def test_reports_travel_whole() -> None:
    for batches in ((), (BatchReport(3, 100, 7, 60, 0.25), BatchReport(1, 2**40, 0, 0, 0.0))):
        report = Report(batches, (1, 2, 3))
        assert decode_report(encode_report(report)) == report
