"""One pass equals two, equals plain forwards; gradients go where they should; a resumed run equals a whole one."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from small_runs import SmallRun

from model.heads import gather
from model.prompt import INSTRUCTION, PREFIX, REC, VISUAL, Tail, pad
from offline.metrics import rank_of_target
from offline.onepass import train_steps
from offline.risa import risa_loss
from offline.states import cached_examples, many_tails
from offline.windows import WindowSampler, state_windows


@pytest.fixture
def small(tmp_path):
    return SmallRun(tmp_path)


def windows_of(small, num=4, step=0):
    sampler = WindowSampler(small.dataset, small.config.prompt.max_history, seed=0)
    return sampler.draw(num, sampler.generator(step))


def plain_embeddings(small, history, tail_tokens):
    """Embeddings of one prompt, put together token by token without any of the prompt code's batching."""
    language_model, heads = small.language_model, small.heads
    tokenizer = language_model.tokenizer
    tokens = tokenizer(PREFIX).input_ids
    rows = [None] * len(tokens)
    for row in history:
        segment = small.encoder.segments.of(row).tolist()
        tokens += segment
        rows += [row] * len(segment)
    tokens += list(tail_tokens)
    rows += [None] * len(tail_tokens)
    words = language_model.decoder.get_input_embeddings()
    out = []
    for token, row in zip(tokens, rows, strict=True):
        if token == VISUAL:
            out.append(heads.image_tokens(*gather(small.features, np.array([row]), torch.device("cpu")))[0])
        elif token == REC:
            out.append(heads.rec)
        else:
            out.append(words(torch.tensor(token)))
    return torch.stack(out)[None]


@torch.no_grad()
def test_every_state_at_rec_equals_a_plain_unpadded_forward_of_one_prompt(small):
    windows = windows_of(small)
    states = small.encoder.encode_states([many_tails(small.encoder, window.history) for window in windows])
    ids = small.language_model.tokenizer(INSTRUCTION, add_special_tokens=False).input_ids
    expected = []
    for window in windows:
        for length in range(1, len(window.history) + 1):
            embeddings = plain_embeddings(small, window.history[:length], [*ids, REC])
            expected.append(small.language_model.decoder.model(inputs_embeds=embeddings).last_hidden_state[0, -1])
    np.testing.assert_allclose(states, torch.stack(expected).numpy(), atol=1e-5)


@torch.no_grad()
def test_the_risa_loss_equals_hugging_faces_own_on_answer_labels(small):
    windows = windows_of(small)
    generator = np.random.default_rng(1)
    batch = small.one_pass.batch(windows, generator)
    losses = small.one_pass(batch)
    generator = np.random.default_rng(1)
    total, count = 0.0, 0
    for window in windows:
        tail = small.one_pass._risa.draw(int(window.targets[-1]), len(window.history), generator)
        embeddings = plain_embeddings(small, window.history, tail.tokens)
        labels = torch.full(embeddings.shape[:2], -100)
        labels[0, -tail.num_answer :] = torch.from_numpy(tail.tokens[-tail.num_answer :]).long()
        loss = small.language_model.decoder(inputs_embeds=embeddings, labels=labels).loss
        total, count = total + float(loss) * tail.num_answer, count + tail.num_answer
    assert float(losses["risa"]) == pytest.approx(total / count, abs=1e-5)


@pytest.mark.parametrize("loss", ["bce", "softmax_per_signal", "softmax_sum"])
@torch.no_grad()
def test_one_pass_losses_equal_those_of_two_passes(tmp_path, loss):
    together = SmallRun(tmp_path, loss=loss)
    risa_only = SmallRun(tmp_path, loss=loss, reri_weight=0.0)
    reri_only = SmallRun(tmp_path, loss=loss, risa_weight=0.0)
    for other in (risa_only, reri_only):
        other.heads.load_state_dict(together.heads.state_dict())
    windows = windows_of(together)

    def losses(small, seed):
        return small.one_pass(small.one_pass.batch(windows, np.random.default_rng(seed)))

    one = losses(together, 5)
    risa = losses(risa_only, 5)
    generator = np.random.default_rng(5)  # the RISA draws come first in one pass: let the second pass skip them
    for window in windows:
        together.one_pass._risa.draw(int(window.targets[-1]), len(window.history), generator)
    reri = reri_only.one_pass(reri_only.one_pass.batch(windows, generator))
    assert float(one["loss"]) == pytest.approx(float(risa["loss"] + reri["loss"]), abs=1e-5)
    assert float(one["risa"]) == pytest.approx(float(risa["risa"]), abs=1e-5)


@torch.no_grad()
def test_prompts_of_different_lengths_give_the_losses_that_they_give_alone(small):
    windows = windows_of(small, num=8)
    losses = []
    for max_tokens in (1, 10_000):
        batch = small.one_pass.batch(windows, np.random.default_rng(5), max_tokens)
        losses.append((len(batch.groups), small.one_pass(batch)))
    (alone, one_by_one), (together, all_at_once) = losses
    assert (alone, together) == (8, 1)
    for name, loss in one_by_one.items():
        assert float(loss) == pytest.approx(float(all_at_once[name]), abs=1e-5)


def test_gradients_reach_adaptor_projectors_and_rec_and_nothing_else(small):
    small.one_pass(small.one_pass.batch(windows_of(small, num=8), np.random.default_rng(0)))["loss"].backward()
    got = {name.split(".")[0] for name, p in small.heads.named_parameters() if p.grad is not None and p.grad.any()}
    assert {"adaptor", "rec", "user_projectors", "item_projectors"} <= got
    assert got <= {"adaptor", "rec", "user_projectors", "item_projectors", "stand_ins"}
    assert all(p.grad is None and not p.requires_grad for p in small.language_model.decoder.parameters())


@pytest.mark.parametrize("weights", [{"reri_weight": 0.0}, {"risa_weight": 0.0}])
def test_each_loss_alone_reaches_the_adaptor(tmp_path, weights):
    small = SmallRun(tmp_path, **weights)
    small.one_pass(small.one_pass.batch(windows_of(small), np.random.default_rng(0)))["loss"].backward()
    assert small.heads.adaptor[0].weight.grad.abs().sum() > 0


def test_only_answer_tokens_are_taught(small):
    """The gradient of the loss at the logits is zero wherever the next token is not part of an answer."""
    batch = small.one_pass.batch(windows_of(small), np.random.default_rng(0)).groups[0]
    states = small.encoder.states(batch).detach().requires_grad_()
    risa_loss(small.language_model, states, batch).backward()
    taught = states.grad.abs().sum(-1) > 0
    expected = torch.zeros_like(taught)
    expected[:, :-1] = batch.answer_BT[:, 1:]
    assert torch.equal(taught, expected)
    assert 0 < int(expected.sum()) < int((batch.token_BT != 0).sum())


@torch.no_grad()
def test_branches_of_one_pass_do_not_see_each_other(small):
    builder, segments = small.encoder.builder, small.encoder.segments
    history = np.array([3, 5, 7])

    def states(middle: list[int]):
        tails = [Tail(builder.instruction, 2), Tail(np.array(middle), 3), Tail(builder.instruction, 3)]
        return small.encoder.rec_states(pad([builder.build(history, segments, tails)], torch.device("cpu")))

    assert torch.equal(states([11, 12, 13]), states([40, 41, 42]))


@torch.no_grad()
def test_padding_on_either_side_does_not_change_the_state_at_rec(small):
    builder, segments = small.encoder.builder, small.encoder.segments
    prompt, longer = (builder.recommend(np.array(rows), segments) for rows in ([3, 5], [3, 5, 7, 9]))
    alone = small.encoder.rec_states(pad([prompt], torch.device("cpu")))[0]
    right = small.encoder.rec_states(pad([prompt, longer], torch.device("cpu")))[0]
    embeddings = small.encoder.embed(pad([prompt], torch.device("cpu")))
    left = torch.cat([torch.randn(1, 7, embeddings.shape[2]), embeddings], dim=1)
    mask = torch.cat([torch.zeros(1, 7), torch.ones(1, len(prompt))], dim=1).long()
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    state = small.language_model.decoder.model(inputs_embeds=left, attention_mask=mask, position_ids=positions)
    torch.testing.assert_close(alone, right, atol=1e-5, rtol=0)
    torch.testing.assert_close(alone, state.last_hidden_state[0, -1], atol=1e-5, rtol=0)


def test_batched_users_get_the_vectors_and_top_items_of_single_ones(small):
    histories = [small.dataset.train_events(user) for user in range(12)]
    batched = small.encoder.encode(histories)
    single = np.concatenate([small.encoder.encode([history]) for history in histories])
    np.testing.assert_allclose(batched, single, atol=1e-5)
    items = small.heads.item_vectors(small.features)
    tops = [np.argsort(-(users @ items.T), kind="stable")[:, :10] for users in (batched, single)]
    np.testing.assert_array_equal(*tops)


def test_bfloat16_states_stay_near_float32(tmp_path):
    exact = SmallRun(tmp_path)
    lm = exact.config.language_model.model_copy(update={"dtype": "bfloat16"})
    rounded = SmallRun(tmp_path, exact.config.model_copy(update={"language_model": lm}))
    rounded.heads.load_state_dict(exact.heads.state_dict())
    histories = [exact.dataset.train_events(user) for user in range(12)]
    a, b = (small.encoder.encode_states(_prompts(small, histories)) for small in (exact, rounded))
    cosine = (a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)
    assert cosine.min() > 0.999  # 8 bits of mantissa over two layers
    batched = rounded.encoder.encode(histories)
    single = np.concatenate([rounded.encoder.encode([history]) for history in histories])
    assert np.abs(batched - single).max() <= 0.05 * np.abs(single).max()


def _prompts(small, histories):
    cut = [small.encoder.builder.keep_newest(history, small.encoder.segments) for history in histories]
    return [small.encoder.builder.recommend(history, small.encoder.segments) for history in cut]


@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_a_resumed_run_equals_an_uninterrupted_one(tmp_path, dropout):
    class StoppedError(Exception): ...

    def trained(folder, stop_at=None):
        config = SmallRun(tmp_path, validate_every=2).config
        heads = config.heads.model_copy(update={"dropout": dropout})
        small = SmallRun(tmp_path, config.model_copy(update={"heads": heads}))
        calls = iter(range(100))

        def validate():
            if next(calls) == stop_at:
                raise StoppedError
            return float(small.heads.rec.detach().sum())

        folder.mkdir(exist_ok=True)
        records = train_steps(small.one_pass, small.dataset, small.config, folder, validate)
        return small.heads.state_dict(), records

    whole, whole_records = trained(tmp_path / "whole")
    with pytest.raises(StoppedError):
        trained(tmp_path / "cut", stop_at=1)
    resumed, resumed_records = trained(tmp_path / "cut")
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
    assert whole_records == resumed_records


def test_the_same_seed_trains_the_same_weights(tmp_path):
    results = []
    for name in ("a", "b"):
        small = SmallRun(tmp_path)
        (tmp_path / name).mkdir()
        train_steps(small.one_pass, small.dataset, small.config, tmp_path / name, validate=lambda: 0.0)
        results.append(small.heads.state_dict())
    assert all(torch.equal(results[0][name], results[1][name]) for name in results[0])


def test_training_lowers_the_retrieval_losses(tmp_path):
    small = SmallRun(tmp_path, steps=60, batch_size=16, learning_rate=1e-2, validate_every=100, risa_weight=0.0)
    records = train_steps(small.one_pass, small.dataset, small.config, tmp_path, validate=lambda: 0.0)
    for name in ("reri_image", "reri_cf", "reri_text"):
        first, last = (np.mean([r[name] for r in part]) for part in (records[:10], records[-10:]))
        assert last < 0.98 * first


def test_the_adaptor_can_learn_the_answers_of_one_batch(tmp_path):
    """Through a random decoder little can be learned, so one batch is repeated."""
    small = SmallRun(tmp_path, reri_weight=0.0)
    batch = small.one_pass.batch(windows_of(small), np.random.default_rng(0))
    optimizer = torch.optim.AdamW(small.heads.adaptor.parameters(), lr=1e-2)
    losses = []
    for _ in range(30):
        loss = small.one_pass(batch)["risa"]
        losses.append(float(loss.detach()))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert losses[-1] < losses[0] - 1e-3


def test_no_window_shows_a_validation_or_test_event(small):
    sampler = WindowSampler(small.dataset, 4, seed=0)
    for step in range(50):
        for window in sampler.draw(8, sampler.generator(step)):
            events = small.dataset.train_events(window.user).tolist()
            shown = window.history.tolist() + window.targets[-1:].tolist()
            assert any(events[at : at + len(shown)] == shown for at in range(len(events)))


def test_training_does_not_depend_on_held_out_events(small):
    """With every validation and test event replaced, the same examples are trained on."""
    altered = [np.concatenate([e[:-2], (e[-2:] + 1) % small.dataset.num_items]) for e in small.dataset.events]
    other = replace(small.dataset, events=altered)
    for one, two in zip(state_windows(small.dataset, 4, None, 0), state_windows(other, 4, None, 0), strict=True):
        assert one.history.tolist() == two.history.tolist()
        kept = len(one.targets) - one.validates
        assert one.targets[:kept].tolist() == two.targets[:kept].tolist()


def test_cached_examples_cover_every_training_event_once(small, tmp_path):
    users = np.arange(len(small.dataset.users))
    train, validation = cached_examples(small.encoder, small.dataset, small.config, users, tmp_path / "states")
    pairs = sorted(zip(train.users.tolist(), train.targets.tolist(), strict=True))
    expected = sorted((u, int(i)) for u in users for i in small.dataset.train_events(u)[1:])
    # The first event of a window that starts in the middle of a history is the last target of the window before it.
    assert pairs == expected
    assert validation.targets.tolist() == [int(small.dataset.events[u][-2]) for u in validation.users]
    assert sorted(validation.users.tolist()) == users.tolist()


def test_validation_states_are_those_that_serving_would_compute(small, tmp_path):
    users = np.arange(len(small.dataset.users))
    _, validation = cached_examples(small.encoder, small.dataset, small.config, users, tmp_path / "states")
    histories = [small.dataset.train_events(user) for user in validation.users]
    served = small.encoder.encode_states(_prompts(small, histories))
    np.testing.assert_allclose(validation.states.take(users).numpy(), served, atol=1e-5)


def test_constant_scores_do_not_rank_the_target_first():
    ranks = rank_of_target(np.zeros((3, 20), np.float32), np.array([0, 7, 19]), [np.array([1, 2])] * 3)
    assert ranks.tolist() == [18, 18, 18]
