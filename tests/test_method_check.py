"""A method that overrides a hook wrongly is told at set-up: each kind of mistake, and its neighbours that are none."""

from __future__ import annotations

import functools
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar

import pytest
import torch
from support import double_run
from torch import nn

from energybench.common.errors import UsageError
from energybench.train import discovery
from energybench.train.batch import Forward
from energybench.train.method import Method, Task
from energybench.train.method_check import check_method
from energybench.train.stack_check import check_stack

SHIPPED = {n: s for n, s in discovery.sources().items() if s.path.parent.name == "methods"}


def made(**members: Any) -> Method:
    """A method with these members, under the name "mine", of a file that has nothing else."""
    method: Method = type("Mine", (Method,), {"__module__": "mine", **members})()
    method.name = "mine"
    return method


def codes(method: Method) -> list[str]:
    return [problem.code for problem in check_method(method)]


def told(method: Method) -> str:
    (problem,) = check_method(method)
    return str(problem)


# ── none ──────────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("name", SHIPPED)
def test_no_shipped_method_is_flagged(name):
    kind = discovery.load(SHIPPED[name])
    assert check_method(discovery.build(kind, name, dict(kind.example))) == []


@dataclass
class Helpful(Method):
    """Helpers, properties, nested functions, a generator, a context: all of one's own."""

    LIMIT: ClassVar[int] = 3
    weight: float = 0.5
    epochs: int = 2

    @property
    def gate(self) -> float:
        return self.weight

    def setup(self, run):
        self.begin_epoch = 0
        self._hook = lambda: self.gradient(run)

    def gradient(self, run):
        return [self.on_step(run)]

    def on_step(self, run):
        return self.gate

    def weights_of(self, batch):
        yield from batch

    def gradients(self, run, batch, inner):
        def later():
            return inner(batch)

        return later()

    def batches(self, run, data, inner):
        yield from inner(data)

    @contextmanager
    def eval_context(self, run):
        yield

    @contextmanager
    def forward_context(self, run, mode):
        yield


def test_a_class_with_helpers_of_its_own_is_not_flagged():
    """Even where a helper's name is nearly a hook's: it is used."""
    assert check_method(Helpful()) == []


def test_a_task_of_ones_own_is_not_flagged():
    class Regression(Task):
        name = "regression"
        provides = frozenset({"forward", "backward", "labels"})

        def parameters(self, run, part):
            yield from run.model.parameters()

        def forward(self, run, batch):
            return Forward(run.model(batch.inputs).mean(), None, None)

        def evaluate(self, run, data):
            return {}

    assert check_method(Regression()) == []
    needs = made(needs=frozenset({"labels"}))
    assert check_stack([needs], Regression()) == []
    assert [problem.code for problem in check_stack([needs], Task())] == ["E319"]


def fails(self, run, batch, inner):
    raise RuntimeError("on purpose")


FINE: dict[str, Callable[..., Any]] = {
    "other names": lambda self, a, b, c: c(b),
    "a default more": lambda self, run, batch, inner, twice=False: inner(batch),
    "any number": lambda self, *arguments: arguments[-1](arguments[1]),
    "always an error": fails,
}


@pytest.mark.parametrize("hook", FINE.values(), ids=FINE)
def test_parameters_that_a_call_by_position_fits_are_fine(hook):
    assert codes(made(step=hook)) == []


# ── E316: parameters ──────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("hook", ["epoch", "batches", "step", "gradients", "update"])
@pytest.mark.parametrize("count", [0, 1, 2, 4, 5])
def test_a_hook_with_another_number_of_parameters_is_told(hook, count):
    names = ["run", "argument", "inner", "more", "most"][:count]
    function = eval(f"lambda self, {', '.join(names)}: {'inner(argument)' if count > 2 else '1'}")
    (problem,) = check_method(made(**{hook: function}))
    assert problem.code == "E316"
    assert f"'mine' has `{hook}(" in problem.message
    assert problem.hint.startswith(f"write: def {hook}(self, run, ")


@pytest.mark.parametrize(
    ("member", "function"),
    [
        ("setup", lambda self: None),
        ("finish", lambda self, run, model: None),
        ("optimizer", lambda self, run, params: torch.optim.SGD(params)),
        ("estimate", lambda self: None),
        ("eval_context", lambda self: None),
        ("forward_context", lambda self, run: None),
        ("prepare_inputs", lambda self, inputs: inputs),
        ("steps_per_epoch", lambda self: 3),
        ("diagnostics", lambda self, run: {}),
        ("kept_epochs", lambda self: 3),
        ("incompatible_recipe", lambda self: None),
    ],
)
def test_every_other_member_too(member, function):
    assert codes(made(**{member: function})) == ["E316"]


@pytest.mark.parametrize(
    "hook", [lambda self, batch, run, inner: inner(batch), lambda self, inner, run, batch: inner(batch)]
)
def test_the_right_names_in_another_order_are_told(hook):
    assert "in another order" in told(made(step=hook))


def test_a_hook_under_no_grad_is_read_through_the_decorator():
    @torch.no_grad()
    def update(self, run, inner):
        inner(run)

    assert codes(made(update=update)) == ["E316"]


# ── E317: names ───────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("gradient", "gradients"),
        ("on_step", "step"),
        ("set_up", "setup"),
        ("batch", "batches"),
        ("train_step", "step"),
        ("on_epoch_end", "epoch"),
        ("before_update", "update"),
        ("Epoch", "epoch"),
        ("optimiser", "optimizer"),
        ("diagnostic", "diagnostics"),
        ("estimates", "estimate"),
        ("gardients", "gradients"),
        ("keptEpochs", "kept_epochs"),
        ("evalcontext", "eval_context"),
        ("claim", "claims"),
    ],
)
def test_a_name_that_is_nearly_a_members_and_that_nothing_calls_is_told(name, meant):
    text = told(made(**{name: lambda self, run, batch, inner: inner(batch)}))
    assert text.startswith(f"error[E317]: 'mine' has `{name}`, which nothing calls")
    assert f"did you mean `{meant}`?" in text


@pytest.mark.parametrize(
    ("name", "meant"), [("replace", "replaces"), ("need", "needs"), ("enter", "enters"), ("swap", "swaps")]
)
def test_so_is_a_declaration(name, meant):
    assert f"did you mean `{meant}`?" in told(made(**{name: frozenset({"step"})}))


@pytest.mark.parametrize(
    "name", ["weights", "width", "live", "rest", "skipped", "score", "_gradient", "EPOCHS", "reset"]
)
def test_other_names_are_nobodys_business(name):
    assert codes(made(**{name: lambda self: 1})) == []


# ── E318: inner ───────────────────────────────────────────────────────────────────────────────────────────────────────


def ignores(self, run, argument, inner):
    return argument


@pytest.mark.parametrize("hook", ["epoch", "batches", "step", "gradients", "update"])
def test_a_hook_that_never_uses_inner_must_say_that_it_replaces(hook):
    (problem,) = check_method(made(**{hook: ignores}))
    assert problem.code == "E318"
    assert f'replaces = frozenset({{"{hook}"}})' in problem.hint
    assert codes(made(**{hook: ignores}, replaces=frozenset({hook}))) == []


def test_a_decorator_that_calls_inner_itself_is_what_counts():
    def before(function):
        @functools.wraps(function)
        def wrapper(self, run, batch, inner):
            function(self, run)
            return inner(batch)

        return wrapper

    def lets_through(function):
        @functools.wraps(function)
        def wrapper(*given):
            return function(*given)

        return wrapper

    assert (
        codes(made(step=before(lambda self, run: None), gradients=lets_through(before(lambda self, run: None)))) == []
    )
    assert codes(made(step=lets_through(ignores))) == ["E318"]
    assert codes(made(step=lets_through(lambda self, run: None))) == ["E316"]


def test_inner_handed_on_in_any_way_is_used():
    def by_super(self, run, batch, inner):
        return Method.gradients(self, run, batch, inner)

    def by_keyword(self, run, batch, inner):
        return functools.partial(inner, batch)()

    def sometimes(self, run, batch, inner):
        if run.epoch_number > 2:
            inner(batch)

    for hook in (by_super, by_keyword):
        assert codes(made(gradients=hook)) == []
    assert codes(made(step=sometimes)) == []
    assert codes(made(optimizer=lambda self, run, params, inner: torch.optim.SGD(params))) == []


def test_a_hook_whose_code_nobody_can_read_is_left_alone():
    class Opaque:
        def __call__(self, run, batch, inner): ...

    assert codes(made(step=Opaque())) == []


# ── E319: words ───────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("declaration", "value", "hint"),
    [
        ("replaces", {"gradient"}, "did you mean 'gradients'?"),
        ("enters", {"steps"}, "did you mean 'step'?"),
        ("needs", {"backwards"}, "did you mean 'backward'?"),
        ("needs", {"per_sample_losses"}, "did you mean 'per_sample_loss'?"),
        ("runs", {"per_sample_loss"}, "one of: backward, forward"),
        ("swaps", {"convolution"}, "one of: conv, linear"),
        ("replaces", "step", 'write: replaces = frozenset({"epoch"})'),
        ("needs", ["backward"], 'write: needs = frozenset({"forward"})'),
        ("replaces", None, 'write: replaces = frozenset({"epoch"})'),
    ],
)
def test_a_word_that_no_declaration_knows_is_told(declaration, value, hint):
    (problem,) = check_method(made(**{declaration: value}))
    assert problem.code == "E319"
    assert problem.hint == hint


def test_a_replaced_hook_must_be_defined():
    assert "define step, or leave it out" in told(made(replaces=frozenset({"step"})))


# ── E320, E321: what runs late or gives nothing ───────────────────────────────────────────────────────────────────────


def generator(self, run, argument, inner):
    yield inner(argument)


async def coroutine(self, run, argument, inner):
    inner(argument)


async def stream(self, run, argument, inner):
    yield inner(argument)


@pytest.mark.parametrize("hook", ["epoch", "step", "gradients", "update"])
@pytest.mark.parametrize("function", [generator, coroutine, stream])
def test_a_hook_whose_body_would_never_run_is_told(hook, function):
    assert codes(made(**{hook: function})) == ["E320"]


def test_batches_may_be_a_generator_and_nothing_that_waits():
    assert codes(made(batches=generator)) == []
    assert codes(made(batches=coroutine)) == codes(made(batches=stream)) == ["E320"]


def one(self, run):
    yield


def test_setup_and_finish_run_when_they_are_called_and_a_context_is_made_one():
    assert codes(made(setup=one)) == codes(made(finish=one)) == ["E320"]
    assert "@contextlib.contextmanager" in told(made(eval_context=one))
    assert codes(made(eval_context=contextmanager(one))) == []


def forgets(self, run, argument, inner):
    inner(argument)


@pytest.mark.parametrize("member", ["batches", "gradients", "optimizer"])
def test_what_must_give_something_and_has_no_return_is_told(member):
    assert "write: return inner(…)" in told(made(**{member: forgets}))
    assert codes(made(**{member: forgets})) == ["E321"]


@pytest.mark.parametrize(
    ("member", "function"),
    [
        ("estimate", lambda self, work: None),
        ("prepare_inputs", lambda self, run, inputs: None),
        ("forward_context", lambda self, run, mode: None),
        ("diagnostics", lambda self: None),
        ("saved_tensors", lambda self: None),
    ],
)
def test_so_is_every_other_member_that_never_gives_none_before_the_training_is_paid_for(member, function):
    assert f"returns nothing from `{member}`" in told(made(**{member: function}))


@pytest.mark.parametrize("member", ["claims", "kept_epochs", "steps_per_epoch", "incompatible_recipe"])
def test_none_is_an_answer_of_the_others(member):
    assert codes(made(**{member: lambda self, *given: None})) == []


def test_a_return_in_one_branch_is_left_to_the_run():
    def sometimes(self, run, batch, inner):
        if run.epoch_number > 1:
            return inner(batch)
        return None

    assert codes(made(gradients=sometimes)) == []
    run = double_run([made(gradients=sometimes)], epochs=1)
    with pytest.raises(UsageError, match=r"E323.*'mine' gives None from `gradients`"):
        run.train()


# ── E322: hidden members ──────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("name", ["step", "epoch", "update", "setup", "estimate", "claims", "forward_context"])
def test_a_parameter_or_an_attribute_that_hides_a_member_is_told(name):
    assert "has an attribute" in told(made(**{name: 0.1}))
    kind = dataclass(type("Mine", (Method,), {"__annotations__": {name: float}, name: 0.1}))
    assert "has a parameter" in told(kind())
    without_default = dataclass(type("Mine", (Method,), {"__annotations__": {name: float}}))
    assert [problem.code for problem in check_method(without_default(0.1))] == ["E322"]


def test_a_property_in_place_of_a_member_is_told_without_being_asked():
    def fails(self):
        raise AssertionError("asked for")

    assert codes(made(claims=property(fails))) == ["E322"]
    assert codes(made(claims=classmethod(lambda cls: None), diagnostics=staticmethod(dict))) == []


def test_a_hook_that_is_set_on_the_object_is_never_called_and_told():
    method = made()
    method.step = lambda run, batch, inner: inner(batch)  # type: ignore[method-assign]
    assert codes(method) == ["E322"]


# ── E323: while it runs ───────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("member", "value", "what"),
    [
        ("gradients", torch.tensor(1.0), "a Tensor from `gradients`"),
        ("batches", 3, "a int from `batches`"),
        ("optimizer", nn.Linear(1, 1), "a Linear from `optimizer`"),
        ("forward_context", None, "None from `forward_context`"),
    ],
)
def test_what_a_member_gives_is_held_to_what_it_must_give(member, value, what):
    method = made(**{member: lambda self, *given: value}, replaces=frozenset({member} & {"gradients", "batches"}))
    with pytest.raises(UsageError, match="E323") as caught:
        double_run([method], epochs=1).train()
    assert f"'mine' gives {what}" in str(caught.value)


def test_an_evaluation_context_that_is_none_is_told():
    run = double_run([made(eval_context=lambda self, run: run.stop_reason)])
    with pytest.raises(UsageError, match=r"E323.*`eval_context`"):
        run.evaluate(run.data)


# ── where it is told ──────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_run_built_by_hand_refuses_what_the_check_refuses():
    with pytest.raises(UsageError, match="E317"):
        double_run([made(on_step=lambda self, run, batch, inner: inner(batch))])


def test_every_mistake_of_a_stack_is_told_at_once_and_where_it_stands():
    wrong, also = made(gradient=forgets, need=frozenset()), made(step=ignores)
    problems = check_stack([wrong, also], Task(), "suite.toml:7")
    assert [problem.code for problem in problems] == ["E317", "E317", "E318"]
    assert {problem.where for problem in problems} == {"suite.toml:7"}
