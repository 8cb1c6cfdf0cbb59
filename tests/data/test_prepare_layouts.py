"""What a SOURCE may be: a folder, a tar archive, ImageNet's own archives; and what is refused."""

import io
import tarfile
from pathlib import Path

import pytest
import tensorflow_datasets as tfds
from prepare_files import (
    PHOTOGRAPHS,
    Listener,
    digests,
    jpeg,
    needs_photographs,
    read,
    small_collection,
    tar_bytes,
    write_folder,
    write_tar,
)
from tensorflow_datasets.core import hashing

from squeezenet_jax.data import archives, layouts
from squeezenet_jax.data.prepare.writer import prepare
from squeezenet_jax.system.errors import UserError

IMAGENET = Path(tfds.core.tfds_path("datasets/imagenet2012"))


def test_a_folder_gives_its_images_under_their_classes(tmp_path):
    files = small_collection()
    prepared = prepare(write_folder(tmp_path / "My-Flowers", files), tmp_path / "out", Listener())
    assert prepared.directory == tmp_path / "out" / "my_flowers" / "1.0.0"
    assert prepared.sizes == {"train": 30, "validation": 10} and prepared.num_classes == 4
    for folder, split in (("train", "train"), ("val", "validation")):
        stored = {name: (label, data) for name, (label, data, _) in read(prepared.directory, split).items()}
        assert stored == {
            name.removeprefix(f"{folder}/"): (name.split("/")[1], content)
            for name, content in files.items()
            if content is not None and name.startswith(folder)
        }
    label = tfds.builder_from_directory(prepared.directory).info.features["label"]
    assert label.names == ["ant", "bee", "cat", "dog"]  # two of them have an empty folder in train


@pytest.mark.parametrize("compression", ["", "gz", "bz2", "xz"])
@pytest.mark.parametrize("top", ["", "./", "some-320/"])
def test_an_archive_gives_the_same_as_the_folder(tmp_path, compression, top):
    files = small_collection()
    folder = prepare(write_folder(tmp_path / "folder", files), tmp_path / "a", Listener(), name="x")
    tar = write_tar(tmp_path / "x.tar", {f"{top}{name}": content for name, content in files.items()}, compression)
    archive = prepare(tar, tmp_path / "b", Listener())
    records = [
        {name: digest for name, digest in digests(p.directory).items() if "array_record" in name or "features" in name}
        for p in (folder, archive)
    ]
    assert records[0] == records[1] and len(records[0]) == 3


def test_classes_are_the_union_where_there_is_no_train(tmp_path):
    source = write_folder(tmp_path / "s", {"test/b/1.jpg": jpeg(1), "validation/a/1.jpg": jpeg(2)})
    prepared = prepare(source, tmp_path / "out", Listener())
    assert prepared.sizes == {"test": 1, "validation": 1} and prepared.num_classes == 2
    assert read(prepared.directory, "test")["b/1.jpg"][0] == "b"


def test_folders_below_a_class_belong_to_it_and_hidden_files_to_nothing(tmp_path):
    files = {
        "train/a/images/1.jpg": jpeg(1),
        "train/a/.hidden": b"x",
        "train/.cache/x": b"x",
        "train/stray.txt": b"x",
        "notes.txt": b"x",
    }
    for prepared in (
        prepare(write_folder(tmp_path / "s", files), tmp_path / "out", Listener()),
        prepare(write_tar(tmp_path / "t.tar", files), tmp_path / "out", Listener()),
    ):
        assert list(read(prepared.directory, "train")) == ["a/images/1.jpg"]
        assert prepared.unreadable == () and prepared.ignored == 3 and prepared.num_classes == 1
        assert [name.replace("/x", "") for name in prepared.ignored_names] == [
            "train/.cache: hidden",
            "train/a/.hidden: hidden",
            "train/stray.txt: in no class folder",
        ]


def test_names_in_an_archive_are_only_text(tmp_path):
    odd = "train/a/../../../../evil.jpg", "train/a/\udcff\n\x1b[31m.jpg", f"train/a/{'x' * 300}.jpg"
    files = {name: jpeg(seed) for seed, name in enumerate(odd)}
    prepared = prepare(write_tar(tmp_path / "t.tar", files), tmp_path / "out", Listener())
    # hidden, as every part that begins with a point is; the others keep their names, in UTF-8
    assert set(read(prepared.directory, "train")) == {"a/\\xff\n\x1b[31m.jpg", f"a/{'x' * 300}.jpg"}
    assert {path.name for path in tmp_path.iterdir()} == {"t.tar", "out"} and not Path("/evil.jpg").exists()


def test_a_name_is_printed_in_one_line_in_the_order_of_its_letters():
    assert archives.printable("a\nb\r\x1b[0m\x00\x85\u2028\u202e.jpg") == r"a\nb\r\x1b[0m\x00\x85\u2028\u202e.jpg"
    for name in ("guinea\xa0pig", "柴\u3000犬", "क्\u200dष", "soft\xadhyphen", "🏴\U000e0067\U000e007f", "[red]"):
        assert archives.printable(name) == name


def test_links_in_an_archive(tmp_path):
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        for name, kind, target in (
            ("train/a/1.jpg", tarfile.REGTYPE, ""),
            ("train/a/hard.jpg", tarfile.LNKTYPE, "train/a/1.jpg"),
            ("train/a/soft.jpg", tarfile.SYMTYPE, "/etc/passwd"),
            ("train/a/dangling.jpg", tarfile.LNKTYPE, "/etc/passwd"),
        ):
            member = tarfile.TarInfo(name)
            member.type, member.linkname, member.size = kind, target, 0 if target else len(jpeg(1))
            archive.addfile(member, None if target else io.BytesIO(jpeg(1)))
    (tmp_path / "t.tar").write_bytes(file.getvalue())
    prepared = prepare(tmp_path / "t.tar", tmp_path / "out", Listener())
    stored = read(prepared.directory, "train")
    assert set(stored) == {"a/1.jpg", "a/hard.jpg"} and stored["a/hard.jpg"][1] == jpeg(1)
    assert prepared.ignored == 2


def test_a_file_that_is_archived_twice_counts_once_as_it_was_last(tmp_path):
    tar = write_tar(tmp_path / "t.tar", {"train/a/1.jpg": jpeg(1)})
    with tarfile.open(tar, "a") as archive:
        member = tarfile.TarInfo("train/a/1.jpg")
        member.size = len(jpeg(2))
        archive.addfile(member, io.BytesIO(jpeg(2)))
    stored = read(prepare(tar, tmp_path / "out", Listener()).directory, "train")
    assert stored["a/1.jpg"][1] == jpeg(2) and len(stored) == 1


def imagenet_archives(folder, photographs, wnids):
    """ImageNet's two archives with a few images: (file name -> class, content) for train and validation."""
    train = {f"{wnid}_{10 * i}.JPEG": (wnid, photographs[i]) for i, wnid in enumerate(wnids)}
    train[f"{wnids[0]}_7.JPEG"] = wnids[0], photographs[-1]
    labels = (IMAGENET / "validation_labels.txt").read_text().split()
    numbers = (1, 2, 3, 777, 50_000)
    validation = {
        f"ILSVRC2012_val_{number:08}.JPEG": (labels[number - 1], photographs[-1 - i])
        for i, number in enumerate(numbers)
    }
    inner = {
        f"{wnid}.tar": tar_bytes({name: data for name, (label, data) in train.items() if label == wnid})
        for wnid in wnids
    }
    write_tar(folder / "ILSVRC2012_img_train.tar", inner)
    write_tar(folder / "ILSVRC2012_img_val.tar", {name: data for name, (_, data) in validation.items()})
    return {"train": train, "validation": validation}


@pytest.fixture(scope="module")
def photographs():
    with tarfile.open(PHOTOGRAPHS) as archive:
        return [archive.extractfile(member).read() for member in archive if member.isreg()][:12]


@needs_photographs
def test_imagenets_own_archives(photographs, tmp_path):
    expected = imagenet_archives(tmp_path / "s", photographs, ["n01440764", "n02105855", "n13037406"])
    prepared = prepare(tmp_path / "s", tmp_path / "out", Listener())
    assert prepared.directory == tmp_path / "out" / "imagenet2012" / "1.0.0"
    assert prepared.sizes == {"train": 4, "validation": 5} and prepared.num_classes == 1000
    for split, images in expected.items():
        stored = read(prepared.directory, split)
        assert {name: value[:2] for name, value in stored.items()} == images
        assert list(stored) == sorted(images, key=hashing.Hasher(split).hash_key)  # TFDS's order for these names
    features = tfds.builder_from_directory(prepared.directory).info.features
    official = tfds.builder("imagenet2012", data_dir=tmp_path / "none").info.features
    assert features["label"].names == official["label"].names and set(features) == set(official)
    assert [p.name for p in (tmp_path / "out").rglob("*") if p.suffix in (".tar", ".JPEG")] == []


@needs_photographs
@pytest.mark.parametrize("name", ["ILSVRC2012_img_train.tar", "ILSVRC2012_img_val.tar"])
def test_one_of_imagenets_archives_is_enough_if_it_is_whole(photographs, tmp_path, name):
    imagenet_archives(tmp_path / "s", photographs, ["n01440764", "n02105855"])
    for path in (tmp_path / "s").iterdir():
        if path.name != name:
            path.unlink()
    archive = tmp_path / "s" / name
    assert len(prepare(tmp_path / "s", tmp_path / "out", Listener()).sizes) == 1
    archive.write_bytes(archive.read_bytes()[: archive.stat().st_size // 2])
    with pytest.raises(UserError, match="damaged or cut short"):
        prepare(tmp_path / "s", tmp_path / "other", Listener())
    assert not (tmp_path / "other").exists()


def test_a_class_that_imagenet_does_not_have(tmp_path):
    write_tar(tmp_path / "s" / "ILSVRC2012_img_train.tar", {"n00000000.tar": tar_bytes({"n00000000_1.JPEG": jpeg(1)})})
    with pytest.raises(UserError, match=r'holds "n00000000.tar", which is no class of ImageNet 2012'):
        prepare(tmp_path / "s", tmp_path / "out", Listener())


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"a/1.jpg": jpeg(1)}, "has no split folders; allowed: train/<class>/<image>"),
        ({"train/1.jpg": jpeg(1)}, "has no files in its class folders"),
        ({"train/a/1.jpg": jpeg(1), "test/b/1.jpg": jpeg(2)}, 'test has 1 class folder.* that train lacks.*"b"'),
        ({"val/a/1.jpg": jpeg(1), "validation/a/1.jpg": jpeg(2)}, "both val and validation"),
        ({"train/a /1.jpg": jpeg(1)}, 'class folder "a " cannot be the name of a class'),
        ({"train/a/1.jpg": b"text", "train/a/2.jpg": b""}, r"no file of train can be read.*train/a/1.jpg: no image"),
    ],
)
def test_wrong_folders_and_archives_are_refused(tmp_path, files, message):
    folder, tar = write_folder(tmp_path / "s", files), write_tar(tmp_path / "t.tar.gz", files, "gz")
    for source in (folder, tar):
        with pytest.raises(UserError, match=message) as caught:
            prepare(source, tmp_path / "out", Listener())
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("compression", ["", "gz", "xz"])
@pytest.mark.parametrize("keep", [0.0, 0.5])
def test_damaged_archives_are_refused_and_leave_nothing(tmp_path, compression, keep):
    content = tar_bytes({f"train/a/{i}.jpg": jpeg(i, (200, 200)) for i in range(9)}, compression)
    (tmp_path / "t.tar").write_bytes(content[: int(len(content) * keep)])
    with pytest.raises(UserError, match=r"damaged or cut short|no tar archive") as caught:
        prepare(tmp_path / "t.tar", tmp_path / "out", Listener())
    assert "\n" not in str(caught.value) and not (tmp_path / "out").exists()


@pytest.mark.parametrize("damage", ["cut at a header", "cut in a header", "a header's byte", "no end", "more behind"])
def test_an_archive_whose_end_is_not_its_end_is_refused(tmp_path, damage):
    """tarfile takes a damaged or missing header for the end: the images behind it would be missing without a word."""
    content = bytearray(tar_bytes({f"train/a/{i}.jpg": jpeg(i, (200, 200)) for i in range(9)}, ""))
    path = tmp_path / "t.tar"
    path.write_bytes(content)
    with tarfile.open(path) as tar:
        headers = [member.offset for member in tar if member.isfile()]
        end = tar.offset
    assert len(list(archives.members(path))) >= 9
    match damage:
        case "cut at a header":
            del content[headers[5] :]
        case "cut in a header":
            del content[headers[5] + 100 :]
        case "a header's byte":
            content[headers[5] + 3] ^= 1
        case "no end":
            del content[end:]
        case "more behind":
            content += content[: headers[1]]
    path.write_bytes(content)
    with pytest.raises(UserError, match="damaged or cut short"):
        prepare(path, tmp_path / "out", Listener())
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("none", None, "no such file or folder"),
        ("a.txt", b"hello" * 200, "no tar archive.*allowed: a folder, .tar"),
        ("a.tar.zst", b"\x28\xb5\x2f\xfd" * 200, "no tar archive.*allowed: a folder, .tar"),
        ("ILSVRC2012_img_val.tar", b"", "give the folder that holds it"),
    ],
)
def test_other_sources_are_refused(tmp_path, name, content, message):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=message):
        prepare(tmp_path / name, tmp_path / "out", Listener())


@pytest.mark.parametrize(
    ("source", "kind", "name"),
    [
        ("cifar10-jpeg.tar.xz", "tar", "cifar10_jpeg"),
        ("imagenette2-320.tgz", "tar", "imagenette2_320"),
        ("Flowers.TAR", "tar", "flowers"),
        ("MyFlowers v1.2", "folder", "my_flowers_v1_2"),
        ("anything", "imagenet", "imagenet2012"),
    ],
)
def test_the_name_comes_from_the_source(source, kind, name):
    assert layouts.default_name(Path(source), kind) == name
