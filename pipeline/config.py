"""The typed configuration, on one page.

Every field stands below with its type, default and meaning, and something reads it. `config_io` reads files and words.
"""

from pathlib import Path
from typing import Annotated, Any, Literal, Self, get_args, get_origin

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    field_validator,
    model_validator,
)

from pipeline.deepspeed_keys import check as check_deepspeed_keys
from pipeline.errors import UserError
from pipeline.own import check_recipe, check_task, check_tracker
from pipeline.views import Scales, view_crops
from pipeline.views import parse as parse_view

Positive = Annotated[int, Field(gt=0)]
NotNegative = Annotated[float, Field(ge=0)]
Fraction = Annotated[float, Field(ge=0, le=1)]


def _view(value: Any) -> str:
    parse_view(str(value))  # raises ValueError
    return str(value)  # YAML reads 50 as a number


View = Annotated[str, BeforeValidator(_view)]
Recipe = Annotated[str, AfterValidator(check_recipe)]
Task = Annotated[str, AfterValidator(check_task)]
Tracker = Annotated[str, AfterValidator(check_tracker)]


class Section(BaseModel):
    model_config = ConfigDict(
        extra="forbid", frozen=True, allow_inf_nan=False, use_attribute_docstrings=True, protected_namespaces=()
    )

    @field_validator("*", mode="before")
    @classmethod
    def _read_none(cls, value: Any, info: Any) -> Any:
        """`none` is how --help writes the default of an optional key; a section with nothing in it is all defaults."""
        annotation = cls.model_fields[info.field_name].annotation
        if value is None and isinstance(annotation, type) and issubclass(annotation, Section):
            return {}
        if isinstance(value, str) and value.lower() == "none" and type(None) in get_args(annotation):
            return None
        return value

    @field_validator("*", mode="before")
    @classmethod
    def _read_list(cls, value: Any, info: Any) -> Any:
        """`a,b` is a list as `[a, b]` is, and one value a list of one."""
        if get_origin(cls.model_fields[info.field_name].annotation) is not tuple or value is None:
            return value
        if isinstance(value, str):
            return [part.strip() for part in value.split(",")] if value.strip() else []
        return value if isinstance(value, (list, tuple, dict)) else [value]

    @field_validator("*", mode="before")
    @classmethod
    def _refuse_bool_as_number(cls, value: Any, info: Any) -> Any:
        parts = value if isinstance(value, (list, tuple)) else [value]
        annotation = cls.model_fields[info.field_name].annotation
        if any(isinstance(part, bool) for part in parts) and bool not in (annotation, *get_args(annotation)):
            raise ValueError("is true or false, which is no value for this key")
        return value


class Data(Section):
    train: str | None = None
    """Folder or URL (s3://, gs://, https://, hf://) of the packed training set; it holds manifest.json."""
    validation: str | None = None
    """Folder or URL of the packed validation set; none: training goes without evaluation."""
    cache: Path = Path("~/.cache/tencrop")
    """Folder for shards behind URLs, on a disk of the machine; all its processes and jobs share it."""
    cache_gb: Annotated[float, Field(gt=0)] = 100.0
    """Most gigabytes (10^9 bytes) in that folder; the shards that were not used for longest go first."""
    recipe: Recipe = "alexnet"
    """How training windows are chosen: alexnet (a crop of the central square), vgg (random scale), inception (random
    area and aspect ratio), or package.module:function of your own, called as those of pipeline/data/crops.py with the
    settings crop_px and pca."""
    crop_px: Positive = 224
    """Side of the square that the network sees, in pixels."""
    resize_px: Positive = 256
    """Short side before cropping, in recipe alexnet and in evaluation (there also called test scale, or Q; crop_px of
    it is the crop fraction: 224 of 256 is 0.875)."""
    interpolation: Literal["bilinear", "bicubic"] = "bilinear"
    """Filter that images are resized with."""
    antialias: bool = True
    """Whether that filter grows with what it shrinks, as PIL's; false: as torch's interpolate does it by default.
    Without it bicubic differs between GPU (coefficient -0.5) and CPU (-0.75)."""
    scale_px: tuple[Positive, Positive] = (256, 512)
    """Range of the short side before cropping, in recipe vgg."""
    area: tuple[Fraction, Fraction] = (0.08, 1.0)
    """Range of the window's share of the image, in recipe inception."""
    aspect: tuple[NotNegative, NotNegative] = (3 / 4, 4 / 3)
    """Range of the window's width over height, in recipe inception."""
    pca_std: NotNegative = 0.1
    """Standard deviation of the PCA colour noise (AlexNet 2012, section 4.1); 0 turns it off."""
    pca: Literal["imagenet", "shards"] = "imagenet"
    """Whose RGB covariance the colour noise follows: ImageNet's, or the one measured when data.train was packed."""
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    """Subtracted from R, G, B in 0..1."""
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)
    """R, G, B in 0..1 are divided by this, after the mean."""
    shuffle: Literal["global", "windowed"] = "global"
    """global: a permutation of all samples per epoch. windowed: shards, then samples within `window_shards` shards."""
    window_shards: Positive = 16
    """How many shards a windowed shuffle mixes."""
    decoder: Literal["auto", "cpu", "gpu"] = "auto"
    """Where images are decoded; auto: on the GPU when there is one."""
    decode_whole: bool = False
    """Decode whole images and cut the window out of them, instead of decoding the window alone (`launch.bench loader`
    tries both)."""
    hw_decoder_load: Fraction = 0.65
    """Share of JPEGs that a GPU's hardware decoder gets, where it has one; its cores and the CPU's decode the rest
    (`launch.bench loader` tries several)."""
    threads: Positive | None = None
    """Threads per process to decode, and on a CPU as many to resize; none: the machine's cores over its processes."""
    prefetch: Positive = 2
    """Batches that are prepared ahead."""
    max_bad_images: Annotated[int, Field(ge=0)] = 100
    """More images than so many that cannot be decoded end the run; each costs its row until then."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.crop_px > self.resize_px:
            raise ValueError(f"data.crop_px={self.crop_px} must not be more than data.resize_px={self.resize_px}")
        for name in ("scale_px", "area", "aspect"):
            low, high = getattr(self, name)
            if not 0 < low <= high:
                raise ValueError(f"data.{name}=[{low}, {high}] must be a range: 0 < low <= high")
        if self.recipe == "vgg" and self.scale_px[0] < self.crop_px:
            raise ValueError(f"data.scale_px starts at {self.scale_px[0]}, below data.crop_px={self.crop_px}")
        if min(self.std) <= 0:
            raise ValueError(f"data.std={list(self.std)} must be positive")
        return self

    def scales(self) -> Scales:
        """The scales of views that name none: resize_px, and the three of VGG section 4.2, which are S and S - 32, S +
        32 after training at one scale S, the ends and the middle after training on a range."""
        low, high = self.scale_px if self.recipe == "vgg" else (self.resize_px, self.resize_px)
        three = (low - 32, low, low + 32) if low == high else (low, (low + high) // 2, high)
        return Scales(self.resize_px, three)


class Model(Section):
    name: str = "alexnet"
    """alexnet_2012, alexnet, vgg11, vgg13, vgg16c, vgg16, vgg19 (and _bn), torchvision:NAME, package.module:factory."""
    num_classes: Positive | None = None
    """Outputs; none: as many as the training set has classes."""
    width: Annotated[float, Field(gt=0)] | None = None
    """Factor on the numbers of channels and hidden units; none: the model's own (1)."""
    dropout: Annotated[float, Field(ge=0, lt=1)] | None = None
    """Dropout of the hidden fully connected layers; none: the model's own (0.5)."""
    groups: Positive | None = None
    """Groups of alexnet_2012's convolutions 2, 4 and 5; none: 2, as in the paper. 1 is the textbook's single tower."""
    init: Literal["kaiming", "glorot", "paper"] | None = None
    """VGG's initialisation; none: kaiming. The paper's own needs layers of a trained vgg11 to train from: grow_from."""
    weights: str | None = None
    """Start from these weights: a run folder (there the best checkpoint), a checkpoint folder, a .safetensors or torch
    file, or `torchvision` (published)."""
    reset_head: bool = False
    """With `weights`: allow another number of classes, and start the last layer afresh."""
    grow_from: str | None = None
    """Start a deeper VGG from the first four convolutions and the linear layers of a trained vgg11 (of vgg11_bn for the
    _bn ones), as the paper did: its run folder (there the best checkpoint), a checkpoint folder, or a .safetensors or
    torch file."""

    def settings(self) -> dict[str, Any]:
        """The optional settings that were given, for `models.build`."""
        chosen = {name: getattr(self, name) for name in ("width", "dropout", "groups", "init")}
        return {name: value for name, value in chosen.items() if value is not None}


class Optimizer(Section):
    lr: Annotated[float, Field(gt=0)] = 0.01
    """Learning rate at its highest, for the whole global batch (it is not scaled by anything)."""
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    """Momentum of SGD."""
    nesterov: bool = False
    """Nesterov's momentum."""
    lr_in_velocity: bool = False
    """The papers' update, v = momentum v - lr (weight_decay w + g); w += v, which differs from PyTorch's for some dozen
    steps after the learning rate changes."""
    weight_decay: NotNegative = 5e-4
    """Weight decay of weights."""
    weight_decay_bias_norm: NotNegative | None = None
    """Weight decay of biases and normalisation layers; none: as weights, which is what the papers did."""
    clip_norm: NotNegative = 0.0
    """Largest norm of the whole gradient; 0: no clipping."""


class Schedule(Section):
    kind: Literal["constant", "step", "multistep", "cosine", "polynomial", "plateau"] = "constant"
    """Shape of the learning rate after the warmup."""
    warmup_epochs: NotNegative = 0.0
    """Linear rise from lr / steps to lr over so many epochs."""
    factor: Annotated[float, Field(gt=0, lt=1)] = 0.1
    """step, multistep, plateau: what the learning rate is multiplied by."""
    every_epochs: Annotated[float, Field(gt=0)] = 30.0
    """step: epochs between drops."""
    milestones: tuple[Annotated[float, Field(gt=0)], ...] = ()
    """multistep: the epochs at which it drops."""
    power: Annotated[float, Field(gt=0)] = 2.0
    """polynomial: exponent."""
    final_lr: NotNegative = 0.0
    """cosine, polynomial: learning rate at the end of training."""
    patience: Positive = 5
    """plateau: evaluations without a better validation top-1 error before a drop."""
    max_drops: Positive = 3
    """plateau: drops at most (the papers dropped three times)."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.kind == "multistep" and not self.milestones:
            raise ValueError("schedule.kind=multistep needs schedule.milestones, for example [30, 60, 80]")
        if list(self.milestones) != sorted(set(self.milestones)):
            raise ValueError(f"schedule.milestones={list(self.milestones)} must rise")
        return self


class Train(Section):
    epochs: Annotated[float, Field(gt=0)] = 90.0
    """Length of the run in epochs; parts of an epoch are fine."""
    global_batch: Positive = 128
    """Images per optimizer step, over all processes; it does not change with their number."""
    micro_batch: Positive | None = None
    """Most images per process at once; a larger share is accumulated. None: the whole share at once."""
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Label smoothing of the cross-entropy."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """Arithmetic of the network, with fp32 weights; auto: bf16 autocast on a GPU, fp32 on a CPU."""
    zero_stage: Literal[0, 1, 2] = 0
    """DeepSpeed's ZeRO: 0 keeps all on each GPU; 1 divides the optimizer's state among them, 2 the gradients too, which
    saves up to 8 bytes a parameter and costs time. A run may go on at another stage."""
    reduction: Literal["fp32", "bf16"] = "fp32"
    """What gradients are averaged over processes in; bf16 halves what a slow network has to carry, and rounds."""
    compile: bool | None = None
    """Let torch.compile fuse the network's operators, which takes half a minute at each start and draws other dropout
    masks (`launch.bench step --compile` tells what it gains); none: on a GPU, if there is a C compiler."""
    log_every_steps: Positive = 50
    """Steps between logged points."""
    checkpoint_every_steps: Positive | None = None
    """Steps between checkpoints, beside the one at each epoch's end."""
    checkpoint_every_minutes: Annotated[float, Field(gt=0)] | None = None
    """Minutes between checkpoints, beside those by steps and epochs."""
    keep_checkpoints: Positive = 3
    """How many checkpoints stay; the oldest go first."""
    stall_minutes: NotNegative = 30.0
    """Minutes in which no process comes to a new point (data, a step, a batch of an evaluation, a checkpoint) until
    torchrun's launcher ends the job; it tells after 20 s where it hangs. 0: it waits for ever."""

    def uses_bf16(self, on_gpu: bool) -> bool:
        """Whether networks run under bf16 autocast."""
        return self.precision == "bf16" or (self.precision == "auto" and on_gpu)

    def split(self, world: int) -> tuple[int, int]:
        """(micro_batch, micro_steps) of one process of `world`; their product times `world` is the global batch.

        Raises UserError with the sizes that would work.
        """
        share, rest = divmod(self.global_batch, world)
        if rest:
            fitting = [size for size in range(1, self.global_batch + 1) if self.global_batch % size == 0]
            near = sorted(sorted(fitting, key=lambda size: abs(size - world))[:4])
            lower, upper = share * world, (share + 1) * world
            raise UserError(
                f"train.global_batch={self.global_batch} does not divide among {world} processes. Start "
                f"{' or '.join(map(str, near))} processes (NPROC), or set train.global_batch to "
                f"{' or '.join(str(size) for size in (lower, upper) if size)}"
            )
        micro_steps = next(
            n for n in range(1, share + 1) if share % n == 0 and share // n <= (self.micro_batch or share)
        )
        return share // micro_steps, micro_steps


class Evaluation(Section):
    every_epochs: Annotated[float, Field(gt=0)] = 1.0
    """Epochs between evaluations during training; the last step is always followed by one."""
    views: tuple[View, ...] = ("centre",)
    """Views scored during training; the first one decides which checkpoint is the best. Of centre, five, ten, 50, 150,
    dense; dense@384 names a scale, dense@256-384-512 several, 150+dense averages two."""
    corners: Literal["square", "whole"] = "square"
    """Where five and ten crops have their corners: of the central square, as in the 2012 paper, or of the whole image,
    as torchvision's TenCrop has them."""
    micro_batch: Positive = 64
    """Images per process that are read at once; the network takes 32 rows of crops at a time on a CPU, 256 on a GPU."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if not self.views or len(set(self.views)) != len(self.views):
            raise ValueError(f"evaluation.views={list(self.views)} must name each view once")
        return self


class Wandb(Section):
    project: str = "tencrop"
    """Project on Weights & Biases."""
    entity: str | None = None
    """Team or user; none: the account's default."""
    name: str | None = None
    """Name of the run; none: the run folder's name."""
    tags: tuple[str, ...] = ()
    """Tags of the run."""


class Config(Section):
    run: Path | None = None
    """Run folder: checkpoints, metrics.jsonl, config.yaml; training goes on where it stopped. Default: runs/CONFIG."""
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0
    """Seed of the order, the windows, the colours, the initial weights and dropout."""
    tracking: Tracker = "wandb"
    """wandb: log to Weights & Biases, offline without an account or a network; none; or package.module:class of your
    own, see pipeline/tracking/sink.py. metrics.jsonl is written in any case."""
    task: Task = "classification"
    """What is learned: classification, or package.module:class of your own, see pipeline/tasks/task.py (launch.evaluate
    and launch.export know classification alone)."""
    data: Data = Data()
    model: Model = Model()
    optimizer: Optimizer = Optimizer()
    schedule: Schedule = Schedule()
    train: Train = Train()
    evaluation: Evaluation = Evaluation()
    wandb: Wandb = Wandb()
    deepspeed: dict[str, Any] = {}
    """Keys that DeepSpeed gets as they are: flops_profiler, comms_logger, bucket sizes of zero_optimization,
    wall_clock_breakdown, memory_breakdown, dump_state."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.schedule.warmup_epochs >= self.train.epochs:
            raise ValueError(
                f"schedule.warmup_epochs={self.schedule.warmup_epochs:g} must be less than "
                f"train.epochs={self.train.epochs:g}: set it lower too, 0 for no warmup"
            )
        if self.schedule.milestones and self.schedule.milestones[-1] >= self.train.epochs:
            raise ValueError(
                f"schedule.milestones ends at {self.schedule.milestones[-1]:g}, but training ends at "
                f"train.epochs={self.train.epochs:g}, so that drop would never come"
            )
        if self.schedule.kind == "plateau" and self.data.validation is None:
            raise ValueError("schedule.kind=plateau follows the validation error: set data.validation")
        if self.schedule.final_lr > self.optimizer.lr:
            raise ValueError(
                f"schedule.final_lr={self.schedule.final_lr:g} is above optimizer.lr={self.optimizer.lr:g}"
            )
        for view in self.evaluation.views:
            smallest = min(crop.scale_px for crop, _ in view_crops(view, self.data.scales()))
            if smallest < self.data.crop_px:
                raise ValueError(
                    f"evaluation.views: {view} looks at a short side of {smallest} px, below data.crop_px="
                    f"{self.data.crop_px}. Name larger scales behind an @"
                )
        check_deepspeed_keys(self.deepspeed, self.train.zero_stage)
        if self.deepspeed.get("flops_profiler", {}).get("enabled") and self.train.compile is not False:
            raise ValueError("deepspeed.flops_profiler counts nothing in a compiled network: set train.compile=false")
        if self.optimizer.nesterov and self.optimizer.lr_in_velocity:
            raise ValueError("optimizer.nesterov=true is not the papers' update: set optimizer.lr_in_velocity=false")
        if self.optimizer.nesterov and self.optimizer.momentum == 0:
            raise ValueError("optimizer.nesterov=true needs optimizer.momentum above 0")
        return self
