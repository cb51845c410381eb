"""Who can take part in a contest: ours in each form, peers, and limits.

Peers are programs of other projects. Their scripts lie in tests/benchmarks of the repository and are only run when they
are there.
"""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from pipeline.bench.surroundings import PEERS


class Contestant(NamedTuple):
    """The program, the form of the photos that it reads, its settings, and where it can run.

    `program` is a module of pipeline.bench, or a peer's script in PEERS. `limits` name the contestants that do only
    what this one cannot do without; of several the smallest counts.
    """

    program: str
    form: str
    settings: tuple[str, ...] = ()
    in_ffcv: bool = False
    gpu_alone: bool = False
    limits: tuple[str, ...] = ()

    @property
    def script(self) -> Path | None:
        """Of a peer."""
        return PEERS / self.program if self.program.endswith(".py") else None

    @property
    def is_here(self) -> bool:
        """A wheel holds ours and the limits; the peers' scripts are in the repository alone."""
        return self.script is None or self.script.is_file()

    @property
    def command(self) -> list[str]:
        """What follows Python's name."""
        return [str(self.script)] if self.script else ["-m", f"{__package__}.{self.program}"]


REFERENCE = "ours"
HARDWARE_SHARES = (0, 50, 80, 100)  # percent; the default is 65


def _ours(program: str, limits: Callable[[str], tuple[str, ...]]) -> dict[str, Contestant]:
    """Ours in each storage form, and with each way of decoding that a GPU offers."""
    forms = {"": "packed", "_short256": "packed_short256", "_raw256": "packed_raw256"}
    contestants = {f"ours{end}": Contestant(program, form, limits=limits(end)) for end, form in forms.items()}
    ways = {"whole": "data.decode_whole=true", "on_cpu": "data.decoder=cpu"}
    ways |= {f"hardware{share}": f"data.hw_decoder_load={share / 100}" for share in HARDWARE_SHARES}
    for end, setting in ways.items():
        contestants[f"ours_{end}"] = Contestant(
            program, "packed", (setting,), gpu_alone=end != "whole", limits=limits("")
        )
    return contestants


_EAGER = ("train.compile=false",)
_DECODING = {
    "limit_dali": Contestant("loaders.limit_dali", "packed"),
    "limit_dali_whole": Contestant("loaders.limit_dali", "packed", ("data.decode_whole=true",)),
    "limit_dali_short256": Contestant("loaders.limit_dali", "packed_short256"),
    "limit_dali_raw256": Contestant("loaders.limit_dali", "packed_raw256", gpu_alone=True),
}
LOADERS = {
    **_ours("loaders.ours", lambda end: (f"limit_dali{end}",)),
    "dali_reader": Contestant("loaders/dali_reader.py", "packed"),
    "torchvision_folder": Contestant("loaders/torchvision_folder.py", "images"),
    "torchvision_v2": Contestant("loaders/torchvision_v2.py", "images"),
    "webdataset_torchvision": Contestant("loaders/webdataset_torchvision.py", "packed"),
    "timm_loader": Contestant("loaders/timm_loader.py", "images"),
    "ffcv_jpeg": Contestant("loaders/ffcv_loader.py", "ffcv_jpeg", in_ffcv=True),
    "ffcv_raw": Contestant("loaders/ffcv_loader.py", "ffcv_raw", in_ffcv=True),
    **_DECODING,
    "limit_simplejpeg": Contestant("loaders.limit_simplejpeg", "images"),
    "limit_opencv": Contestant("loaders.limit_opencv", "images"),
    "limit_torchvision": Contestant("loaders.limit_torchvision", "images"),
}
TRAINERS = {
    **_ours("trainers.ours", lambda end: ("limit_step", f"limit_dali{end}")),
    "torchvision_reference": Contestant("trainers/torchvision_reference.py", "images"),
    "timm_train": Contestant("trainers/timm_train.py", "images"),
    "dali_example": Contestant("trainers/dali_example.py", "packed"),
    "ffcv_jpeg": Contestant("trainers/ffcv_train.py", "ffcv_jpeg", in_ffcv=True),
    "ffcv_raw": Contestant("trainers/ffcv_train.py", "ffcv_raw", in_ffcv=True),
    "ours_eager": Contestant(
        "trainers.ours", "packed", _EAGER, gpu_alone=True, limits=("limit_step_eager", "limit_dali")
    ),
    "limit_step": Contestant("trainers.limit_step", "packed"),
    "limit_step_eager": Contestant("trainers.limit_step", "packed", _EAGER, gpu_alone=True),
    **_DECODING,
}
FIELDS = {"loader": LOADERS, "train": TRAINERS}
