"""The tables of a suite's file as frozen models: keys, types, units, defaults and bounds."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Annotated, Any, Literal

from pydantic import (
    BeforeValidator,
    Discriminator,
    Field,
    SerializerFunctionWrapHandler,
    Strict,
    Tag,
    WithJsonSchema,
    model_serializer,
    model_validator,
)
from pydantic.config import JsonDict

from energybench.common.name_patterns import matches
from energybench.common.renamed import renamed
from energybench.common.units import Bytes, Intensity, Points, Ratio, Seconds, WarmupAmount
from energybench.stats.interim import declared
from energybench.stats.paired import FEWEST_BLOCKS, RowVerdict
from energybench.suite.messages import KeyedError
from energybench.suite.quality_tables import QualityTable, TargetTable, WorkloadAcceptTable
from energybench.suite.sweep_keys import plain_name
from energybench.suite.table import Name, OpenTable, Several, SuiteTable
from energybench.suite.variants import Variant, toml

LONGEST_S = 1e8  # three years
# What a swept key of a workload holds: values, or keys below it.
SWEPT: JsonDict = {"anyOf": [{"type": "array", "minItems": 1, "uniqueItems": True}, {"type": "object"}]}
Beta = Annotated[float, Field(ge=0, lt=1)]
MOST_DEVICES = 64  # of one trial, on one node


def _parallel(value: Any) -> Any:
    """What shards a model over the devices has no place for methods that see whole layers."""
    if isinstance(value, str) and value.lower().startswith("fsdp"):
        message = "FSDP shows a rank a shard of every tensor: gradsamp fits whole ones, and ssprop chooses among "
        message += "the channels of whole layers, so neither would be the method that is measured"
        hint = 'parallel = "ddp", or leave it out; an FSDP training of your own can be a command'
        raise KeyedError(message, "", hint)
    return value


def _quoted(value: Any) -> Any:
    """A pattern without quotes is to TOML a table in a table."""
    if isinstance(value, dict):
        raise KeyedError("a name with dots is one key", "", 'write it in quotes: "backbone.*" = 0.1')
    return value


Multiplier = Annotated[float, Field(gt=0, le=1e6), BeforeValidator(_quoted)]


class CooldownTable(SuiteTable):
    """Before each trial on a GPU, so that all start alike: a hot card draws more for the same work."""

    below_c: float | None = Field(
        default=None, gt=0, description="°C to wait for; else 10 °C above the card's at the start of the run"
    )
    longest: Seconds = Field(default="60 s", validate_default=True, ge=0, le=LONGEST_S, description="0 s: do not wait")


class TrialsTable(SuiteTable):
    """How often, in which order and for how long."""

    blocks: int = Field(default=5, ge=1, description="one block is every cell once, on one device")
    blocks_max: int | None = Field(
        default=None, ge=FEWEST_BLOCKS, examples=[20], description="the most blocks of --until-decided"
    )
    looks: Several[int] = Field(
        default=(),
        description="blocks after which --until-decided may look; else `blocks`, doubled again and again, to the most",
    )
    seed: int = Field(default=0, ge=0, lt=2**63, description="block b uses seed + b for all its cells")
    twin: bool = Field(default=True, description="run the baseline twice in each block: the A/A check")
    warmup: WarmupAmount = Field(
        default="20 s",
        validate_default=True,
        description='at most this long, until the time of a step settles; or exactly so many: "10 steps"',
    )
    limit: Seconds = Field(default="30 min", validate_default=True, gt=0, le=LONGEST_S, description="of one cell")
    turns: Annotated[int, Field(ge=2, le=1000)] | Literal["auto", "off"] = Field(
        default="auto",
        description="parts into which the trials of a block are cut and take turns; auto: trainings under two minutes",
    )
    threads: Annotated[int, Field(ge=1, le=4096)] | Literal["auto"] = Field(
        default="auto",
        description="CPU threads of a trial; auto: chosen once per run from short timings, where the processor trains",
    )
    devices: int = Field(
        default=1,
        ge=1,
        le=MOST_DEVICES,
        examples=[2],
        description="that train one trial together, a rank each: cards of this node, or parts of a CPU's threads",
    )
    parallel: Annotated[Literal["ddp"], BeforeValidator(_parallel)] = Field(
        default="ddp", description="how several devices train one model: each on a part of every batch"
    )
    cooldown: CooldownTable = Field(default_factory=lambda: CooldownTable())

    @model_validator(mode="after")
    def _takes_turns_on_one_device(self) -> TrialsTable:
        if self.devices > 1 and isinstance(self.turns, int):
            hint = 'turns = "off", or leave it out'
            raise KeyedError("trials on several devices run one after the other", "turns", hint)
        return self

    @model_serializer(mode="wrap")
    def _without_what_is_not_asked_for(self, as_table: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """A suite on one device is resolved to what it always was."""
        silent = [("devices", 1), ("parallel", "ddp")]
        return {key: value for key, value in as_table(self).items() if (key, value) not in silent}

    @model_validator(mode="after")
    def _can_be_looked_at(self) -> TrialsTable:
        if self.blocks_max is not None and self.blocks_max < self.blocks:
            raise KeyedError(f"fewer than blocks = {self.blocks}", "blocks_max", "at least as many as blocks")
        if self.looks and self.blocks_max is None:
            raise KeyedError("looks need the most blocks", "looks", "add blocks_max, equal to the last look")
        rising = all(b > a for a, b in pairwise((FEWEST_BLOCKS - 1, *self.looks)))
        if self.looks and (not rising or self.looks[-1] != self.blocks_max):
            hint = f"rising numbers of blocks from {FEWEST_BLOCKS} on, the last is blocks_max = {self.blocks_max}"
            raise KeyedError("looks must rise to the most blocks", "looks", hint)
        return self

    @property
    def given_threads(self) -> int | None:
        """Those that the suite names itself."""
        return None if self.threads == "auto" else self.threads

    @property
    def declared_looks(self) -> tuple[int, ...]:
        """When --until-decided may look; empty without `blocks_max`."""
        return self.looks or (declared(self.blocks, self.blocks_max) if self.blocks_max else ())


class CarbonTable(SuiteTable):
    """Where the electricity comes from."""

    country: Name | None = Field(
        default=None,
        examples=["FR", "FRA", "US-CA", "aws:eu-west-3"],
        description="ISO 3166 code of a country or a part of one, or a cloud's region",
    )
    intensity: Intensity | None = Field(default=None, description="of your own, in place of a country's")
    source: Name | None = Field(default=None, examples=["RTE 2023"], description="of the intensity")
    pue: float = Field(
        default=1.0, ge=1, le=1000, description="energy of the whole data centre per energy of its machines"
    )

    @model_validator(mode="after")
    def _one_figure_with_its_source(self) -> CarbonTable:
        if self.country is None and self.intensity is None:
            hint = 'country = "FR"; or intensity = "56 g/kWh" with source = "RTE 2023"'
            raise KeyedError("it names no country and gives no intensity", "", hint)
        if self.country is not None and self.intensity is not None:
            hint = "keep the country for codecarbon's figure, or the intensity for your own"
            raise KeyedError("there is a country too, and one figure can hold", "intensity", hint)
        if self.intensity is not None and not (self.source or "").strip():
            hint = 'say where it is from: source = "RTE 2023"'
            raise KeyedError("an intensity of your own needs its source", "intensity", hint)
        if self.intensity is None and self.source is not None:
            raise KeyedError("a country's figure names its source itself", "source", "leave it out")
        return self

    @model_serializer(mode="wrap")
    def _without_what_is_not_given(self, as_table: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """A suite that names a country is resolved to what it always was."""
        return {key: value for key, value in as_table(self).items() if value is not None}


class MeasureTable(SuiteTable):
    """Which sensors, and what becomes of their joules."""

    energy: Literal["off", "if available", "require"] = Field(
        default="if available",
        description="off: time alone; if available: what there is; require: refuse to run without a measured sensor",
    )
    gpus: Literal["used", "all"] | Several[Name] = Field(
        default="used", description="the card that trains, all cards, or UUIDs: for a model of yours that uses several"
    )
    meters: Several[Name] = Field(default=(), description="meters that other installed packages offer, by name")
    carbon: CarbonTable | None = None


@renamed(noise="margin")
class AcceptTable(SuiteTable):
    """What may be called a saving."""

    quality: QualityTable = Field(default_factory=QualityTable)
    margin: Ratio = Field(
        default="1 %", validate_default=True, le=0.99, description="the saving margin: what is smaller is no saving"
    )
    estimate_gap: Points = Field(
        default="2 pp", validate_default=True, description="how far estimated and counted may lie apart before a flag"
    )


class TaskTable(OpenTable):
    """`use` is a name or "file.py:Class"; other keys are its parameters. Without any the name alone will do."""

    use: Name = Field(examples=["classification"], description='a name or "file.py:Class"')


def _plain_task(value: Any) -> Any:
    """A table with nothing but a name means that name."""
    only_named = isinstance(value, dict) and value.keys() == {"use"} and isinstance(value["use"], str)
    return value["use"] if only_named else value


def _task_kind(value: Any) -> str:
    return "TaskTable" if isinstance(value, (dict, TaskTable)) else "TaskName"


AnyTask = Annotated[
    Annotated[Name, Tag("TaskName")] | Annotated[TaskTable, Tag("TaskTable")],
    Discriminator(_task_kind),
    BeforeValidator(_plain_task),
]


class ModelTable(OpenTable):
    """`use` is a name or "file.py:function"; other keys are passed to it, `weights` too if that is its argument."""

    use: Name = Field(examples=["resnet18"], description='a name, or "file.py:function", from the suite\'s folder')
    # Of any type: a function of the user's may have had such arguments before these were keys, and has them still.
    weights: Annotated[Any, WithJsonSchema({"type": "string", "minLength": 1})] = Field(
        default=None,
        examples=["start.pt"],
        description="a file of weights to start from, from the suite's folder: a saved state_dict, or safetensors",
    )
    weights_strict: Annotated[Any, WithJsonSchema({"type": "boolean"})] = Field(
        default=True, description="false: what the file lacks, or has in another shape, starts afresh: a new head"
    )

    @model_validator(mode="after")
    def _names_a_file(self) -> ModelTable:
        if self.use.partition(":")[0].endswith(".py"):
            return self
        if self.weights is not None and not (isinstance(self.weights, str) and self.weights):
            message = f"expected the name of a file, not {toml(self.weights)}"
            raise KeyedError(message, "weights", 'weights = "start.pt"')
        if not isinstance(self.weights_strict, bool):
            hint = "weights_strict = false, or leave it out"
            raise KeyedError(f"expected true or false, not {toml(self.weights_strict)}", "weights_strict", hint)
        if self.weights is None and "weights_strict" in self.model_fields_set:
            raise KeyedError("there are no weights", "weights_strict", 'add weights = "start.pt", or take it out')
        return self

    @model_serializer(mode="wrap")
    def _without_weights_that_are_not_given(self, as_table: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """A suite without them is resolved to what it always was."""
        absent = {"weights", "weights_strict"} - self.model_fields_set
        return {key: value for key, value in as_table(self).items() if key not in absent}


class DataTable(SuiteTable):
    """`use` is a name, the path of a folder of images, or "file.py:function", to which `options` are passed."""

    use: Name = Field(
        examples=["cifar10"],
        description='a name, a folder of images such as "./pets" (from the suite\'s folder), or "file.py:function"',
    )
    batch: int = Field(ge=1, le=2**40, examples=[128], description="samples per update")
    split: float | None = Field(
        default=None,
        gt=0,
        lt=1,
        examples=[0.2],
        description="share of each class that is kept for testing, where a folder of images has no test/ of its own",
    )
    split_seed: int = Field(default=0, ge=0, lt=2**63, description="which images those are; not the seed of the trials")
    augment: Several[Name] = Field(
        default=(), examples=[["flip", "crop4"]], description='of training images: "flip", "cropN" by up to N pixels'
    )
    subset: int | None = Field(default=None, ge=1, description="training samples kept")
    test_subset: int | None = Field(default=None, ge=1, description="test samples kept")
    resize: int | None = Field(
        default=None,
        ge=1,
        le=100_000,
        description="side in pixels that images are brought to, batch by batch on the device",
    )
    resident: Bytes = Field(default="2 GB", validate_default=True, description="up to here kept on the device")
    drop_last: bool = Field(default=False, description="leave out a last batch that is smaller than the others")
    workers: int = Field(default=2, ge=0, le=4096, description="processes that decode images")
    options: dict[str, Any] = Field(
        default_factory=dict,
        description="arguments of your function; of images size: the side in pixels that files are decoded to",
    )

    @model_validator(mode="after")
    def _seed_splits_something(self) -> DataTable:
        if self.split is None and "split_seed" in self.model_fields_set and self.split_seed:
            raise KeyedError("there is no split that it could seed", "split_seed", "add split = 0.2, or take it out")
        return self

    @model_serializer(mode="wrap")
    def _without_a_split_that_is_not_asked_for(self, as_table: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """A suite without one is resolved to what it always was."""
        split = ("split", "split_seed") if self.split is None else ()
        return {key: value for key, value in as_table(self).items() if key not in split}


class TrainTable(SuiteTable):
    """The recipe of plain training, which every method shares."""

    epochs: int = Field(ge=1, le=1_000_000, examples=[30], description="passes over the training samples")
    optimizer: Literal["sgd", "adam", "adamw", "adagrad", "adadelta"] = Field(default="sgd", description="torch's own")
    lr: float = Field(gt=0, examples=[0.1], description="learning rate at its highest")
    momentum: float = Field(default=0.0, ge=0, lt=1, description="of sgd")
    nesterov: bool = Field(default=False, description="Nesterov's momentum")
    betas: Annotated[tuple[Beta, Beta], Strict(False)] | None = Field(
        default=None, examples=[[0.9, 0.999]], description="of adam and adamw; else torch's default"
    )
    decay: float = Field(default=0.0, ge=0, description="weight decay, as the optimizer defines it")
    schedule: Literal["constant", "cosine", "linear", "step", "exponential"] = Field(
        default="constant",
        description='of the learning rate over the epochs, step by step; "step" and "exponential" epoch by epoch',
    )
    milestones: Several[float] = Field(default=(), description='epochs after which "step" multiplies the rate')
    factor: float = Field(
        default=0.1, gt=0, lt=1, description='of "step", at each milestone; of "exponential", after every epoch'
    )
    warmup_epochs: float = Field(default=0.0, ge=0, description="the learning rate rises from 0 over so many epochs")
    clip: float | None = Field(default=None, gt=0, description="largest norm of the gradient")
    accumulate: int = Field(default=1, ge=1, description="micro-batches per update")
    precision: Literal["fp32", "bf16", "fp16"] = Field(
        default="fp32", description="bf16, fp16: autocast of torch; fp16 with loss scaling"
    )
    label_smoothing: float = Field(default=0.0, ge=0, lt=1, description="share of the target given to all classes")
    activation: Literal["relu", "sigmoid", "tanh"] | None = Field(
        default=None, description="in place of the model's own hidden activations, where these are modules"
    )
    lr_multipliers: dict[Name, Multiplier] = Field(
        default_factory=dict,
        examples=[{"backbone.*": 0.1}],
        description="patterns of the names of the model's parameters, and multiples of the learning rate for them",
    )
    evaluate: Literal["at the end", "every epoch"] = Field(
        default="at the end",
        description="when the test set is looked at; after every epoch too it is outside the metered window",
    )

    @model_validator(mode="after")
    def _has_effect(self) -> TrainTable:
        """A setting that the optimizer ignores is a mistake, not a default."""
        for key in ("momentum", "nesterov"):
            if getattr(self, key) and self.optimizer != "sgd":
                raise KeyedError(f"{self.optimizer} has no {key}", key, 'remove it, or use optimizer = "sgd"')
        if (self.schedule == "step") != bool(self.milestones):
            hint = 'write both: schedule = "step", milestones = [100, 150]'
            key = "schedule" if self.milestones else "milestones"
            raise KeyedError('milestones are the epochs of schedule = "step", and it needs some', key, hint)
        if self.schedule == "exponential" and "factor" not in self.model_fields_set:
            message, hint = "after every epoch it multiplies the rate by a factor", "write it too: factor = 0.998"
            raise KeyedError(f'schedule = "exponential": {message}', "schedule", hint)
        if any(b <= a for a, b in pairwise((0.0, *self.milestones, float(self.epochs)))):
            hint = f"epochs in rising order, above 0 and below {self.epochs}"
            raise KeyedError("milestones must rise and lie inside the training", "milestones", hint)
        if self.warmup_epochs >= self.epochs:
            raise KeyedError("the learning rate would never arrive", "warmup_epochs", f"less than {self.epochs}")
        if self.nesterov and not self.momentum:
            raise KeyedError("nesterov needs momentum", "nesterov", "add momentum = 0.9")
        if self.betas and self.optimizer not in ("adam", "adamw"):
            raise KeyedError(f"{self.optimizer} has no betas", "betas", 'remove them, or use optimizer = "adamw"')
        return self

    @model_serializer(mode="wrap")
    def _without_what_is_not_asked_for(self, as_table: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """A suite without these keys is resolved to what it always was."""
        silent = [("evaluate", "at the end"), ("lr_multipliers", {})]
        return {key: value for key, value in as_table(self).items() if (key, value) not in silent}


def without_empty_sweep(table: dict[str, Any]) -> dict[str, Any]:
    """Of a workload that is written out: the key only where something is swept."""
    return {key: value for key, value in table.items() if key != "sweep" or value}


class WorkloadTable(SuiteTable):
    """What is trained: model, data and recipe."""

    name: Name = Field(examples=["small"], description="as the report and --set call it")
    task: AnyTask = Field(
        default="classification",
        description='a name or "file.py:Class"; with parameters { use = "...", parameter = value }',
    )
    extends: Name | None = Field(default=None, description="a workload whose other keys it takes")
    sweep: dict[str, Any] = Field(
        default_factory=dict,
        description='such as { "model.depth" = [2, 4] }: one workload for each value, and for each combination',
        json_schema_extra={"additionalProperties": SWEPT},
    )
    model: ModelTable
    data: DataTable
    train: TrainTable
    target: TargetTable | None = None
    accept: WorkloadAcceptTable | None = None

    @model_validator(mode="after")
    def _fits(self) -> WorkloadTable:
        if self.train.accumulate > self.data.batch:
            message = f"accumulate = {self.train.accumulate} splits a batch of {self.data.batch}"
            raise KeyedError(message, "train.accumulate", f"at most {self.data.batch}")
        return self

    @property
    def plain_name(self) -> str:
        """Without its sweep: "vit" of "vit[depth=2]"."""
        return plain_name(self.name, self.sweep)

    @property
    def task_use(self) -> str:
        """The task's name or file."""
        return self.task if isinstance(self.task, str) else self.task.use

    def settings(self) -> dict[str, Any]:
        """JSON-able and resolved, in SI units; where a value came from is no setting."""
        settings = self.model_dump(mode="json", by_alias=True)
        return {key: value for key, value in settings.items() if key not in ("extends", "sweep")}

    @model_serializer(mode="wrap")
    def _without_a_sweep_that_there_is_not(self, as_table: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """A suite without one is resolved to what it always was."""
        return without_empty_sweep(as_table(self))


class ClaimsTable(SuiteTable):
    """What the paper or author promises."""

    training: Ratio | None = Field(default=None, examples=["20 %"], description="share of a training that is saved")
    backward: Ratio | None = Field(default=None, examples=["40 %"], description="or share of the backward passes")
    source: str = Field(default="", alias="from", examples=["Table 2"], description="who says so, and where")

    @model_validator(mode="after")
    def _one_promise(self) -> ClaimsTable:
        if (self.training is None) == (self.backward is None):
            hint = 'claims = { training = "20 %", from = "..." }'
            raise KeyedError("a claim is about either training or backward", "backward", hint)
        return self

    def as_claim(self) -> dict[str, Any]:
        """The fields of record.Claim."""
        of, saving = ("training", self.training) if self.backward is None else ("backward", self.backward)
        return {"saving_rel": saving, "of": of, "source": self.source}


def _uses(value: Any) -> Any:
    names = [value] if isinstance(value, str) else value
    if not isinstance(names, list) or not names or not all(isinstance(name, str) and name for name in names):
        raise KeyedError(
            "expected a method, or an array of them, outermost first",
            "",
            'use = "method", or use = ["outer", "inner"]; energybench list',
        )
    return value


class TunedTable(SuiteTable):
    """What choosing the method's parameters cost, for the carbon report."""

    trials: int = Field(ge=1, le=10**9, examples=[20], description="full trainings, beyond what plain training took")


class MethodTable(OpenTable):
    """What changes. Other keys are the method's parameters; a stack has a table of them per method."""

    use: Annotated[str | list[str], BeforeValidator(_uses)] = Field(
        examples=["my_method.py"], description='a name, "file.py", "file.py:Class", or an array of them: a stack'
    )
    name: Name | None = Field(default=None, examples=["mine"], description="in the report; else what it uses")
    sweep: dict[str, Any] = Field(default_factory=dict, description="parameter = [values]: one variant for each")
    claims: ClaimsTable | None = None
    tuned: TunedTable | None = None
    control: Literal["auto", "matched", "none"] = Field(
        default="auto", description="also train plainly, for the steps that a method which trains less paid for"
    )


class PatternTable(SuiteTable):
    """Pairs of a workload and a method, by patterns of `*` and `?`."""

    workload: Name = Field(default="*", examples=["vit-*"], description="pattern of names")
    method: Name = Field(
        default="*", examples=["ssprop*"], description="pattern of labels, or of names without their sweep"
    )

    def fits(self, workload: Sequence[str], variant: Variant) -> bool:
        """Whether both patterns match; each, the name in the report or that without the sweep.

        workload: its names
        """
        return matches(self.workload, workload) and matches(self.method, [variant.label, variant.entry])


class SkipTable(PatternTable):
    """Pairs that are not run; patterns of `*` and `?`."""

    because: Name = Field(examples=["this model has no convolutions"], description="the reason, in the report")

    @model_validator(mode="after")
    def _leaves_something(self) -> SkipTable:
        if self.workload == self.method == "*":
            raise KeyedError("this skips everything", "", 'add workload = "..." or method = "..."')
        return self


class RequireTable(PatternTable):
    """What a run must show, else `run`, `report --require` and `compare` end with 1; patterns of `*` and `?`."""

    saves_at_least: Ratio | None = Field(
        default=None, description="the one-sided 99 % bound of the saving must reach it, with quality kept"
    )
    of: Literal["energy", "time"] | None = Field(
        default=None, description="what is saved; else energy where it was measured, and time elsewhere"
    )
    verdicts: Several[RowVerdict] = Field(default=(), alias="verdict", examples=[["saves"]], description="one of these")
    never: Several[RowVerdict] = Field(default=(), examples=[["quality lost"]], description="none of these")

    @model_validator(mode="after")
    def _asks_something(self) -> RequireTable:
        if self.saves_at_least is None and not self.verdicts and not self.never:
            hint = 'add saves_at_least = "5 %", verdict = ["saves"] or never = ["quality lost"]'
            raise KeyedError("this requires nothing", "", hint)
        if self.of is not None and self.saves_at_least is None:
            raise KeyedError("says of what, but not how much", "of", 'add saves_at_least = "5 %"')
        both = [word for word in self.verdicts if word in self.never]
        if both:
            raise KeyedError(f"'{both[0]}' is both asked for and forbidden", "never", "keep one of the two")
        return self
