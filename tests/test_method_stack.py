"""What can be said against a stack of methods before anything runs, and that the advice given works."""

from __future__ import annotations

import re
from itertools import permutations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from support import double_run

from energybench.common.units import Quantity
from energybench.train.method import HOOKS, Method, Task, overrides, parameters
from energybench.train.stack_check import check_stack


def passes_on(hook: str):
    return lambda self, run, argument, inner: inner(argument)


def layer(
    name: str,
    acts: str = "",
    replaces: str = "",
    enters: str = "",
    needs: str = "",
    runs: str | None = None,
    kind: type[Method] = Method,
) -> Method:
    """A method that overrides the hooks it acts on or replaces; words are separated by spaces."""
    body = {hook: passes_on(hook) for hook in f"{acts} {replaces}".split()}
    made = type(name, (kind,), body)()
    made.name = name
    made.replaces, made.enters, made.needs = (frozenset(words.split()) for words in (replaces, enters, needs))
    made.runs = None if runs is None else frozenset(runs.split())
    return made


TASK = Task()


def said(*methods: Method, task: Task = TASK) -> list[tuple[str, str, str]]:
    return [(problem.code, problem.message, problem.hint) for problem in check_stack(methods, task, "suite.toml:3")]


def order_in(hint: str) -> list[str] | None:
    return re.findall(r'"([^"]+)"', hint) if "this order works" in hint else None


def test_layers_that_pass_every_hook_on_may_stand_in_any_order():
    stack = [layer("a", "epoch step"), layer("b", "step gradients"), layer("c", "batches update")]
    for order in permutations(stack):
        assert said(*order) == []


@pytest.mark.parametrize("hook", HOOKS)
def test_a_hook_inside_a_replaced_hook_of_the_same_name_is_refused_with_the_order_that_works(hook):
    everything = " ".join(HOOKS)
    owner, inside = layer("owner", replaces=hook, enters=everything), layer("inside", acts=hook)
    ((code, message, hint),) = said(owner, inside)
    assert code == "E310"
    assert message == f"'owner' replaces `{hook}`, so 'inside' inside it would never act"
    assert order_in(hint) == ["inside", "owner"]
    assert said(inside, owner) == []


def test_the_problem_stands_where_the_suite_names_the_stack():
    (problem,) = check_stack([layer("owner", replaces="update"), layer("inside", "update")], TASK, "suite.toml:3")
    assert problem.where == "suite.toml:3"


def test_two_owners_of_one_hook_have_no_order_and_are_told_so():
    stack = [layer("a", replaces="update"), layer("b", replaces="update")]
    ((code, _, hint),) = said(*stack)
    assert code == "E310"
    assert order_in(hint) is None
    assert "two methods" in hint


def test_two_owners_that_hide_each_other_have_no_order_and_are_told_so():
    """a must stand inside b for b's step, and b inside a for a's update."""
    a = layer("a", acts="step", replaces="update")
    b = layer("b", acts="update", replaces="step", enters="gradients update")
    for order in ((a, b), (b, a)):
        ((code, _, hint),) = said(*order)
        assert code == "E310"
        assert order_in(hint) is None


def test_a_task_that_has_a_hook_of_its_own_cannot_lose_it_to_a_method():
    task = layer("gan", acts="batches", kind=Task)
    assert isinstance(task, Task)
    ((code, message, hint),) = said(layer("owner", replaces="batches"), task=task)
    assert code == "E310"
    assert "gan" in message
    assert order_in(hint) is None


@pytest.mark.parametrize(
    ("replaced", "unreachable"),
    [
        ("epoch", ["batches", "step", "gradients", "update"]),
        ("step", ["gradients", "update"]),
        ("batches", []),
        ("gradients", []),
        ("update", []),
    ],
)
def test_replacing_a_hook_hides_what_is_nested_in_it(replaced, unreachable):
    for hook in HOOKS:
        if hook == replaced:
            continue
        found = said(layer("other", acts=hook), layer("owner", replaces=replaced))
        assert [code for code, _, _ in found] == (["E311"] if hook in unreachable else [])
        if found:
            assert f"`{hook}`" in found[0][1]
            assert "two methods" in found[0][2]


def test_a_nested_hook_that_the_owner_still_enters_is_reachable_and_so_is_what_that_enters():
    inner = layer("other", acts="step gradients update")
    assert said(inner, layer("owner", replaces="epoch", enters="step")) == []
    assert [m for _, m, _ in said(layer("o", acts="batches"), layer("owner", replaces="epoch", enters="step"))]


def test_a_task_that_acts_in_an_unreachable_hook_is_named_too():
    task = layer("gan", acts="batches", kind=Task)
    found = said(layer("owner", replaces="epoch", enters="step"), task=task)
    assert [code for code, _, _ in found] == ["E311"]
    assert "'gan'" in found[0][1]


def test_what_a_method_needs_the_task_must_provide():
    task = Task()
    task.provides = frozenset({"forward", "backward"})
    assert [code for code, _, _ in said(layer("a", needs="per_sample_loss"), task=task)] == ["E312"]
    assert said(layer("a", needs="backward"), task=task) == []


def test_a_method_that_acts_on_a_pass_that_another_removes_is_refused_on_either_side():
    acts, removes = layer("acts", needs="backward"), layer("removes", replaces="gradients", runs="forward")
    for order in ((acts, removes), (removes, acts)):
        ((code, message, hint),) = said(*order)
        assert code == "E313"
        assert "'acts' acts on the backward pass, but 'removes' leaves only: forward" in message
        assert "two methods" in hint
    assert said(layer("acts", needs="forward"), removes) == []
    assert "none" in said(acts, layer("removes", replaces="gradients", runs=""))[0][1]


words = st.lists(st.sampled_from(HOOKS), max_size=2, unique=True).map(" ".join)
layers = st.builds(dict, acts=words, replaces=words, enters=words)


@given(stack=st.lists(layers, max_size=4))
@example(stack=[{"replaces": "step"}, {"acts": "step", "replaces": "update"}, {"acts": "update"}])
@example(stack=[{"acts": "update", "replaces": "step"}, {"acts": "step", "replaces": "update"}])
def test_a_suggested_order_is_the_same_stack_and_hides_nothing(stack):
    methods = [layer(f"m{i}", **made) for i, made in enumerate(stack)]
    by_name = {method.name: method for method in methods}
    hidden = [problem for problem in said(*methods) if problem[0] == "E310"]
    works = any(not [p for p in said(*order) if p[0] == "E310"] for order in permutations(methods))
    for _, _, hint in hidden:
        order = order_in(hint)
        assert (order is not None) == works  # advice is given exactly when there is some
        if order is not None:
            assert sorted(order) == sorted(by_name)
            assert not [p for p in said(*(by_name[name] for name in order)) if p[0] == "E310"]


@given(stack=st.lists(layers, min_size=1, max_size=3))
def test_a_stack_that_is_not_refused_enters_every_layer(stack):
    """The promise of the check, held against a run: methods that keep their declarations leave no layer dead."""

    def obeying(name: str, made: dict[str, str]) -> Method:
        replaced, entered = made["replaces"].split(), made["enters"].split()

        def hook(name_of: str):
            def call(self, run, argument, inner):
                if name_of not in replaced:
                    return inner(argument)
                if name_of == "batches":
                    return run._batches(argument)
                if name_of == "epoch":
                    for batch in list(run.batches(argument) if "batches" in entered else run._batches(argument)):
                        if "step" in entered:
                            run.step(batch)
                            continue
                        for wanted in ("gradients", "update"):
                            if wanted in entered:
                                getattr(run, wanted)(batch if wanted == "gradients" else "main")
                elif name_of == "step":
                    for wanted in ("gradients", "update"):
                        if wanted in entered:
                            getattr(run, wanted)(argument if wanted == "gradients" else "main")
                elif name_of == "gradients":
                    return run._gradients(argument)
                return None

            return call

        method = layer(name, **made)
        for each in set(f"{made['acts']} {made['replaces']}".split()):
            setattr(type(method), each, hook(each))
        return method

    methods = [obeying(f"m{i}", made) for i, made in enumerate(stack)]
    if check_stack(methods, TASK) or any(not entered_is_nested(m) for m in methods):
        return
    run = double_run(methods, epochs=1)
    run.train()
    assert run.uncalled_overrides() == []


def entered_is_nested(method: Method) -> bool:
    """Declares entries only of hooks below one that it replaces, and replaces nothing it does not reach itself."""
    nested = {"epoch": {"batches", "step", "gradients", "update"}, "step": {"gradients", "update"}}
    below = set().union(*(nested.get(hook, set()) for hook in method.replaces))
    return method.enters <= below and not method.replaces & below


def test_an_override_is_told_from_an_inherited_verb():
    method = layer("a", acts="step")
    assert [hook for hook in HOOKS if overrides(method, hook)] == ["step"]
    assert not any(overrides(Method(), hook) for hook in HOOKS)


def test_parameters_are_the_fields_as_toml_values():
    from dataclasses import dataclass

    @dataclass
    class Many(Method):
        period: Quantity = Quantity(2, "epochs")
        layers: tuple[int, ...] = (1, 2)
        rate: float = 0.5
        limit: float | None = None

    assert parameters(Many()) == {"period": "2 epochs", "layers": [1, 2], "rate": 0.5}
    assert parameters(Method()) == {}
