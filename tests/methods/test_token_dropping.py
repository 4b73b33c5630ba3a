"""token_dropping: which tokens a middle layer sees, what becomes of the others, and what that saves."""

from __future__ import annotations

from collections import Counter
from functools import partial

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support import CPU, StackedTransformer, assert_same_state, digits, make_run, state
from test_method_members import method_named
from torch import Tensor, nn

from energybench.algorithms.token_layers import UnknownArgumentError, on_some_tokens, random_tokens, stacks, tokens_kept
from energybench.common.errors import UsageError
from energybench.flops.work import Work
from energybench.runner.tracing import trace_run
from energybench.train.data import Data, Resident
from energybench.train.facts import Facts
from energybench.trial.counting_layer import StepCounter
from energybench.workloads import models
from energybench.workloads.tasks.text import LanguageModel

VOCABULARY, LENGTH, WIDTH = 11, 12, 8


def dropping(**parameters):
    return method_named("token_dropping", **parameters)


class TinyLanguage(nn.Module):
    """An embedding, four of torch's encoder layers with a causal mask, and a linear head."""

    def __init__(self, layers: int = 4) -> None:
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, WIDTH)
        self.places = nn.Parameter(torch.randn(LENGTH, WIDTH))
        layer = partial(nn.TransformerEncoderLayer, WIDTH, 2, 2 * WIDTH, 0.0, batch_first=True)
        self.layers = nn.ModuleList(layer() for _ in range(layers))
        self.head = nn.Linear(WIDTH, VOCABULARY)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embedding(tokens.clamp(min=0)) + self.places
        mask = nn.Transformer.generate_square_subsequent_mask(tokens.shape[1], device=x.device, dtype=x.dtype)
        for layer in self.layers:
            x = layer(x, src_mask=mask)
        return self.head(x)


def language(samples: int = 24) -> Data:
    tokens = torch.randint(VOCABULARY, (samples, LENGTH + 1), generator=torch.Generator().manual_seed(1))
    facts = Facts("tokens", VOCABULARY, extra={"vocabulary": VOCABULARY})
    return Data(Resident(tokens[:, :-1], tokens[:, 1:], CPU), facts=facts)


# ── which tokens ──────────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_share_grows_on_a_line_or_stays_and_the_last_epoch_has_all_tokens():
    assert [dropping(keep=0.5).share(n, 5) for n in range(1, 6)] == [0.5, 0.625, 0.75, 0.875, 1.0]
    assert [dropping(keep=0.5, until=0.5).share(n, 5) for n in range(1, 6)] == [0.5, 0.75, 1.0, 1.0, 1.0]
    constant = dropping(keep=0.25, growth="constant")
    assert [constant.share(n, 5) for n in range(1, 6)] == [0.25] * 4 + [1.0]


@given(tokens=st.integers(1, 40), share=st.floats(0.01, 1), first=st.integers(0, 5), seed=st.integers(0, 9))
def test_positions_are_in_order_each_once_and_the_first_are_among_them(tokens, share, first, seed):
    kept = random_tokens(tokens, share, first, torch.Generator().manual_seed(seed)).tolist()
    assert kept == sorted(set(kept))
    assert len(kept) == tokens_kept(tokens, share, min(first, tokens))
    assert kept[: min(first, tokens)] == list(range(min(first, tokens)))
    assert 0 <= kept[0] <= kept[-1] < tokens


def test_every_token_behind_the_first_is_kept_as_often():
    generator, counts = torch.Generator().manual_seed(0), Counter()
    for _ in range(2000):
        counts.update(random_tokens(9, 5 / 9, 1, generator).tolist())
    assert counts[0] == 2000
    assert all(abs(counts[n] - 1000) < 5 * (2000 * 0.25) ** 0.5 for n in range(1, 9))  # five standard deviations


# ── one layer on some of them ─────────────────────────────────────────────────────────────────────────────────────────


def test_kept_tokens_pass_the_layer_and_the_others_pass_it_by_with_their_gradient():
    layer, x = nn.Linear(4, 4).double(), torch.randn(2, 6, 4).double().requires_grad_()
    kept, target = torch.tensor([0, 2, 5]), torch.randn(2, 6, 4).double()
    with on_some_tokens({"layer": layer}, lambda tokens: kept):
        output = layer(x)
    for token in range(6):
        torch.testing.assert_close(output[:, token], layer(x[:, token]) if token in kept else x[:, token])
    (output * target).sum().backward()
    for token in range(6):
        wanted = target[:, token] @ layer.weight if token in kept else target[:, token]
        torch.testing.assert_close(x.grad[:, token], wanted)
    torch.testing.assert_close(layer.bias.grad, target[:, kept].sum((0, 1)))
    assert not layer._forward_hooks
    assert not layer._forward_pre_hooks


@pytest.mark.parametrize("padding", [False, True])
def test_masks_are_cut_as_the_tokens_are(padding):
    layer = nn.TransformerEncoderLayer(WIDTH, 2, 16, 0.0, batch_first=True).double()
    x, kept = torch.randn(3, 6, WIDTH).double(), torch.tensor([0, 1, 3, 4])
    mask = torch.ones(6, 6, dtype=torch.bool).triu(1)
    given = {"src_mask": mask}
    some = {"src_mask": torch.ones(4, 4, dtype=torch.bool).triu(1)}
    if padding:
        there = torch.tensor([6, 4, 2])
        given["src_key_padding_mask"] = torch.arange(6) >= there[:, None]
        some["src_key_padding_mask"] = kept >= there[:, None]
    with on_some_tokens({"layer": layer}, lambda tokens: kept):
        output = layer(x, **given)
    torch.testing.assert_close(output[:, kept], layer(x[:, kept], **some))


class Given(nn.Module):
    def forward(self, hidden: Tensor, others: Tensor | None = None, **named: Tensor) -> tuple[Tensor, str]:
        return 2 * hidden, "and more"


def test_what_goes_with_the_tokens_in_an_unknown_way_is_refused_and_tuples_stay_tuples():
    layer, x, kept = Given(), torch.randn(2, 5, 3), torch.tensor([1, 2])
    with on_some_tokens({"layer": layer}, lambda tokens: kept):
        output, more = layer(x, torch.zeros(7))
        assert more == "and more"
        assert torch.equal(output[:, kept], 2 * x[:, kept])
        assert torch.equal(output[:, [0, 3, 4]], x[:, [0, 3, 4]])
        with pytest.raises(UnknownArgumentError, match="`others`"):
            layer(x, torch.zeros(2, 5))
        with pytest.raises(UnknownArgumentError, match="`rotation`"):
            layer(x, rotation=torch.zeros(1, 5, 2))


def test_all_tokens_are_a_call_like_any_other():
    layer, x = nn.Linear(4, 4), torch.randn(2, 6, 4)
    with on_some_tokens({"layer": layer}, torch.arange):
        assert torch.equal(layer(x), torch.nn.functional.linear(x, layer.weight, layer.bias))


# ── in training ───────────────────────────────────────────────────────────────────────────────────────────────────────


def test_all_tokens_from_the_start_are_plain_training_bit_for_bit():
    run, plain = make_run([dropping(keep=1.0)], StackedTransformer), make_run([], StackedTransformer)
    run.train()
    plain.train()
    assert_same_state(state(run.model), state(plain.model))


def lengths_seen(run) -> dict[str, list[int]]:
    """Tokens that each layer has seen, call by call, from inside of what the method puts around it."""
    seen: dict[str, list[int]] = {}
    for name, layer in run.model.layers.named_children():
        calls, inner = seen.setdefault(name, []), layer.norm1.forward
        layer.norm1.forward = lambda x, calls=calls, inner=inner: (calls.append(x.shape[1]), inner(x))[1]
    return seen


def test_the_middle_layers_see_some_tokens_in_training_and_all_in_evaluation():
    run = make_run([dropping(keep=0.5)], TinyLanguage, language(), LanguageModel(), epochs=3, batch=24, accumulate=2)
    seen = lengths_seen(run)
    run.train()
    assert seen["0"] == seen["3"] == [12] * 6
    assert seen["1"] == seen["2"] == [6, 6, 9, 9, 12, 12]


def test_an_evaluation_sees_all_tokens_while_training_drops_some():
    run = make_run([dropping()], TinyLanguage, language(), LanguageModel())
    judged = []
    run.train(lambda run: judged.append((run.evaluate(run.data), state(run.model))))
    found, weights = judged[0]  # of an epoch with half of the tokens
    plain = make_run([], TinyLanguage, language(), LanguageModel())
    plain.model.load_state_dict(weights)
    assert plain.evaluate(run.data) == found


def test_each_layer_and_micro_batch_has_a_draw_of_its_own_and_a_run_draws_the_same_again():
    drawn = []
    for _ in range(2):
        method = dropping(growth="constant")
        run = make_run([method], TinyLanguage, language(), LanguageModel(), epochs=2, batch=24, accumulate=2)
        run.train()
        drawn.append(state(run.model))
    assert_same_state(*drawn)
    generator = run.rng(method.name, "tokens")
    draws = [random_tokens(12, 0.5, 1, generator).tolist() for _ in range(4)]
    assert len({tuple(draw) for draw in draws}) == 4


def test_a_causal_model_stays_causal():
    run = make_run([dropping()], TinyLanguage, language(), LanguageModel())
    tokens = torch.randint(VOCABULARY, (2, LENGTH))
    other = tokens.clone()
    other[:, 7:] = (other[:, 7:] + 1) % VOCABULARY
    logits = []
    for text in (tokens, other):
        generator = torch.Generator().manual_seed(2)
        layers = {name: run.model.get_submodule(name) for name in run.methods[0]._found}
        with on_some_tokens(layers, partial(random_tokens, share=0.5, first=1, generator=generator)):
            logits.append(run.model(text))
    torch.testing.assert_close(logits[0][:, :7], logits[1][:, :7])
    assert not torch.allclose(logits[0][:, 7:], logits[1][:, 7:])


# ── what it saves ─────────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_estimate_is_the_closed_form_and_what_is_counted():
    """Of four layers two see 6, 9 and 12 of 12 tokens; a layer's linear parts cost 2·T·(4·D² + 4·D²) forward."""
    method, counter = dropping(), StepCounter(10**9)
    settings = {"epochs": 3, "batch": 10, "accumulate": 2}
    run = make_run([method], TinyLanguage, language(), LanguageModel(), counter=counter, **settings)
    run.train()
    plain = make_run([], TinyLanguage, language(), LanguageModel(), **settings)
    work = Work(trace_run(plain, CPU).lines, 3, 24, 10, 2)
    estimated = method.estimate(work)
    assert estimated.flop == pytest.approx(counter.result(run).counted_flop, rel=1e-9)
    linear = [w for w in work.lines if w.op == "linear" and w.module.startswith("layers.1")]
    assert sum(line.flop for line in linear) == 3 * 2 * 12 * 8 * WIDTH**2
    saved = {"linear": 0.0, "attention": 0.0}
    for before, after in zip(work.lines, estimated.lines, strict=True):
        saved[before.op] = saved.get(before.op, 0.0) + before.flop - after.flop
    assert saved["linear"] == pytest.approx(2 * 3 * 2 * 12 * 8 * WIDTH**2 * (1 - (6 + 9 + 12) / 36))
    middle = [w for w in work.lines if w.op == "attention" and w.module.startswith(("layers.1", "layers.2"))]
    assert sum(line.flop for line in middle) > 0
    assert saved["attention"] == pytest.approx(sum(w.flop for w in middle) * (1 - (36 + 81 + 144) / 432))
    assert method.diagnostics()["layers"] == {"layers.1": 12, "layers.2": 12}


def test_gpt2_of_transformers_drops_tokens_too():
    pytest.importorskip("transformers", reason="pip install 'energybench[text]'")
    sizes = {"layers": 3, "heads": 2, "width": 8, "dropout": 0.0}
    build = partial(models.build, "gpt2_language_model", (LENGTH,), VOCABULARY, sizes, {"vocabulary": VOCABULARY})
    method, counter = dropping(), StepCounter(10**9)
    run = make_run([method], build, language(), LanguageModel(), epochs=2, counter=counter)
    run.train()
    plain = make_run([], build, language(), LanguageModel(), epochs=2)
    work = Work(trace_run(plain, CPU).lines, 2, 24, 32)
    assert method.acted
    assert method.estimate(work).flop == pytest.approx(counter.result(run).counted_flop, rel=1e-6)


# ── what it cannot train ──────────────────────────────────────────────────────────────────────────────────────────────


class Mixing(nn.Module):
    """A layer of weights from every token to every other."""

    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.Linear(16, 16)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.mix(x.transpose(1, 2)).transpose(1, 2)


class Mixer(StackedTransformer):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Mixing() for _ in range(3))


def refusal(method, *args, **settings) -> str:
    with pytest.raises(UsageError) as caught:
        make_run([method], *args, **settings)
    (problem,) = caught.value.problems
    assert problem.code == "E327"
    return problem.message


def test_what_it_cannot_train_is_told_in_words():
    assert "no stack" in refusal(dropping())
    assert "no stack" in refusal(dropping(), partial(StackedTransformer, layers=2))
    assert "need every token" in refusal(dropping(), Mixer)
    assert "one epoch" in refusal(dropping(), StackedTransformer, epochs=1)
    assert "all of them" in refusal(dropping(keep=0.99), StackedTransformer)


def test_a_compiled_model_is_refused_in_words_before_it_is_compiled():
    run = make_run([dropping()], StackedTransformer)
    run.model.compile()
    with pytest.raises(ValueError, match="compiled code does not follow"):
        run.train()


def test_a_stack_is_three_or_more_layers_of_one_kind():
    alike = nn.Sequential(*(nn.Linear(4, 4) for _ in range(3)))
    others = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4))
    assert list(stacks(nn.ModuleDict({"a": alike, "b": others}))) == [["a.0", "a.1", "a.2"]]


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inside = nn.Linear(16, 16)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.inside(x).relu()


class Residuals(StackedTransformer):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Residual() for _ in range(3))


@pytest.mark.parametrize("stack", [["lora", "token_dropping"], ["token_dropping", "lora"]])
def test_it_stacks_with_updates_of_low_rank_in_either_order(stack):
    methods, counter = [method_named(name) for name in stack], StepCounter(10**9)
    run = make_run(methods, Residuals, digits(32), counter=counter)
    run.train()
    work = Work(trace_run(make_run([], Residuals), CPU).lines, 2, 32, 32)
    for method in reversed(methods):
        work = method.estimate(work)
    run.finish()
    assert {type(module) for module in run.model.modules()} == {type(m) for m in Residuals().modules()}
    assert work.flop == pytest.approx(counter.result(run).counted_flop, rel=1e-3)


@pytest.mark.parametrize("parameters", [{"keep": 0.0}, {"keep": 1.5}, {"until": -0.1}, {"first": -1}, {"growth": "x"}])
def test_parameters_out_of_range_are_refused(parameters):
    with pytest.raises(UsageError):
        dropping(**parameters)
