"""The prose and the recipes of docs/suite.md; its tables are made from the schema, in suite_page.py."""

from __future__ import annotations

BEGINNING = """A suite says what is trained, what is changed, and what counts as a saving. It is a file of TOML; plain
training, and plain training once more (the twin), are in every suite without being written.

```sh
energybench new suite mine
energybench check mine.toml
energybench run mine.toml --quick
```

<!-- output -->
```text
mine.toml and suite.schema.json written
No mistake found.
small
gradsamp
```

The first writes a suite that runs, to be changed; the second tells every mistake in it, each with its line and what to
type instead, and prints what would be run; the third is its smoke test. Without `--quick` it is run as written.

**In an editor** with a TOML language server (Even Better TOML in VS Code, Taplo anywhere) the line `#:schema
./suite.schema.json` at the top completes keys, names of methods with their parameters, models and data sets, and
underlines what does not exist. `energybench schema > suite.schema.json` writes the schema again, with your own methods
in it."""

SETTING = """`--set KEY=VALUE` is said in the title of every page of the run, and may stand several times. The value is
written as in TOML; text needs no quotes. What has a name is chosen by it in brackets, and without them every workload,
or every method, is meant:

| to change | type |
|---|---|
| one key of the suite | `--set trials.blocks=5` |
| a key of every workload | `--set workload.train.epochs=2` |
| of one workload | `--set 'workload[small].train.epochs=2'` |
| a parameter of every method | `--set method.epsilon=0.01` |
| of one of two methods | `--set 'method[gradsamp].skip=every:4'` |
| of one method in a stack | `--set 'method[ssprop+dropout].ssprop.drop=0.5'` |

The quotes are for the shell, which reads brackets itself. The name is the one in the report, without its sweep; a
parameter that is set is no longer swept."""

# What is asked, what is said before, the lines of the suite, what is said after.
RECIPES: tuple[tuple[str, str, str, str], ...] = (
    (
        "My own model",
        "A function in a file beside the suite. It is told the shape of a sample and how many classes there "
        "are; every other key is one of its arguments. `energybench new model mine` writes one that works.",
        """
[[workload]]
name  = "mine"
model = { use = "mine.py:mine", width = 32 }
data  = { use = "digits", batch = 64 }
train = { epochs = 8, lr = 0.1 }
""",
        "Any classifier of torchvision goes by its name, `resnet18`; on small images its ResNets take `stem = "
        '"small"`.',
    ),
    (
        "My own images",
        "A folder of images by its path from the suite's folder, in one of three layouts: "
        "`pets/train/<class>/*` beside `pets/test/<class>/*`, or beside `pets/val/<class>/*`; or "
        "`pets/<class>/*` alone, of which `split` keeps a share of each class for testing.",
        """
[[workload]]
name  = "pets"
model = { use = "resnet18", stem = "small" }
data  = { use = "./pets", split = 0.2, batch = 32, augment = ["flip", "crop4"], options = { size = 64 } }
train = { epochs = 8, lr = 0.05, momentum = 0.9, schedule = "cosine" }
""",
        "`size` is the side in pixels that every image is brought to when it is read; without it, the first "
        "image's own height and width. Which images are for testing depends on `split_seed` and their names "
        "alone, so that it is the same on every machine; the record says how many there are, and has a "
        "checksum of them. A class needs a folder of its own and two images; subfolders are looked into, "
        "links are followed, hidden files are not images.",
    ),
    (
        "Data that are no images",
        "A function that returns tensors, or trees of them. `energybench new data mine` writes one that works.",
        """
[[workload]]
name  = "signals"
model = { use = "mlp", hidden = [64] }
data  = { use = "mine.py:signals", batch = 32, options = { samples = 512 } }
train = { epochs = 8, optimizer = "adamw", lr = 1e-3 }
""",
        "",
    ),
    (
        "One method with several values, a stack, and a method of mine",
        "A sweep makes one variant for each value, or for each combination. A stack is an array, outermost "
        "first, with a table of parameters for each.",
        """
[[method]]
use   = "gradsamp"
sweep = { skip = ["every:2", "every:4"], location = ["median", "mean"] }

[[method]]
name    = "ssprop+dropout"
use     = ["ssprop", "dropout"]
ssprop  = { drop = 0.8 }
dropout = { p = 0.2 }

[[method]]
use    = "half.py"                            # energybench new method half; or its name, if it is in ./methods
every  = 2
claims = { training = "50 %", from = "our paper, Table 1" }
""",
        "`energybench list gradsamp` prints the parameters of a method, what they may be, and an example.",
    ),
    (
        "Several seeds",
        "Each block is everything once, with a seed of its own: the suite's plus the block's number. The same "
        "block means the same initial weights and order of samples for every method, so more blocks are more "
        "seeds.",
        """
[trials]
blocks = 10
seed   = 2026
""",
        "From three blocks on there are verdicts. `--add-blocks 5` adds to a finished run, which is "
        "exploratory and changes no verdict.",
    ),
    (
        "What does it cost to reach a quality?",
        "With a target the report also compares time and energy up to the first evaluation that reaches it.",
        """
[[workload]]
name   = "to 90 %"
model  = { use = "cnn", channels = [16, 32] }
data   = { use = "digits", batch = 64 }
train  = { epochs = 20, lr = 0.1, momentum = 0.9 }
target = { metric = "accuracy", at_least = 0.9 }
""",
        "",
    ),
    (
        "Run until it is decided",
        "`energybench run SUITE --until-decided` looks after the blocks that the suite declares and ends when "
        "every comparison is decided. That it may look is paid for in confidence, so it must be declared "
        "before.",
        """
[trials]
blocks     = 3
blocks_max = 24
""",
        "It looks after 3, 6, 12 and 24 blocks then, or after those in `looks`.",
    ),
    (
        "My own script, in any language",
        "A workload and its methods may be commands. They are told their seed, and quality is read from what "
        "they print.",
        """
[accept]
quality = { metric = "accuracy", loses_at_most = "0.5 pp" }

[[workload]]
name    = "training"
command = "python train.py --epochs {epochs} --seed {seed}"
options = { epochs = 5 }
quality = { from = "json", key = "accuracy" }

[[method]]
name    = "early stop"
command = "python train.py --epochs {epochs} --seed {seed} --early-stop"
""",
        "More on this: [compare two scripts](commands.md).",
    ),
    (
        "Fail a build",
        "What a run must show. `run`, `report --require` and `compare` end with 1 where it is not met, and "
        "with 4 under `--strict` where it is left undecided.",
        """
[[require]]
method         = "gradsamp*"
saves_at_least = "10 %"

[[require]]
never = ["quality lost"]
""",
        "More on this: [gate a build](gates.md).",
    ),
    (
        "Several workloads, and pairs that make no sense",
        "`extends` takes every key of another workload that is not written again. `[[skip]]` leaves pairs "
        "out, with the reason in the report.",
        """
[[workload]]
name  = "cnn"
model = { use = "cnn", channels = [16, 32] }
data  = { use = "digits", batch = 64 }
train = { epochs = 8, lr = 0.1 }

[[workload]]
name    = "mlp"
extends = "cnn"
model   = { use = "mlp", hidden = [128] }

[[method]]
use = "ssprop"

[[skip]]
workload = "mlp"
method   = "ssprop*"
because  = "ssProp replaces convolutions, and an MLP has none"
""",
        "",
    ),
    (
        "Joules or nothing, and CO2e",
        "Where a sensor is required and not there, the run does not begin (exit 5). `energybench doctor` says "
        "what this machine can measure.",
        """
[measure]
energy = "require"
carbon = { intensity = "56 g/kWh", source = "RTE 2023" }
""",
        "More on this: [how energy is measured](measurement.md), [carbon](carbon.md).",
    ),
)
