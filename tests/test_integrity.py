"""What measures and judges is not called replaced because an honest method trained."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from command_line import PATIENCE_S

EVERY_METHOD = """
import energybench.cli.preload
from support import digits, make_run
from energybench.train import discovery
from energybench.trial.integrity import Picture
def run(*methods):
    return make_run(methods, data=digits(32))
plain = run()
for name, source in discovery.sources().items():
    picture = Picture(plain.task, plain.recipe)  # in a trial, before any method is loaded
    kind = discovery.load(source)
    try:
        trained = run(discovery.build(kind, name, dict(kind.example)))
        trained.train()
    except Exception as error:
        if "E327" in str(error):  # refused in words: it does not train this model
            print(name)
            continue
        print(name, "was not trained:", error)
    print(name, *picture.replaced())
"""


def test_no_shipped_method_is_said_to_have_replaced_what_measures() -> None:
    """In an interpreter of its own: torch changes a kind of optimizer once, when the first of it is made."""
    done = subprocess.run(
        [sys.executable, "-c", EVERY_METHOD],
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parent)},
        cwd=Path(__file__).parents[1],
        check=True,
    )
    told = done.stdout.splitlines()
    assert [line for line in told if " " in line] == []
    assert {"ultimate", "scotti", "gradsamp", "importance"} <= set(told)


AFTER_COMPILING = """
import sys
import types
import torch
from support import make_run
from energybench.trial.integrity import Picture
plain = make_run(optimizer=sys.argv[1])
picture = Picture(plain.task, plain.recipe)
model = torch.nn.Linear(2, 2)
torch.compile(lambda x: model(x), backend="eager")(torch.zeros(1, 2))
by_torch = torch.nn.Module.__init__
print(torch._dynamo.mutation_guard.GenerationTracker.generation > 0, *picture.replaced())
def own(self, *args, **kwargs):
    by_torch(self, *args, **kwargs)
torch.nn.Module.__init__ = own
print(*picture.replaced())
def patched_init(self, *args, **kwargs):  # called and placed as torch's is
    init(self, *args, **kwargs)
    GenerationTracker.tag(self)
where = vars(torch._dynamo.mutation_guard)
patched_init.__module__ = "torch._dynamo.mutation_guard"
torch.nn.Module.__init__ = types.FunctionType(patched_init.__code__, where)
print(*picture.replaced())
init = torch.nn.Linear.__init__
closure = (types.CellType(init),)  # torch's own code, around something else
torch.nn.Module.__init__ = types.FunctionType(by_torch.__code__, where, closure=closure)
print(*picture.replaced())
torch.nn.Module.__init__ = types.FunctionType(by_torch.__code__, dict(where), closure=by_torch.__closure__)
print(*picture.replaced())
torch.nn.Module.__init__ = by_torch
print(*picture.replaced())
kind = type(plain.recipe.build_optimizer([torch.nn.Parameter(torch.zeros(1))]))
def own_group(self, *args, **kwargs):
    return by_torch_group(self, *args, **kwargs)
by_torch_group = kind._init_group
kind._init_group = own_group
print(*picture.replaced())
kind._init_group = types.FunctionType(  # torch's own code, around something else
    by_torch_group.__code__, by_torch_group.__globals__, closure=by_torch_group.__closure__ and tuple(
        types.CellType(own_group if callable(cell.cell_contents) else cell.cell_contents)
        for cell in by_torch_group.__closure__
    )
)
print(*picture.replaced())
"""


@pytest.mark.parametrize("optimizer", ["sgd", "adam", "adamw"])
def test_what_torch_wraps_when_it_compiles_is_told_from_what_a_method_puts_in_its_place(optimizer: str) -> None:
    """Whether it wraps torch's wrapper, takes its name, its code around something else, or its code elsewhere; also of
    what a class has from a parent, as AdamW has how it groups parameters from Adam."""
    done = subprocess.run(
        [sys.executable, "-c", AFTER_COMPILING, optimizer],
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parent)},
        cwd=Path(__file__).parents[1],
        check=True,
    )
    replaced = "torch.nn.modules.module.Module.__init__"
    *first, group, forged = done.stdout.splitlines()
    assert first == ["True", replaced, replaced, replaced, replaced, ""]
    assert group == forged
    assert group.endswith("._init_group")
