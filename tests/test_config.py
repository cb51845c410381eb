"""The config: files and overrides, what is refused and in which words, how a global batch is split."""

import re
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from pipeline import config, hints
from pipeline.config import Config, Model, Train
from pipeline.config_io import apply, describe, dump, keys, load, parse
from pipeline.errors import UserError
from pipeline.unread import READ_BY

STORED = Path(__file__).parent / "fixtures" / "3a240df"
ROOT = Path(__file__).parents[1]
CONFIGS = sorted((ROOT / "configs").glob("*.yaml"))


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    """A config file that leaves every key at its default."""
    path = tmp_path / "recipe.yaml"
    path.write_text("")
    return path


def refused(path: Path, *words: str) -> str:
    with pytest.raises(UserError) as caught:
        load(path, list(words))
    return str(caught.value)


def leaves(tree: dict, prefix: str = "") -> dict:
    found = {}
    for key, value in tree.items():
        found |= leaves(value, f"{prefix}{key}.") if isinstance(value, dict) and value else {prefix + key: value}
    return found


# Files


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
def test_shipped_config_loads_and_survives_a_round_trip(path):
    settled = load(path)
    assert parse(yaml.safe_load(dump(settled)), "dumped") == settled


def test_empty_file_gives_the_defaults_and_a_run_folder_of_its_name(recipe):
    assert load(recipe) == Config(run=Path("runs/recipe"))


def test_missing_file_names_the_nearest(recipe):
    text = refused(recipe.with_name("recpie.yaml"))
    assert "recpie.yaml: there is no such config file" in text
    assert text.endswith(f"Did you mean {recipe}?")
    assert "Did you mean" not in refused(recipe.with_name("nope.yaml"))
    assert refused(Path("alexnet_cpu")).endswith(f"Did you mean {hints.ours('configs/alexnet_cpu.yaml')}?")


def test_a_list_that_the_shell_cut(recipe):
    text = refused(recipe, "data.mean=[0.485,")
    assert text == "'data.mean=[0.485,' is no whole list. Write it like data.mean=0.485,0.456,0.406"


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"a: [1", "no readable YAML file"),
        (b"\xff\xfe\xfa", "no readable YAML file"),
        (b"- a\n- b\n", "must hold 'key: value' lines, not list"),
        (b"1: 2\n", "must be strings"),
    ],
)
def test_file_that_is_no_config(recipe, content, reason):
    recipe.write_bytes(content)
    text = refused(recipe)
    assert str(recipe) in text
    assert reason in text


# Keys and types


@pytest.mark.parametrize(
    ("word", "hint"),
    [
        ("optimiser.lr=1", "Did you mean optimizer?"),
        ("data.crop=224", "Did you mean data.crop_px?"),
        ("train.global_bach=8", "Did you mean train.global_batch?"),
        ("lr=0.1", "Did you mean optimizer.lr?"),
        ("zzzzzz=1", "See --help for all keys"),
    ],
)
def test_unknown_key_names_the_nearest(recipe, word, hint):
    text = refused(recipe, word)
    assert "is no known key" in text
    assert hint in text


def test_unknown_key_is_not_answered_with_its_own_section(recipe):
    assert "Did you mean data?" not in refused(recipe, "data.zzz=1")


@pytest.mark.parametrize(
    ("word", "reason"),
    [
        ("optimizer.lr=fast", "optimizer.lr='fast' must be a valid number"),
        ("optimizer.lr=true", "optimizer.lr=True is true or false"),
        ("optimizer.lr=.nan", "optimizer.lr=nan must be a finite number"),
        ("optimizer.lr=.inf", "optimizer.lr=inf must be a finite number"),
        ("optimizer.lr=0", "optimizer.lr=0 must be greater than 0"),
        ("optimizer.lr=none", "optimizer.lr='none' must be a valid number"),
        ("optimizer.momentum=1", "optimizer.momentum=1 must be less than 1"),
        ("optimizer.nesterov=maybe", "optimizer.nesterov='maybe' must be a valid boolean"),
        ("train.global_batch=12.5", "train.global_batch=12.5 must be a valid integer"),
        ("train.global_batch=yes", "train.global_batch=True is true or false"),
        ("train.global_batch=-4", "train.global_batch=-4 must be greater than 0"),
        ("train.micro_batch=0", "train.micro_batch=0 must be greater than 0"),
        ("train.precision=fp16", "train.precision='fp16' must be 'auto', 'fp32' or 'bf16'"),
        ("data.std=[0.2]", "data.std"),
        ("data.mean=[0.5, x, 0.5]", "data.mean.1='x' must be a valid number"),
        ("data.train=3", "data.train=3"),
        ("model.name=7", "model.name=7 must be a valid string"),
        ("evaluation.views=[six]", "evaluation.views.0='six' is no view: 'six' must be one of centre, five, ten, 50"),
        (
            "evaluation.views=[150@256]",
            "evaluation.views.0='150@256' is no view: '150@256' is 50 crops at each of three",
        ),
        ("evaluation.views=[dense@200]", "dense@200 looks at a short side of 200 px, below data.crop_px=224"),
        ("seed=-1", "seed=-1 must be greater than or equal to 0"),
        ("data.mean=[0.5,0.5]", "data.mean=[0.5, 0.5] must have 3 values. Write it like data.mean=0.485,0.456,0.406"),
        ("optimiser.lr=1", "optimiser is no known key. Did you mean optimizer?"),
        ("data=photos", "data='photos' must be a valid dictionary"),
    ],
)
def test_ill_typed_value_is_told_with_key_and_value(recipe, word, reason):
    text = refused(recipe, word)
    assert text.startswith("command line:\n")
    assert str(recipe) not in text
    assert reason in text
    key, _, value = word.partition("=")
    recipe.write_text(f"{key.replace('.', ': {')}: {value}{'}' * key.count('.')}")
    assert refused(recipe).startswith(f"{recipe}:\n")


def test_mistakes_are_blamed_on_who_made_them(recipe):
    recipe.write_text("optimizer: {lr: fast, momentum: 2}\ntrain: {epochs: 3}\n")
    told = refused(recipe, "optimizer.momentum=3", "schedule.warmup_epochs=5").splitlines()
    assert told == [
        "command line:",
        "  optimizer.momentum=3 must be less than 1",
        f"{recipe}:",
        "  optimizer.lr='fast' must be a valid number, unable to parse string as a number",
    ]
    recipe.write_text("train: {epochs: 3}\n")
    assert refused(recipe, "schedule.warmup_epochs=5").startswith("command line:\n  schedule.warmup_epochs=5 must be")


def test_bool_among_numbers_is_refused(recipe):
    assert "is true or false" in refused(recipe, "data.mean=[true, 0.4, 0.4]")


def test_all_mistakes_are_told_at_once(recipe):
    text = refused(recipe, "optimizer.lr=x", "lr=3", "train.global_batch=0")
    assert len(text.splitlines()) == 4


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["data.crop_px=300"], "data.crop_px=300 must not be more than data.resize_px=256"),
        (["data.recipe=vgg", "data.scale_px=[512, 256]"], "data.scale_px=[512, 256] must be a range"),
        (["data.recipe=inception", "data.area=[0, 1]"], "data.area=[0.0, 1.0] must be a range"),
        (["data.recipe=inception", "data.aspect=[2, 1]"], "data.aspect=[2.0, 1.0] must be a range"),
        (["data.recipe=vgg", "data.scale_px=[200, 512]"], "data.scale_px starts at 200, below data.crop_px=224"),
        (["data.std=[0.2, 0, 0.2]"], "data.std=[0.2, 0.0, 0.2] must be positive"),
        (["schedule.kind=multistep"], "schedule.kind=multistep needs schedule.milestones"),
        (["schedule.kind=multistep", "schedule.milestones=[60, 30]"], "schedule.milestones=[60.0, 30.0] must rise"),
        (["schedule.kind=multistep", "schedule.milestones=[30, 30]"], "schedule.milestones=[30.0, 30.0] must rise"),
        (["schedule.warmup_epochs=5", "train.epochs=5"], "schedule.warmup_epochs=5 must be less than train.epochs=5"),
        (
            ["schedule.kind=multistep", "schedule.milestones=[30, 90]"],
            "schedule.milestones ends at 90, but training ends at train.epochs=90",
        ),
        (["schedule.kind=plateau"], "schedule.kind=plateau follows the validation error: set data.validation"),
        (["schedule.kind=cosine", "schedule.final_lr=0.02"], "schedule.final_lr=0.02 is above optimizer.lr=0.01"),
        (["optimizer.nesterov=true", "optimizer.momentum=0"], "optimizer.nesterov=true needs optimizer.momentum"),
        (["evaluation.views=[]"], "evaluation.views=[] must name each view once"),
        (["evaluation.views=[ten, ten]"], "evaluation.views=['ten', 'ten'] must name each view once"),
    ],
)
def test_contradiction_names_the_keys(recipe, words, reason):
    assert reason in refused(recipe, *words)


@pytest.mark.parametrize(
    "words",
    [
        ["data.crop_px=256"],
        ["data.recipe=vgg", "data.scale_px=[224, 224]"],
        ["schedule.kind=plateau", "data.validation=somewhere"],
        ["schedule.milestones=[30, 89.5]", "schedule.kind=multistep"],
        ["schedule.kind=cosine", "schedule.final_lr=0.01"],
    ],
)
def test_values_next_to_a_contradiction_are_fine(recipe, words):
    load(recipe, words)


# Overrides


@pytest.mark.parametrize(
    ("word", "key", "value"),
    [
        ("optimizer.lr=0.02", "optimizer.lr", 0.02),
        ("optimizer.lr=1e-3", "optimizer.lr", 1e-3),  # a string to YAML 1.1, a number to everybody else
        ("data.train=/a b/c=d", "data.train", "/a b/c=d"),
        ("data.train=none", "data.train", None),
        ("data.train=None", "data.train", None),
        ("data.train=", "data.train", None),
        ("tracking=none", "tracking", "none"),
        ('wandb.name="17"', "wandb.name", "17"),
        ("wandb.tags=[a, 'b c']", "wandb.tags", ["a", "b c"]),
        ("data.mean=[0.1, 0.2, 0.3]", "data.mean", [0.1, 0.2, 0.3]),
        ("data.mean=0.1,0.2,0.3", "data.mean", [0.1, 0.2, 0.3]),
        ("evaluation.views=[ten, 150+dense]", "evaluation.views", ["ten", "150+dense"]),
        ("evaluation.views=ten, 150+dense", "evaluation.views", ["ten", "150+dense"]),
        ("evaluation.views=50", "evaluation.views", ["50"]),
        ("wandb.tags=a", "wandb.tags", ["a"]),
        ("wandb.tags=[]", "wandb.tags", []),
        ("evaluation={every_epochs: 2}", "evaluation.every_epochs", 2.0),
        ("run=elsewhere", "run", "elsewhere"),
    ],
)
def test_override(recipe, word, key, value):
    recipe.write_text("data:\n  train: from the file\n")
    assert leaves(load(recipe, [word]).model_dump(mode="json"))[key] == value


def test_overrides_keep_their_neighbours_and_the_last_one_wins(recipe):
    recipe.write_text("optimizer: {momentum: 0.5, lr: 1.0}\ndata:\n")
    settled = load(recipe, ["optimizer.lr=0.3", "data.crop_px=64", "optimizer.lr=0.2"])
    assert (settled.optimizer.momentum, settled.optimizer.lr, settled.data.crop_px) == (0.5, 0.2, 64)


@pytest.mark.parametrize("word", ["optimizer.lr", "=3", "", "--lr"])
def test_word_without_a_key_or_value_is_no_override(recipe, word):
    assert refused(recipe, word).startswith(f"'{word}' is no override. Write key=value")


def test_override_that_is_no_yaml_says_to_quote_it(recipe):
    assert refused(recipe, "wandb.name=[a").endswith("""Quote it, for example 'wandb.name="..."'""")


@pytest.mark.parametrize(
    ("word", "told"),
    [
        ("data.recipe={x}", "data.recipe"),
        ("data.mean=0.5", "data.mean"),
        ("data.mean=0.5,x,0.5", "data.mean.1='x' must be a valid number"),
        ("evaluation.views=ten;dense", "evaluation.views.0='ten;dense' is no view"),
    ],
)
def test_a_wrong_list_shows_a_right_one(recipe, word, told):
    text = refused(recipe, word)
    assert told in text
    example = {"data.mean": "data.mean=0.485,0.456,0.406"}.get(word.partition("=")[0], "")
    assert example in text
    if example:
        load(recipe, [example])


# Keys that the chosen kind does not read

UNREAD = [
    ("schedule.milestones=30,60", "schedule.kind=cosine", "[30, 60] is read by schedule.kind=multistep"),
    ("schedule.final_lr=0.001", "schedule.kind=step", "is read by schedule.kind=cosine or polynomial"),
    ("schedule.power=3", "schedule.kind=constant", "set schedule.kind=polynomial"),
    ("data.area=0.2,1", "data.recipe=alexnet", "is read by data.recipe=inception alone, and it is alexnet"),
    ("data.scale_px=256,384", "data.recipe=inception", "set data.recipe=vgg"),
    ("data.window_shards=8", "data.shuffle=global", "data.window_shards=8 is read by data.shuffle=windowed alone"),
]  # fmt: skip


def in_yaml(*words: str) -> str:
    tree: dict = {}
    for word in words:
        apply(tree, word.replace("=", "=[", 1) + "]" if "," in word else word)
    return yaml.safe_dump(tree)


@pytest.mark.parametrize(("word", "kind", "told"), UNREAD)
def test_a_key_that_the_kind_does_not_read_is_refused_where_it_was_set(recipe, word, kind, told):
    listed = word.replace("=", "=[", 1) + "]" if "," in word else word
    text = refused(recipe, listed, kind)
    assert text.startswith("command line: ")
    assert told in text
    recipe.write_text(in_yaml(kind))
    assert refused(recipe, listed).startswith("command line: ")
    recipe.write_text(in_yaml(kind, word))
    text = refused(recipe)
    assert text.startswith(f"{recipe}: ")
    assert told in text


def test_a_word_that_chooses_another_kind_drops_the_keys_of_the_old_one_and_says_so(recipe):
    recipe.write_text("schedule: {kind: multistep, milestones: [3, 6], factor: 0.2}\ndata: {crop_px: 64}\n")
    told: list[str] = []
    settled = load(recipe, ["schedule.kind=cosine", "schedule.final_lr=0.001"], told.append)
    assert settled.schedule == config.Schedule(kind="cosine", final_lr=0.001)
    assert told == [
        f"schedule.kind=cosine does not read these keys of {recipe}, which are left out: schedule.factor, "
        "schedule.milestones"
    ]
    assert load(recipe, ["schedule.kind=step"], told.append).schedule.factor == 0.2
    told.clear()
    assert load(recipe, ["schedule.kind=multistep"], told.append).schedule.milestones == (3, 6)
    assert told == []
    assert "schedule.milestones=[1]" in refused(recipe, "schedule.kind=cosine", "schedule.milestones=[1]")


def test_what_is_stored_leaves_unread_keys_out_and_what_was_stored_before_is_read(recipe):
    kept = dump(Config(run=Path("x")))
    assert not set(READ_BY) & set(leaves(yaml.safe_load(kept)))
    old = load(STORED / "run-true" / "config.yaml")
    assert (old.schedule.kind, old.schedule.milestones, old.data.recipe) == ("multistep", (2,), "inception")
    told: list[str] = []
    assert load(STORED / "run-true" / "config.yaml", ["schedule.kind=cosine"], told.append).schedule.kind == "cosine"
    assert told == []
    assert "schedule.power=3 is read by" in refused(STORED / "run-true" / "config.yaml", "schedule.power=3")
    recipe.write_text(dump(old))
    assert load(recipe) == old


# There and back


@given(
    lr=st.floats(1e-12, 1e3),
    name=st.none() | st.text(st.characters(exclude_categories=["Cs"])),
    milestones=st.sets(st.floats(1e-3, 89)).map(sorted),
    tracking=st.sampled_from(["wandb", "none"]),
)
def test_dump_reads_back_as_the_same_config(lr, name, milestones, tracking):
    schedule = {"kind": "multistep", "milestones": milestones} if milestones else {}
    tree = {"optimizer": {"lr": lr}, "wandb": {"name": name}, "schedule": schedule}
    settled = parse(tree | {"tracking": tracking, "run": "runs/x"}, "made")
    assert parse(yaml.safe_load(dump(settled)), "dumped") == settled


def test_dump_is_a_file_that_load_reads(tmp_path, recipe):
    settled = load(
        recipe, ["data.train=somewhere", "run=here", "schedule.kind=multistep", "schedule.milestones=[1, 2]"]
    )
    (tmp_path / "dumped.yaml").write_text(dump(settled))
    assert load(tmp_path / "dumped.yaml") == settled


def test_configs_do_not_change():
    with pytest.raises(ValueError, match="frozen"):
        Config().seed = 3


# Help


def test_help_describes_every_key_with_its_default():
    lines = describe().splitlines()
    told = {lines[n].strip().partition("=")[0]: lines[n + 1] for n in range(0, len(lines), 2)}
    assert told.keys() == leaves(Config().model_dump(mode="json")).keys()
    assert all(len(text.split()) >= 2 for text in told.values())
    assert "  optimizer.lr=0.01" in lines
    assert "  data.train=none" in lines


def test_every_setting_is_read_by_something():
    files = [*(ROOT / "pipeline").rglob("*.py"), *(ROOT / "launch").glob("*.py")]
    code = "\n".join(path.read_text() for path in files if path.name != "config.py")
    through_settings = {"width", "dropout", "groups", "init"}  # Model.settings
    names = {key.rpartition(".")[2] for key in keys()} - through_settings
    assert {name for name in names if not re.search(rf"\.{name}\b", code)} == set()


# Splitting a global batch


@given(global_batch=st.integers(1, 3000), world=st.integers(1, 70), micro_batch=st.none() | st.integers(1, 400))
def test_split_keeps_the_global_batch_in_as_few_micro_steps_as_fit(global_batch, world, micro_batch):
    train = Train(global_batch=global_batch, micro_batch=micro_batch)
    if global_batch % world:
        with pytest.raises(UserError):
            train.split(world)
        return
    rows, micro_steps = train.split(world)
    assert rows * micro_steps * world == global_batch
    limit = micro_batch or global_batch
    share = global_batch // world
    assert rows == max(size for size in range(1, share + 1) if share % size == 0 and size <= limit)


@given(global_batch=st.integers(1, 3000), world=st.integers(2, 70))
def test_refused_split_offers_only_sizes_that_work(global_batch, world):
    if global_batch % world == 0:
        return
    with pytest.raises(UserError) as caught:
        Train(global_batch=global_batch).split(world)
    text = str(caught.value)
    assert text.startswith(f"train.global_batch={global_batch} does not divide among {world} processes. ")
    worlds, batches = re.search(r"Start ([\d or]+) processes .*global_batch to ([\d or]+)$", text).groups()
    assert all(global_batch % int(size) == 0 for size in worlds.split(" or "))
    assert all(int(size) % world == 0 and int(size) > 0 for size in batches.split(" or "))


def test_refused_split_text():
    with pytest.raises(UserError, match=r"Start 2 or 4 or 5 or 8 processes .* to 36 or 42"):
        Train(global_batch=40).split(6)


def test_none_and_an_empty_section_mean_the_same_in_the_file_as_on_the_command_line(tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text("data: {validation: none}\nmodel:\n")
    config = load(path)
    assert config.data.validation is None
    assert config.model == Model()


def test_a_key_that_comes_twice_is_refused(tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text("optimizer: {lr: 0.5}\noptimizer: {momentum: 0.1}\n")
    with pytest.raises(UserError, match="the key 'optimizer' comes twice"):
        load(path)
