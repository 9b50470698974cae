"""What the language model is shown: structure, cuts, and who sees whom."""

import numpy as np
import pyarrow as pa
import pytest
import torch
from tiny_models import tiny_tokenizer

from model.config import PromptConfig
from model.errors import InvalidInputError
from model.prompt import CF, REC, VISUAL, PromptBuilder, Segments, Tail, build_segments, pad


def items(*titles: str) -> pa.Table:
    columns = {"title": list(titles), "brand": ["Arbor"] * len(titles), "category": [None] * len(titles)}
    return pa.table({**columns, "description": ["Long. " * 40] * len(titles)})


@pytest.fixture
def tokenizer():
    return tiny_tokenizer()


def segments_of(tokenizer, fields=("title", "image"), **config) -> Segments:
    return build_segments(tokenizer, items("Red lamp", "Blue chair", "Mug"), PromptConfig(fields=fields, **config))


def builder_of(tokenizer, **config) -> PromptBuilder:
    return PromptBuilder(tokenizer, PromptConfig(**config))


def test_every_segment_holds_exactly_one_image_token(tokenizer):
    segments = segments_of(tokenizer)
    assert [(segments.of(row) == VISUAL).sum() for row in range(3)] == [1, 1, 1]


def test_a_segment_shows_what_the_configuration_names_in_that_order(tokenizer):
    segment = segments_of(tokenizer, fields=("cf", "title", "image", "brand")).of(0)
    places = np.flatnonzero(segment < 0)
    assert segment[places].tolist() == [CF, VISUAL]
    text = tokenizer.decode(segment[segment >= 0])
    assert text.index("Red lamp") < text.index("Arbor")


def test_titles_are_cut_at_the_stated_number_of_tokens(tokenizer):
    short = segments_of(tokenizer, max_title_tokens=2).of(0)
    long = segments_of(tokenizer, max_title_tokens=16).of(0)
    title = tokenizer(" Red lamp", add_special_tokens=False).input_ids
    assert len(long) - len(short) == len(title) - 2


def test_a_summary_is_the_sentence_that_says_most(tokenizer):
    described = items("Mug").set_column(
        3, "description", [["Made in Wales. A blue mug of clay. A mug of blue clay, large."]]
    )
    config = PromptConfig(fields=("summary",), max_summary_characters=24)
    assert tokenizer.decode(build_segments(tokenizer, described, config).of(0)) == "About: A blue mug of clay.\n"


def test_a_missing_field_leaves_no_label_behind(tokenizer):
    segment = segments_of(tokenizer, fields=("title", "category", "image")).of(0)
    assert "Category" not in tokenizer.decode(segment[segment >= 0])


def test_rec_is_the_last_token_of_a_prompt_and_is_found_in_a_padded_batch(tokenizer):
    segments, builder = segments_of(tokenizer), builder_of(tokenizer)
    prompts = [builder.recommend(np.array(rows), segments) for rows in ([0], [0, 1, 2], [2, 2])]
    rows, columns = pad(prompts, torch.device("cpu")).rec_positions
    assert rows.tolist() == [0, 1, 2]
    assert columns.tolist() == [len(prompt) - 1 for prompt in prompts]
    assert len({len(prompt) for prompt in prompts}) == 3  # so that the last column is not right for all


def test_a_token_limit_that_no_history_fits_is_refused(tokenizer):
    segments = segments_of(tokenizer)
    longest = max(range(3), key=lambda row: len(segments.of(row)))
    needed = len(builder_of(tokenizer).recommend(np.array([longest]), segments))
    builder_of(tokenizer, max_tokens=needed).check_room(segments)
    with pytest.raises(InvalidInputError, match=f"prompt.max_tokens is {needed - 1}"):
        builder_of(tokenizer, max_tokens=needed - 1).check_room(segments)


def test_the_oldest_items_are_dropped_whole(tokenizer):
    segments = segments_of(tokenizer)
    builder = builder_of(tokenizer, max_history=2)
    assert builder.keep_newest(np.array([0, 1, 2]), segments).tolist() == [1, 2]


def test_the_token_limit_drops_items_and_never_the_instruction(tokenizer):
    segments = segments_of(tokenizer)
    free = builder_of(tokenizer, max_tokens=1000)
    whole = len(free.recommend(np.array([0, 1, 2]), segments))
    tight = builder_of(tokenizer, max_tokens=whole - 1)
    kept = tight.keep_newest(np.array([0, 1, 2]), segments)
    assert kept.tolist() == [1, 2]
    assert tight.recommend(kept, segments).token[-len(tight.instruction) :].tolist() == tight.instruction.tolist()
    assert builder_of(tokenizer, max_tokens=whole).keep_newest(np.array([0, 1, 2]), segments).tolist() == [0, 1, 2]


def test_a_tail_sees_its_prefix_and_itself_only(tokenizer):
    segments, builder = segments_of(tokenizer), builder_of(tokenizer)
    tails = [Tail(np.array([5, 6, REC]), 1), Tail(np.array([7, REC]), 2)]
    prompt = builder.build(np.array([0, 1]), segments, tails)
    mask = pad([prompt], torch.device("cpu")).mask_BTT[0]
    num_trunk = int((prompt.branch == -1).sum())
    end_of_first = num_trunk - len(segments.of(1))
    first = mask[num_trunk + 2]
    assert first.nonzero().flatten().tolist() == [*range(end_of_first), num_trunk, num_trunk + 1, num_trunk + 2]
    assert prompt.position[num_trunk : num_trunk + 3].tolist() == [end_of_first, end_of_first + 1, end_of_first + 2]
    assert not mask[:num_trunk, num_trunk:].any()


def test_placeholders_know_their_item(tokenizer):
    prompt = builder_of(tokenizer).recommend(np.array([2, 0]), segments_of(tokenizer))
    assert prompt.item[prompt.token == VISUAL].tolist() == [2, 0]
    assert (prompt.item[prompt.token != VISUAL] == -1).all()


@pytest.mark.parametrize(
    ("length", "window"), [(1, (0, 1)), (12, (0, 12)), (13, (5, 13)), (17, (5, 17)), (18, (10, 18)), (22, (10, 22))]
)
def test_a_window_that_slides_in_strides_stays_where_it_is_for_a_stride(tokenizer, length, window):
    segments = segments_of(tokenizer)
    history = np.arange(length) % 3
    builder = builder_of(tokenizer, max_history=12, history_stride=5)
    assert len(builder.keep_newest(history, segments)) == window[1] - window[0]


def test_a_stride_never_drops_the_newest_item(tokenizer):
    segments = segments_of(tokenizer)
    longest = int(segments.lengths(np.arange(3)).max())
    builder = builder_of(tokenizer, max_history=12, history_stride=11)
    room = len(builder.prefix) + len(builder.instruction) + longest
    short = builder_of(tokenizer, max_history=12, history_stride=11, max_tokens=max(32, room))
    assert short.keep_newest(np.array([0, 1, 2]), segments)[-1] == 2


def test_a_stride_as_long_as_the_window_is_refused():
    with pytest.raises(ValueError, match="history_stride"):
        PromptConfig(max_history=5, history_stride=5)
