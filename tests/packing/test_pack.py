"""Packing tiny image folders and archives: what is in the shards, what is left out, and that bytes repeat.

The colour of an image tells its class, so a label that went astray shows in the pixels.
"""

import io
import json
import os
import re
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from launch import pack as command
from launch.command import Interrupted
from launch.command import run as launched
from pipeline import workers
from pipeline.data import index
from pipeline.packing import indexing, staging
from pipeline.packing import pack as packing
from pipeline.packing.photo import Rejected, add_pixels, no_pixels, prepare, rgb_statistics
from tests.conftest import disk_of, fill

ROOT = Path(__file__).parents[2]
COLOURS = {"cat": (220, 40, 40), "dog": (40, 220, 40), "emu": (40, 40, 220)}


def encoded(colour=(220, 40, 40), format_name="JPEG", size=(48, 36), mode="RGB", **options) -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", size, colour).convert(mode).save(stream, format_name, **options)
    return stream.getvalue()


def noise(seed=0, size=(48, 36)) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8))


def photos(folder: Path, per_class=6, **classes) -> Path:
    for name, colour in (classes or COLOURS).items():
        (folder / name).mkdir(parents=True, exist_ok=True)
        for number in range(per_class):
            (folder / name / f"{number}.jpg").write_bytes(encoded(colour, size=(40 + number, 30)))
    return folder


def run(*words, code=0, workers=1) -> None:
    words = (*map(str, words), "--workers", str(workers))
    assert launched(lambda: command.main([*words])) == code


def refused(capsys, *words, workers=1) -> str:
    run(*words, code=2, workers=workers)
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    return error


def tree(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def stored(folder: Path) -> dict[str, tuple[bytes, int]]:
    """key -> (image bytes, label), read through the index."""
    loaded = index.load(folder)
    found = {}
    for sample in range(len(loaded)):
        content = Path(loaded.location(loaded.shard[sample])).read_bytes()
        start, size = int(loaded.offset[sample]), int(loaded.size[sample])
        found[loaded.key_of(sample)] = (content[start : start + size], int(loaded.label[sample]))
    return found


class TestPacked:
    def test_split_folders(self, tmp_path, capsys):
        for split in ("train", "val", "test"):
            photos(tmp_path / "photos" / split)
        run(tmp_path / "photos", tmp_path / "out")
        printed = capsys.readouterr().out.splitlines()
        assert "split folders of class folders (train 18 files, validation 18 files, test 18 files)" in printed[0]
        assert not any("left out" in line for line in printed)
        assert printed[-1].replace("_cpu", "") == (
            "next: launch/single_node.sh configs/alexnet.yaml "
            f"data.train={tmp_path}/out/train data.validation={tmp_path}/out/validation"
        )
        for split in ("train", "validation", "test"):
            loaded = index.load(tmp_path / "out" / split)
            assert loaded.classes == ("cat", "dog", "emu")
            assert len(loaded) == 18
            assert list(loaded.label) != sorted(loaded.label)
        original = (tmp_path / "photos/train/dog/3.jpg").read_bytes()
        assert stored(tmp_path / "out/train")["dog/3"] == (original, 1)
        assert not list(tmp_path.glob("*.part"))

    def test_webdataset_reads_the_shards(self, tmp_path):
        import webdataset

        run(photos(tmp_path / "photos"), tmp_path / "out", "--shard-images", 5)
        shards = sorted(str(path) for path in (tmp_path / "out/train").glob("*.tar"))
        assert len(shards) == 4
        samples = list(webdataset.WebDataset(shards, shardshuffle=False).decode("pil").to_tuple("jpg", "cls"))
        assert len(samples) == 18
        for image, label in samples:
            assert np.abs(np.array(image.getpixel((5, 5))) - list(COLOURS.values())[label]).max() < 12

    def test_bytes_do_not_depend_on_workers_or_place(self, tmp_path):
        source = photos(tmp_path / "a/photos", per_class=8)
        photos(tmp_path / "b/elsewhere", per_class=8)
        run(source, tmp_path / "one", "--shard-images", 3, "--holdout", 0.3, workers=1)
        run(tmp_path / "b/elsewhere", tmp_path / "b/two", "--shard-images", 3, "--holdout", 0.3, workers=2)
        assert tree(tmp_path / "one") == tree(tmp_path / "b/two")
        assert str(tmp_path).encode() not in b"".join(tree(tmp_path / "one").values())
        run(source, tmp_path / "other", "--shard-images", 3, "--holdout", 0.3, "--seed", 1)
        assert tree(tmp_path / "one") != tree(tmp_path / "other")

    def test_later_validation_set_shares_the_list(self, tmp_path, capsys):
        run(photos(tmp_path / "photos"), tmp_path / "out")
        photos(tmp_path / "more", emu=COLOURS["emu"])
        run(tmp_path / "more", tmp_path / "later", "--classes", tmp_path / "out/train", "--split", "validation")
        assert {label for _, label in stored(tmp_path / "later/validation").values()} == {2}
        photos(tmp_path / "odd", yak=COLOURS["emu"])
        assert "'yak'" in refused(capsys, tmp_path / "odd", tmp_path / "no", "--classes", tmp_path / "out")
        assert not (tmp_path / "no.part").exists()

    def test_raw_is_the_central_square_of_the_papers_preprocessing(self, tmp_path):
        import webdataset

        (tmp_path / "photos/cat").mkdir(parents=True)
        picture = Image.fromarray(np.random.default_rng(0).integers(0, 255, (9, 12, 3), np.uint8)).resize((120, 80))
        for name, image in {"wide": picture, "small": picture.resize((20, 30)), "grey": picture.convert("L")}.items():
            image.save(tmp_path / f"photos/cat/{name}.png")
        run(tmp_path / "photos", tmp_path / "out", "--raw", 64)
        loaded = index.load(tmp_path / "out/train")
        assert loaded.is_raw
        assert set(loaded.height) == set(loaded.width) == {64}
        expected = np.asarray(picture.resize((96, 64), Image.Resampling.BICUBIC))[:, 16:80]
        found = stored(tmp_path / "out/train")
        assert found["cat/wide"] == (expected.tobytes(), 0)
        assert {len(pixels) for pixels, _ in found.values()} == {64 * 64 * 3}
        shards = [str(path) for path in (tmp_path / "out/train").glob("*.tar")]
        samples = webdataset.WebDataset(shards, shardshuffle=False).decode().to_tuple("__key__", "npy", "cls")
        assert np.array_equal({key: pixels for key, pixels, _ in samples}["cat/wide"], expected)
        run(tmp_path / "photos", tmp_path / "same", "--raw", 64, workers=2)
        assert tree(tmp_path / "out") == tree(tmp_path / "same")

    def test_short_side(self, tmp_path):
        (tmp_path / "photos/cat").mkdir(parents=True)
        exif = Image.Exif()
        exif[0x0112] = 6  # rotated by a quarter
        noise(size=(200, 100)).save(tmp_path / "photos/cat/large.png", exif=exif)
        (tmp_path / "photos/cat/small.jpg").write_bytes(encoded(size=(90, 50)))
        run(tmp_path / "photos", tmp_path / "out", "--short-side", 64, "--quality", 80)
        samples = stored(tmp_path / "out/train")
        large = Image.open(io.BytesIO(samples["cat/large"][0]))
        assert (large.format, large.size, dict(large.getexif())) == ("JPEG", (128, 64), {})
        assert samples["cat/small"][0] == encoded(size=(90, 50))

    def test_colour_statistics_are_of_the_training_pixels(self, tmp_path):
        for split, seeds in (("train", range(5)), ("val", range(9, 11))):
            (tmp_path / "photos" / split / "cat").mkdir(parents=True)
            for seed in seeds:
                noise(seed, (64 + seed, 50)).save(tmp_path / f"photos/{split}/cat/{seed}.png")
        run(tmp_path / "photos", tmp_path / "out", "--shard-images", 2)
        pixels = np.concatenate([np.asarray(noise(s, (64 + s, 50)))[::8, ::8].reshape(-1, 3) for s in range(5)]) / 255
        for split in ("train", "validation"):
            loaded = index.load(tmp_path / "out" / split)
            np.testing.assert_allclose(loaded.rgb_mean, pixels.mean(axis=0))
            np.testing.assert_allclose(loaded.rgb_covariance, np.cov(pixels.T, bias=True))

    def test_colour_sums_add_up(self):
        whole, parts = no_pixels(), [no_pixels(), no_pixels()]
        for number in range(4):
            pixels = np.asarray(noise(number))
            add_pixels(whole, pixels)
            add_pixels(parts[number % 2], pixels)
        assert rgb_statistics([whole]) == rgb_statistics(parts)
        assert rgb_statistics([]) is None


class TestFormats:
    @pytest.mark.parametrize(
        ("content", "extension"),
        [
            (encoded(mode="L"), "jpg"),
            (encoded(format_name="PNG", mode="P"), "png"),
            (encoded(format_name="PNG", mode="RGBA"), "png"),
            (encoded(format_name="WEBP"), "webp"),
            (encoded(format_name="MPO", save_all=True, append_images=[noise()]), "jpg"),
        ],
        ids=["grey", "palette", "alpha", "webp", "mpo"],
    )
    def test_bytes_are_kept(self, content, extension):
        assert prepare(content, None, 90)[:2] == (content, extension)

    @pytest.mark.parametrize("format_name", ["GIF", "BMP", "TIFF", "PPM"])
    def test_others_become_png_without_loss(self, format_name):
        stream = io.BytesIO()
        noise().quantize(64).convert("RGB").save(stream, format_name)
        photo = prepare(stream.getvalue(), None, 90)
        again = Image.open(io.BytesIO(photo.content))
        assert (photo.extension, again.format, photo.because) == ("png", "PNG", format_name)
        assert (np.asarray(again) == photo.pixels).all()
        assert (photo.pixels == np.asarray(Image.open(stream).convert("RGB"))).all()

    @pytest.mark.parametrize("format_name", ["PNG", "TIFF"])
    def test_sixteen_bits_are_scaled_not_clipped(self, format_name):
        grey = np.arange(48 * 36, dtype=np.uint16).reshape(36, 48) * 37
        stream = io.BytesIO()
        Image.fromarray(grey).save(stream, format_name)
        photo = prepare(stream.getvalue(), None, 90)
        assert (photo.extension, photo.because) == ("png", {"PNG": "PNG of 16 bits"}.get(format_name, format_name))
        assert (np.asarray(Image.open(io.BytesIO(photo.content))) == grey >> 8).all()
        assert (photo.pixels[..., 1] == grey >> 8).all()

    def test_floating_point(self):
        stream = io.BytesIO()
        Image.fromarray(np.ones((9, 9), np.float32)).save(stream, "TIFF")
        with pytest.raises(Rejected, match="floating-point"):
            prepare(stream.getvalue(), None, 90)

    @pytest.mark.parametrize("num_bytes", [1, 12, 16, 40])
    @pytest.mark.parametrize("format_name", ["JPEG", "PNG", "WEBP"])
    def test_cut_off_at_the_end(self, format_name, num_bytes):
        stream = io.BytesIO()
        noise().save(stream, format_name)
        with pytest.raises(Rejected, match="cannot be decoded"):
            prepare(stream.getvalue()[:-num_bytes], None, 90)

    def test_pixel_bomb(self, monkeypatch):
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
        with pytest.raises(Rejected, match="more than 200 pixels"):
            prepare(encoded(), None, 90)

    def test_odd_names_and_wrong_suffixes(self, tmp_path):
        folder = tmp_path / "photos/été 猫"
        folder.mkdir(parents=True)
        (folder / "a.jpg").write_bytes(encoded(format_name="PNG"))
        (folder / "a.png").write_bytes(encoded())
        (folder / "two words.v1.jpg").write_bytes(encoded())
        (folder / f"{'long' * 50}.jpg").write_bytes(encoded())
        run(tmp_path / "photos", tmp_path / "out")
        loaded = index.load(tmp_path / "out/train")
        assert loaded.classes == ("été 猫",)
        assert {"été_猫/a", "été_猫/two_words_v1"} < set(stored(tmp_path / "out/train"))
        with tarfile.open(tmp_path / "out/train/shard-000000.tar") as tar:
            assert "été_猫/a.png" in tar.getnames()
        assert len(loaded) == 4


class TestRejected:
    def test_they_are_listed_and_the_rest_stays(self, tmp_path, capsys):
        folder = photos(tmp_path / "photos")
        whole = io.BytesIO()
        noise(size=(300, 300)).save(whole, "JPEG")
        (folder / "cat/notes.txt").write_text("not a photo")
        (folder / "cat/empty.jpg").write_bytes(b"")
        (folder / "cat/half\t.jpg").write_bytes(whole.getvalue()[:5000])
        (folder / "dog/half.png").write_bytes(encoded(format_name="PNG")[:-20])
        (folder / "dog/.DS_Store").write_bytes(b"hidden")
        (folder / "dog/gone.jpg").symlink_to("nowhere")
        run(folder, tmp_path / "out", workers=2)
        lines = (tmp_path / "out/rejected.tsv").read_text().splitlines()
        assert [line.split("\t")[0] for line in lines] == [
            "path",
            "cat/empty.jpg",
            "cat/half\\t.jpg",
            "cat/notes.txt",
            "dog/gone.jpg",
            "dog/half.png",
        ]
        assert lines[1].endswith("\tan empty file")
        assert "truncated" in lines[2]
        assert len(index.load(tmp_path / "out/train")) == 18
        assert "5 files left out" in capsys.readouterr().out.splitlines()[-1]

    def test_a_class_stays_in_the_list(self, tmp_path):
        folder = photos(tmp_path / "photos")
        (folder / "bat").mkdir()
        (folder / "bat/1.jpg").write_bytes(b"rubbish")
        run(folder, tmp_path / "out")
        assert index.load(tmp_path / "out/train").classes == ("bat", "cat", "dog", "emu")

    def test_a_set_without_images_is_refused(self, tmp_path, capsys):
        photos(tmp_path / "photos/train")
        (tmp_path / "photos/val/cat").mkdir(parents=True)
        (tmp_path / "photos/val/cat/1.jpg").write_bytes(b"rubbish")
        assert "'validation' has no image left" in refused(capsys, tmp_path / "photos", tmp_path / "out")
        assert not (tmp_path / "out").exists()
        assert "val/cat/1.jpg" in (tmp_path / "out.part/rejected.tsv").read_text()


class TestOut:
    def test_already_packed(self, tmp_path, capsys):
        folder = photos(tmp_path / "photos")
        run(folder, tmp_path / "out")
        before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*")}
        run(folder, tmp_path / "out", workers=2)
        assert "already packed" in capsys.readouterr().out
        assert before == {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*")}
        assert "--seed 0, now --seed 1" in refused(capsys, folder, tmp_path / "out", "--seed", 1)
        (folder / "cat/0.jpg").unlink()
        assert "the sources have changed" in refused(capsys, folder, tmp_path / "out")

    def test_refusals(self, tmp_path, capsys):
        folder = photos(tmp_path / "photos")
        (tmp_path / "mine").mkdir()
        (tmp_path / "mine/letter.txt").write_text("dear")
        assert "holds something else" in refused(capsys, folder, tmp_path / "mine")
        assert "is a file" in refused(capsys, folder, tmp_path / "mine/letter.txt")
        assert "lies inside" in refused(capsys, folder, folder / "packed")
        (tmp_path / "new.part").mkdir()
        (tmp_path / "new.part/letter.txt").write_text("dear")
        assert "letter.txt was not made by this program" in refused(capsys, folder, tmp_path / "new")
        assert (tmp_path / "new.part/letter.txt").read_text() == "dear"

    def test_empty_folder_is_fine(self, tmp_path):
        (tmp_path / "out").mkdir()
        run(photos(tmp_path / "photos"), tmp_path / "out")
        assert len(index.load(tmp_path / "out/train")) == 18

    def test_two_at_once(self, tmp_path, capsys):
        folder = photos(tmp_path / "photos")
        request = {"version": 1, "kind": "", "options": {}, "fingerprint": ""}
        with staging.staged(tmp_path / "out", request, print):
            assert "another process is packing" in refused(capsys, folder, tmp_path / "out")

    @pytest.mark.parametrize(
        ("words", "match"),
        [
            (["--holdout", "1.5"], "--holdout 1.5"),
            (["--shard-images", "0"], "--shard-images 0"),
            (["--short-side", "-3"], "--short-side -3"),
            (["--raw", "0"], "--raw 0"),
            (["--raw", "64", "--short-side", "64"], "--raw stores pixels of its own size"),
            (["--quality", "90"], "--quality 90"),
            (["--short-side", "9", "--quality", "101"], "--quality 101"),
            (["--val-labels", "x.txt"], "--val-labels"),
            (["--classes", "nowhere.txt"], "--classes nowhere.txt"),
        ],
    )
    def test_bad_options(self, tmp_path, capsys, words, match):
        assert match in refused(capsys, photos(tmp_path / "photos"), tmp_path / "out", *words)
        assert not (tmp_path / "out.part").exists()

    def test_holdout_with_a_validation_set(self, tmp_path, capsys):
        photos(tmp_path / "photos/train")
        photos(tmp_path / "photos/val")
        assert "--holdout takes from train" in refused(capsys, tmp_path / "photos", tmp_path / "out", "--holdout", 0.1)

    def test_bad_workers(self, tmp_path, capsys):
        assert "--workers 0" in refused(capsys, photos(tmp_path / "photos"), tmp_path / "out", workers=0)


class TestInterrupted:
    @pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
    def test_the_same_command_goes_on(self, tmp_path, capsys, number):
        folder = tmp_path / "photos"
        for name in COLOURS:
            (folder / name).mkdir(parents=True)
            for i in range(60):
                noise(i, (500, 400)).save(folder / name / f"{i}.jpg")
        words = [str(folder), str(tmp_path / "out"), "--shard-images", "6"]
        run(*words[:1], tmp_path / "whole", *words[2:], workers=2)

        process = subprocess.Popen(
            [sys.executable, "-m", "launch.pack", *words, "--workers", "2"],
            cwd=ROOT,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        records = tmp_path / "out.part/records"
        while process.poll() is None and len(list(records.glob("*.json"))) < 3:
            time.sleep(0.005)
        os.killpg(process.pid, number) if number == signal.SIGINT else process.send_signal(number)
        error = process.communicate(timeout=60)[1]
        assert process.returncode == (-number if number == signal.SIGKILL else 128 + number)
        assert not (tmp_path / "out").exists()
        if number != signal.SIGKILL:
            assert error == "interrupted: run the same command again, it goes on with the shards that are there\n"
        capsys.readouterr()
        run(*words)
        assert "of 30 shards are there" in capsys.readouterr().out
        assert tree(tmp_path / "out") == tree(tmp_path / "whole")

    def interrupt(self, monkeypatch, *words) -> None:
        """Run the command up to where the sets' indices would be written."""
        with monkeypatch.context() as patched:
            patched.setattr(packing, "_finish", lambda *_: (_ for _ in ()).throw(Interrupted(2)))
            run(*words, code=130)

    def test_other_options_start_over(self, tmp_path, capsys, monkeypatch):
        folder = photos(tmp_path / "photos")
        self.interrupt(monkeypatch, folder, tmp_path / "out", "--shard-images", 2)
        run(folder, tmp_path / "out", "--shard-images", 3)
        printed = capsys.readouterr().out
        assert "starting over" in printed
        assert "--shard-images 2, now --shard-images 3" in printed
        run(folder, tmp_path / "fresh", "--shard-images", 3)
        assert tree(tmp_path / "out") == tree(tmp_path / "fresh")

    def test_a_damaged_shard_is_made_again(self, tmp_path, capsys, monkeypatch):
        folder = photos(tmp_path / "photos")
        self.interrupt(monkeypatch, folder, tmp_path / "out", "--shard-images", 2)
        with open(tmp_path / "out.part/train/shard-000004.tar", "r+b") as shard:
            shard.truncate(1000)
        (tmp_path / "out.part/records/train-000002.json").unlink()
        run(folder, tmp_path / "out", "--shard-images", 2)
        assert "going on: 7 of 9 shards are there" in capsys.readouterr().out
        run(folder, tmp_path / "fresh", "--shard-images", 2)
        assert tree(tmp_path / "out") == tree(tmp_path / "fresh")

    def test_killed_worker(self):
        from pipeline.errors import UserError

        with pytest.raises(UserError, match="a worker was killed"):
            list(workers.run(os._exit, [1], 1))


class TestExistingShards:
    def shards(self, folder: Path, names=("x-train-0.tar", "x-train-1.tar", "x-validation-0.tar"), label=2) -> Path:
        folder.mkdir()
        for name in names:
            with tarfile.open(folder / name, "w") as tar:
                for key in ("a", "b"):
                    for ending, content in (("jpg", encoded()), ("cls", b"%d" % label), ("json", b"{}")):
                        member = tarfile.TarInfo(f"{name[:-4]}_{key}.{ending}")
                        member.size = len(content)
                        tar.addfile(member, io.BytesIO(content))
        return folder

    def test_index_only(self, tmp_path, capsys):
        folder = self.shards(tmp_path / "wds")
        before = tree(folder)
        run(folder, tmp_path / "deep/out", workers=2)
        assert "WebDataset shards (train 2 files, validation 1 file)" in capsys.readouterr().out.splitlines()[0]
        assert tree(folder) == before
        loaded = index.load(tmp_path / "deep/out/train")
        assert loaded.classes == ("0", "1", "2")
        assert loaded.rgb_mean is None
        assert json.loads((tmp_path / "deep/out/train/manifest.json").read_text())["shards_root"] == "../../../wds"
        assert stored(tmp_path / "deep/out/validation")["x-validation-0_a"] == (encoded(), 2)

    def test_a_label_that_makes_more_classes_than_samples(self, tmp_path, capsys):
        folder = self.shards(tmp_path / "wds", names=["train-0.tar"], label=999_999)
        error = refused(capsys, folder, tmp_path / "out")
        assert "train-0.tar: sample 'train-0_b' has label 999999, but there are only 2 samples" in error

    def test_a_shard_that_changed_since_is_told_when_it_is_packed_again(self, tmp_path, capsys):
        run(photos(tmp_path / "photos"), tmp_path / "out")
        with open(tmp_path / "out/train/shard-000000.tar", "ab") as shard:
            shard.write(b"more")
        assert "shard-000000.tar changed since it was indexed" in refused(capsys, tmp_path / "photos", tmp_path / "out")

    def test_pattern_and_class_list(self, tmp_path, monkeypatch):
        self.shards(tmp_path / "wds")
        (tmp_path / "classes.txt").write_text("cat\ndog\nemu\nyak\n")
        monkeypatch.chdir(tmp_path)
        run("wds/*-train-*.tar", "out", "--classes", "classes.txt")
        assert index.load(tmp_path / "out/train").classes == ("cat", "dog", "emu", "yak")
        assert not (tmp_path / "out/validation").exists()

    def test_refusals(self, tmp_path, capsys):
        folder = self.shards(tmp_path / "wds")
        (tmp_path / "classes.txt").write_text("cat\ndog\n")
        error = refused(capsys, folder, tmp_path / "out", "--classes", tmp_path / "classes.txt")
        assert "x-train-0.tar: sample 'x-train-0_a' has label 2, outside 0..1" in error
        assert "--short-side does nothing" in refused(capsys, folder, tmp_path / "out", "--short-side", 64)
        (folder / "x-train-2.tar").write_bytes((folder / "x-train-0.tar").read_bytes()[:1500])
        assert "x-train-2.tar: no readable tar" in refused(capsys, folder, tmp_path / "new")
        negative = self.shards(tmp_path / "negative", label=-1)
        assert "has label -1" in refused(capsys, negative, tmp_path / "new")


def test_help_imports_nothing_heavy():
    code = "import sys, launch.pack; launch.pack._parser().format_help(); print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, check=True, text=True)
    assert not {"torch", "numpy", "webdataset", "PIL"} & set(done.stdout.split())


def test_a_holdout_leaves_each_class_an_image_to_train_on(tmp_path):
    folder, out = tmp_path / "photos", tmp_path / "out"
    for number in range(12):
        write = folder / f"class{number:02d}" / f"{number}.png"
        write.parent.mkdir(parents=True)
        Image.new("RGB", (8, 8), (number, 0, 0)).save(write)
        Image.new("RGB", (8, 8), (number, 9, 0)).save(write.with_name("other.png"))
    assert command.main([str(folder), str(out), "--holdout", "0.5", "--workers", "1"]) == 0
    assert set(index.load(out / "train").label.tolist()) == set(range(12))


def pairs(folder: Path) -> dict[str, bytes]:
    return {name: content for name, content in tree(folder).items() if not name.startswith("pack.json")}


class TestFullDisk:
    @pytest.fixture
    def source(self, tmp_path) -> Path:
        for label, name in enumerate(COLOURS):
            (tmp_path / "photos" / name).mkdir(parents=True)
            for number in range(40):
                noise(100 * label + number, (64, 64)).save(tmp_path / "photos" / name / f"{number}.jpg", quality=95)
        return tmp_path / "photos"

    @pytest.mark.parametrize("workers", [1, 2])
    def test_the_message_has_path_and_room_and_the_same_command_goes_on(self, source, tmp_path, capsys, workers):
        words = ["--shard-images", "20"]
        run(source, tmp_path / "whole", *words)
        whole_bytes = sum(map(len, tree(tmp_path / "whole").values()))
        with disk_of(tmp_path / "small", 4 * whole_bytes) as disk:
            filler, out = fill(disk, whole_bytes // 2), disk / "out"
            run(source, out, *words, code=2, workers=workers)
            told = capsys.readouterr().err
            assert told.startswith(f"error: {disk / 'out.part'} cannot be written: the disk is full (it takes ")
            assert told.endswith("Free that much, then run the same command again; it goes on where it stopped\n")
            assert told.count("\n") == 1
            asked = int(re.search(r"takes ([\d,]+) bytes", told)[1].replace(",", ""))
            assert whole_bytes // 4 < asked < 2 * whole_bytes
            assert not list(disk.rglob("*.tmp"))
            assert list((disk / "out.part" / "records").iterdir())  # what is whole stays
            filler.unlink()
            run(source, out, *words)
            assert "going on: " in capsys.readouterr().out
            assert pairs(out) == pairs(tmp_path / "whole")

    @pytest.mark.parametrize("when", ["index", "publish"])
    def test_full_when_all_shards_are_there(self, source, tmp_path, capsys, monkeypatch, when):
        run(source, tmp_path / "whole")
        with disk_of(tmp_path / "small", 4 << 20) as disk:
            out, module, name = disk / "out", *((indexing, "write") if when == "index" else (staging, "publish"))
            real = getattr(module, name)

            def full(*args, **options):
                fill(disk)
                return real(*args, **options)

            with monkeypatch.context() as patch:
                patch.setattr(module, name, full)
                run(source, out, code=2)
            told = capsys.readouterr().err
            assert re.match(rf"error: {disk / 'out.part'}\S* cannot be written: the disk is full \(it takes ", told)
            assert told.count("\n") == 1
            (disk / "filler").unlink()
            run(source, out)
            assert "going on: 3 of 3 shards" in capsys.readouterr().out
            assert pairs(out) == pairs(tmp_path / "whole")

    def test_without_inodes(self, source, tmp_path, capsys):
        with disk_of(tmp_path / "small", 4 << 20, inodes=8) as disk:
            run(source, disk / "out", "--shard-images", "20", code=2)
            assert re.search(r"out.part cannot be written: its file system has \d inodes left", capsys.readouterr().err)
