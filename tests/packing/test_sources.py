"""What a SOURCE is taken for, which files each set gets, and every refusal, over tiny folders and archives."""

import io
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.data import index
from pipeline.errors import UserError
from pipeline.packing import imagenet, sets, sources
from pipeline.packing import pack as packing
from pipeline.packing.listing import ARCHIVES, CLASS_FOLDERS, SHARDS, SPLIT_FOLDERS, File, Origin

SYNSETS = ["n01440764", "n01443537", "n01484850"]
ILSVRC_NUMBER = {"n01440764": 3, "n01443537": 1, "n01484850": 2}  # on purpose not the sorted order


def jpeg(colour=(200, 30, 40), size=(40, 30)) -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", size, colour).save(stream, "JPEG")
    return stream.getvalue()


def fill(folder: Path, *names: str) -> Path:
    for number, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(jpeg((number * 37 % 256, 90, 120)))
    return folder


def tar_of(files: dict[str, bytes], mode: str = "w") -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode=mode) as tar:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return stream.getvalue()


def meta_mat() -> bytes:
    """meta.mat as in ILSVRC2012_devkit_t12: the classes, then the synsets above them, which have children."""
    import scipy.io

    fields = ["ILSVRC2012_ID", "WNID", "words", "gloss", "num_children", "children", "wordnet_height"]
    rows = [(ILSVRC_NUMBER[synset], synset, "a fish, fish", "it swims", 0, np.array([]), 0) for synset in SYNSETS]
    rows.append((4, "n00001740", "entity", "that which is", 3, np.array([1, 2, 3]), 1))
    synsets = np.array(rows, dtype=[(field, object) for field in fields]).reshape(-1, 1)
    stream = io.BytesIO()
    scipy.io.savemat(stream, {"synsets": synsets})
    return stream.getvalue()


def mini_imagenet(folder: Path, num_train: int = 4, num_validation: int = 6) -> Path:
    """A miniature of ImageNet's three archives; validation image i is of SYNSETS[i % 3]."""
    folder.mkdir(parents=True, exist_ok=True)
    inner = {
        f"{synset}.tar": tar_of({f"{synset}_{i}.JPEG": jpeg((80 * number, i, 60)) for i in range(num_train)})
        for number, synset in enumerate(SYNSETS)
    }
    (folder / imagenet.TRAIN).write_bytes(tar_of(inner))
    images = {f"ILSVRC2012_val_{i + 1:08d}.JPEG": jpeg((80 * (i % 3), i, 60)) for i in range(num_validation)}
    (folder / imagenet.VALIDATION).write_bytes(tar_of(dict(reversed(images.items()))))
    truth = "".join(f"{ILSVRC_NUMBER[SYNSETS[i % 3]]}\n" for i in range(num_validation))
    devkit = {
        "ILSVRC2012_devkit_t12/data/meta.mat": meta_mat(),
        "ILSVRC2012_devkit_t12/data/ILSVRC2012_validation_ground_truth.txt": truth.encode(),
    }
    (folder / imagenet.DEVKIT).write_bytes(tar_of(devkit, "w:gz"))
    return folder


def refused(source, match: str, split=None, **options) -> None:
    with pytest.raises(UserError, match=match):
        sets.arrange(sources.find(str(source), split), **options)


def names(found: Origin, split: str) -> list[str]:
    return [file.name for file in found.files[split]]


class TestFolders:
    def test_class_folders(self, tmp_path):
        fill(tmp_path, "dog/1.jpg", "cat/b.jpg", "cat/a.jpg", "cat/deep/c.jpg", "dog/.DS_Store", "__MACOSX/dog/x.jpg")
        found = sources.find(str(tmp_path))
        assert found.kind == CLASS_FOLDERS
        assert names(found, "train") == ["cat/a.jpg", "cat/b.jpg", "cat/deep/c.jpg", "dog/1.jpg"]
        arranged = sets.arrange(found)
        assert arranged.classes == ["cat", "dog"]
        assert [source.class_name for source in arranged.sources["train"]] == ["cat", "cat", "cat", "dog"]

    @pytest.mark.parametrize("folder", ["val", "valid", "Validation"])
    def test_split_folders(self, tmp_path, folder):
        fill(
            tmp_path, "training/cat/1.jpg", "training/dog/1.jpg", f"{folder}/dog/2.jpg", "test/cat/3.jpg", "misc/a.jpg"
        )
        found = sources.find(str(tmp_path))
        assert found.kind == SPLIT_FOLDERS
        assert list(found.files) == ["train", "validation", "test"]
        assert found.notes == ("left aside, no name of a set: misc",)
        assert sets.arrange(found).sources["validation"][0].class_name == "dog"

    def test_class_named_like_a_split(self, tmp_path):
        found = sources.find(str(fill(tmp_path, "bus/1.jpg", "train/2.jpg")))
        assert found.kind == CLASS_FOLDERS

    def test_split_option_names_the_set(self, tmp_path):
        fill(tmp_path, "cat/1.jpg")
        assert list(sources.find(str(tmp_path), "validation").files) == ["validation"]
        refused(fill(tmp_path / "b", "train/cat/1.jpg"), "names its sets itself", split="train")

    def test_links_are_followed_but_not_in_circles(self, tmp_path):
        fill(tmp_path / "elsewhere", "1.jpg")
        (tmp_path / "photos/cat").mkdir(parents=True)
        (tmp_path / "photos/cat/link").symlink_to(tmp_path / "elsewhere")
        (tmp_path / "elsewhere/up").symlink_to(tmp_path / "photos/cat")
        (tmp_path / "photos/cat/broken.jpg").symlink_to("nowhere")
        found = sources.find(str(tmp_path / "photos"))
        assert found.files["train"][0] == File("cat/broken.jpg", -1)
        assert names(found, "train")[1:] == ["cat/link/1.jpg"]

    def test_images_outside_class_folders_are_mentioned(self, tmp_path):
        found = sources.find(str(fill(tmp_path, "cat/1.jpg", "loose.jpg")))
        assert "1 image directly in" in found.notes[0]

    def test_fingerprint(self, tmp_path):
        one, two = fill(tmp_path / "one", "cat/1.jpg", "dog/2.jpg"), fill(tmp_path / "two", "cat/1.jpg", "dog/2.jpg")
        before = sources.find(str(one)).fingerprint
        assert before == sources.find(str(two)).fingerprint
        (two / "cat/1.jpg").write_bytes(b"other")
        assert before != sources.find(str(two)).fingerprint

    @pytest.mark.parametrize(
        ("names", "source", "told"),
        [
            (("a b/train/cat/1.jpg", "a b/val/cat/2.jpg"), "", r"holds sets \(train, val\).*: '.*/a b'$"),
            (("a/train/cat/1.jpg", "b/train/dog/2.jpg"), "", r"holds a, and that holds sets \(train\)"),
            (("things/hat/1.jpg", "things/shoe/2.jpg", "readme/a.txt"), "", r"alone, things.* \(hat, shoe\).*/things$"),
            (("train/all/hat/1.jpg", "val/all/hat/2.jpg"), "", r"train holds .* up: mv .*/train/all/\* .*/train$"),
            (("images/1.jpg", "images/2.jpg", "labels.csv"), "", r"folder, images, beside labels.csv.*/cat/1.jpg$"),
            (("old/train/manifest.json", "old/train/a/1.jpg"), "", r"holds a packed set, .*/old/train\. "),
            (("cat/1.jpg", "dog/2.jpg"), "cat", r"To pack it as one class of several, give .*"),
        ],
    )  # fmt: skip
    def test_classes_a_level_higher_or_lower(self, tmp_path, names, source, told):
        refused(fill(tmp_path, *names) / source, told)

    @pytest.mark.parametrize(
        ("names", "classes", "notes"),
        [
            (("cat/1.jpg",), {"cat"}, 0),
            (("train/wheel/1.jpg", "train/door/2.jpg"), {"wheel", "door"}, 0),
            (("bus/train/1.jpg", "bus/side/2.jpg", "car/3.jpg"), {"bus", "car"}, 0),
            (("animal/cat/1.jpg", "animal/dog/2.jpg", "car/old/3.jpg"), {"animal", "car"}, 1),
        ],
    )
    def test_what_only_looks_like_it(self, tmp_path, names, classes, notes):
        found = sources.find(str(fill(tmp_path, *names)))
        assert {source.class_name for source in sets.arrange(found).sources["train"]} == classes
        assert len(found.notes) == notes

    def test_refusals(self, tmp_path):
        refused(tmp_path / "nowhere", "does not exist. Give a folder of images")
        (tmp_path / "empty").mkdir()
        refused(tmp_path / "empty", "no class folders and no .tar shards")
        refused(fill(tmp_path / "flat", "1.jpg", "2.jpg"), "2 images but no class folders")
        (fill(tmp_path / "gap", "cat/1.jpg") / "dog").mkdir()
        refused(tmp_path / "gap", "dog holds no files")
        refused(fill(tmp_path / "flatter", "train/1.jpg", "val/2.jpg"), "train holds no class folders")
        refused(tmp_path / "flatter" / "train", "1 image but no class folders")
        refused(fill(tmp_path / "flatval", "train/cat/1.jpg", "val/2.jpg"), "val holds no class folders.*--val-labels")
        labelled = fill(tmp_path / "labelled", "train/a/1.jpg", "val/a/1.jpg")
        refused(labelled, "--val-labels.*class folders", val_labels=tmp_path / "labels.csv")
        refused(fill(tmp_path / "twice", "val/a/1.jpg", "validation/a/1.jpg"), "two folders for validation")
        refused(fill(tmp_path / "alien", "train/a/1.jpg", "val/b/1.jpg"), r"the class 'b' \(for example val/b/1.jpg\)")
        refused(tmp_path / "flat/1.jpg", "is a file")
        refused(str(tmp_path / "*.tar"), "matches no file")


class TestSets:
    def test_a_set_without_training_images_has_its_own_class_list(self, tmp_path):
        arranged = sets.arrange(sources.find(str(fill(tmp_path / "alone", "val/b/1.jpg", "test/a/1.jpg"))))
        assert arranged.classes == ["a", "b"]

    def test_class_list(self, tmp_path):
        found = sources.find(str(fill(tmp_path / "photos", "cat/1.jpg")))
        (tmp_path / "classes.txt").write_text("dog\ncat\n")
        assert sets.arrange(found, sets.read_classes(tmp_path / "classes.txt")).classes == ["dog", "cat"]
        refused(tmp_path / "photos", "class 'cat'", classes=["dog"])

    @pytest.mark.parametrize(
        ("text", "match"), [("a\nb\na\n", "'a' twice"), ("", "is empty"), ("a\n\nb\n", "empty line")]
    )
    def test_bad_class_list(self, tmp_path, text, match):
        (tmp_path / "classes.txt").write_text(text)
        with pytest.raises(UserError, match=match):
            sets.read_classes(tmp_path / "classes.txt")

    def test_missing_class_list(self, tmp_path):
        with pytest.raises(UserError, match="cannot be read"):
            sets.read_classes(tmp_path / "no.txt")

    def test_holdout_is_stable_when_files_are_added(self, tmp_path):
        fill(tmp_path, *(f"cat/{i}.jpg" for i in range(40)), *(f"dog/{i}.jpg" for i in range(40)))
        before = sets.arrange(sources.find(str(tmp_path)), holdout=0.25)
        fill(tmp_path, *(f"cat/new{i}.jpg" for i in range(40)))
        after = sets.arrange(sources.find(str(tmp_path)), holdout=0.25)
        held, later = ({source.name for source in found.sources["validation"]} for found in (before, after))
        assert [sum(name.startswith(animal) for name in held) for animal in ("cat", "dog")] == [10, 10]
        assert [sum(name.startswith(animal) for name in later) for animal in ("cat", "dog")] == [20, 10]
        assert {name for name in later if "dog" in name} == {name for name in held if "dog" in name}
        cats, old = ({name for name in names if "cat" in name and "new" not in name} for names in (held, later))
        assert cats <= old or old <= cats  # the same order of them, cut elsewhere
        assert later.isdisjoint(source.name for source in after.sources["train"])
        other = sets.arrange(sources.find(str(tmp_path)), holdout=0.25, seed=1)
        assert held != {source.name for source in other.sources["validation"] if "new" not in source.name}

    def test_a_holdout_of_many_small_classes_is_its_share_of_all(self, tmp_path):
        """Four images a class, a tenth of which is less than one: so of four classes in ten one is held out."""
        fill(tmp_path, *(f"class{number}/{i}.jpg" for number in range(100) for i in range(4)))
        held = sets.arrange(sources.find(str(tmp_path)), holdout=0.1).sources["validation"]
        assert 25 <= len(held) <= 55
        assert len({source.class_name for source in held}) == len(held)

    def test_two_spellings_of_a_class_are_one(self, tmp_path):
        """A letter with a mark is one code point or two (macOS writes two); a class list keeps its own spelling."""
        one, two = "caf\u00e9", "cafe\u0301"
        fill(tmp_path, f"train/{one}/1.jpg", f"train/{two}/2.jpg", "train/tea/3.jpg", f"val/{two}/4.jpg")
        found = sets.arrange(sources.find(str(tmp_path)))
        assert found.classes == [one, "tea"]
        assert [source.class_name for source in found.sources["train"]].count(one) == 2
        assert found.sources["validation"][0].class_name == one
        (tmp_path / "names.txt").write_text(f"tea\n{two}\n")
        found = sets.arrange(sources.find(str(tmp_path)), classes=sets.read_classes(tmp_path / "names.txt"))
        assert {source.class_name for source in found.sources["train"]} == set(found.classes) == {"tea", two}
        (tmp_path / "names.txt").write_text(f"{one}\n{two}\n")
        with pytest.raises(UserError, match="twice"):
            sets.read_classes(tmp_path / "names.txt")

    def test_holdout_that_leaves_nothing(self, tmp_path):
        refused(fill(tmp_path, "cat/1.jpg"), "would hold no images", holdout=0.5)

    def test_keys(self):
        files = [
            "c.d/a.jpg",
            "c.d/a.png",
            "c_d/a.jpg",
            "c.d/my photo.v2.jpg",
            "c.d/naïve 猫.jpg",
            f"c.d/{'x' * 200}.jpg",
        ]
        members = [sets.Photo(name, name, 0, 1, name.split("/")[0]) for name in files]
        keys = [key for key, _ in sets.keyed(members)]
        assert keys[0] == "c_d/a"
        assert keys[3:5] == ["c_d/my_photo_v2", "c_d/naïve_猫"]
        assert len(set(keys)) == len(keys)
        assert all("." not in key and len(key.encode()) <= 90 for key in keys)
        assert keys == [key for key, _ in sets.keyed(members)]


class TestImageNet:
    def test_archives(self, tmp_path):
        found = sources.find(str(mini_imagenet(tmp_path)))
        assert found.kind == ARCHIVES
        arranged = sets.arrange(found)
        assert arranged.classes == SYNSETS
        assert len(arranged.sources["train"]) == 12
        validation = arranged.sources["validation"]
        assert [source.class_name for source in validation] == SYNSETS * 2
        assert validation[0].name == f"{imagenet.VALIDATION}/ILSVRC2012_val_00000001.JPEG"
        source = arranged.sources["train"][5]
        content = (tmp_path / source.file).read_bytes()[source.offset :][: source.size]
        assert content == jpeg((80, 1, 60))
        assert source.name == f"{imagenet.TRAIN}/n01443537.tar/n01443537_1.JPEG"

    def test_packed(self, tmp_path):
        """The whole way: what is stored under each label has the colour of that label's class."""
        packing.pack(str(mini_imagenet(tmp_path / "imagenet")), tmp_path / "out", packing.Options(), workers=2)
        for split, num_samples in (("train", 12), ("validation", 6)):
            loaded = index.load(tmp_path / "out" / split)
            assert loaded.classes == tuple(SYNSETS)
            assert len(loaded) == num_samples
            for sample in range(num_samples):
                assert loaded.key_of(sample).startswith(SYNSETS[loaded.label[sample]])
                content = Path(loaded.location(loaded.shard[sample])).read_bytes()[loaded.offset[sample] :]
                red = Image.open(io.BytesIO(content[: loaded.size[sample]])).getpixel((5, 5))[0]
                assert abs(red - 80 * loaded.label[sample]) < 12

    def test_inner_tar_without_end_marks(self, tmp_path):
        inner = {f"{synset}.tar": tar_of({f"{synset}_0.JPEG": jpeg()})[:2048] for synset in SYNSETS}
        (tmp_path / imagenet.TRAIN).write_bytes(tar_of(inner))
        arranged = sets.arrange(sources.find(str(tmp_path)))
        assert [source.class_name for source in arranged.sources["train"]] == SYNSETS

    def test_validation_alone_takes_the_classes_of_the_devkit(self, tmp_path):
        (mini_imagenet(tmp_path) / imagenet.TRAIN).unlink()
        assert sets.arrange(sources.find(str(tmp_path))).classes == SYNSETS

    def test_label_files(self, tmp_path):
        found = sources.find(str(mini_imagenet(tmp_path / "a")))
        plain, kaggle = tmp_path / "plain.txt", tmp_path / "LOC_val_solution.csv"
        plain.write_text("\n".join(SYNSETS[::-1] * 2))
        kaggle.write_text(
            "ImageId,PredictionString\n"
            + "".join(
                f"ILSVRC2012_val_{i:08d},{SYNSETS[i % 3]} 1 2 3 4 {SYNSETS[i % 3]} 5 6 7 8 \n" for i in range(6, 0, -1)
            )
        )
        by_plain = sets.arrange(found, val_labels=plain).sources["validation"]
        assert [source.class_name for source in by_plain] == SYNSETS[::-1] * 2
        by_kaggle = sets.arrange(found, val_labels=kaggle).sources["validation"]
        assert [source.class_name for source in by_kaggle] == [SYNSETS[i % 3] for i in range(1, 7)]

    def test_kaggle_folders(self, tmp_path):
        fill(tmp_path, *(f"train/{s}/{s}_1.JPEG" for s in SYNSETS), "test/ILSVRC2012_test_00000001.JPEG")
        fill(tmp_path, "val/ILSVRC2012_val_00000001.JPEG", "val/ILSVRC2012_val_00000002.JPEG")
        (tmp_path / "labels.csv").write_text(
            "ImageId,PredictionString\n"
            f"ILSVRC2012_val_00000002,{SYNSETS[2]} 1 1 2 2\n"
            f"ILSVRC2012_val_00000001,{SYNSETS[1]} 1 1 2 2\n"
        )
        found = sources.find(str(tmp_path))
        assert found.notes == ("left aside, no class folders: test",)
        arranged = sets.arrange(found, val_labels=tmp_path / "labels.csv")
        assert [source.class_name for source in arranged.sources["validation"]] == SYNSETS[1:]

    def test_refusals(self, tmp_path):
        folder = mini_imagenet(tmp_path / "a")
        short, numbers, odd = tmp_path / "short.txt", tmp_path / "numbers.txt", tmp_path / "odd.csv"
        short.write_text("\n".join(SYNSETS))
        numbers.write_text("1\n2\n3\n1\n2\n3\n")
        odd.write_text("ImageId,PredictionString\nother,n01440764 1 2 3 4\n")
        refused(folder, "3 labels, but there are 6 validation images", val_labels=short)
        refused(folder, "no line for the image 'ILSVRC2012_val_00000001'", val_labels=odd)
        sets.arrange(sources.find(str(folder)), val_labels=numbers)  # the devkit says what the numbers mean
        (folder / imagenet.DEVKIT).unlink()
        refused(folder, "ILSVRC's own class numbers.*only the development kit", val_labels=numbers)
        refused(folder, "no labels for the validation images.*LOC_val_solution.csv")
        refused(folder / imagenet.TRAIN, "Give the folder that holds it")

        (folder / imagenet.TRAIN).write_bytes((folder / imagenet.TRAIN).read_bytes()[:9000])
        refused(folder, "damaged or was not fetched to its end")
        (folder / imagenet.TRAIN).write_bytes(tar_of({"a.JPEG": jpeg()}))
        refused(folder, "holds no tars of images")
        lonely = mini_imagenet(tmp_path / "b")
        (lonely / imagenet.TRAIN).unlink()
        (lonely / imagenet.VALIDATION).unlink()
        refused(lonely, "alone")

    def test_class_that_training_lacks(self, tmp_path):
        inner = {f"{s}.tar": tar_of({f"{s}_0.JPEG": jpeg()}) for s in SYNSETS[:2]}
        (mini_imagenet(tmp_path) / imagenet.TRAIN).write_bytes(tar_of(inner))
        refused(tmp_path, "the class 'n01484850'")


class TestShards:
    @pytest.fixture
    def shard(self):
        return tar_of({"a.jpg": jpeg(), "a.cls": b"0"})

    def test_sets_by_name(self, tmp_path, shard):
        for name in (
            "imagenet1k-train-0000.tar",
            "imagenet1k-train-0001.tar",
            "imagenet1k-validation-00.tar",
            "x.json",
        ):
            (tmp_path / name).write_bytes(shard)
        found = sources.find(str(tmp_path))
        assert found.kind == SHARDS
        assert list(found.files) == ["train", "validation"]
        assert names(found, "train") == ["imagenet1k-train-0000.tar", "imagenet1k-train-0001.tar"]
        only = sources.find(str(tmp_path / "*-train-*.tar"))
        assert list(only.files) == ["train"]
        assert only.root == tmp_path.resolve()

    def test_sets_by_folder(self, tmp_path, shard):
        for name in ("train/0.tar", "val/0.tar"):
            (tmp_path / name).parent.mkdir()
            (tmp_path / name).write_bytes(shard)
        found = sources.find(str(tmp_path))
        assert found.files["validation"][0].name == "val/0.tar"

    def test_without_names(self, tmp_path, shard):
        (tmp_path / "0.tar").write_bytes(shard)
        assert list(sources.find(str(tmp_path)).files) == ["train"]
        assert list(sources.find(str(tmp_path / "0.tar"), "test").files) == ["test"]

    def test_class_folders_beside_tars_win(self, tmp_path, shard):
        (tmp_path / "download.tar").write_bytes(shard)
        assert sources.find(str(fill(tmp_path, "cat/1.jpg"))).kind == CLASS_FOLDERS

    def test_refusals(self, tmp_path, shard):
        (tmp_path / "train-0.tar").write_bytes(shard)
        (tmp_path / "1.tar").write_bytes(shard)
        refused(tmp_path, "1.tar: its name does not say which set")
        (tmp_path / "train-1.tar.zst").write_bytes(b"\x28\xb5\x2f\xfd")
        refused(tmp_path / "train-1.tar.zst", "is compressed with zstd. Unpack it first: zstd -d ")
        (tmp_path / "train.txt").write_text("")
        refused(str(tmp_path / "train.*"), "train.txt is no .tar shard")
