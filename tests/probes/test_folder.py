"""Probe sets from a folder: its classes, masks and pixels, one geometry, and files that cannot be read."""

from __future__ import annotations

import os

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.datasets import ImageFolder
from torchvision.transforms import ToTensor, v2

from tests.probes.folders import noise, write
from xai_callbacks.errors import ProbeSetError
from xai_callbacks.probes import ProbeSet

# --- class folders


def test_class_folders_are_read_as_torchvision_reads_them(animals):
    (animals / "cat" / "deeper").mkdir()
    write(animals / "cat" / "deeper" / "3.JPG.png", noise(seed=9))
    (animals / "cat" / "notes.txt").write_text("not an image")
    (animals / ".cache").mkdir()
    probes = ProbeSet.from_folder(animals, size=8)
    os.rename(animals / "masks", animals / ".masks")
    twin = ImageFolder(
        animals,
        ToTensor(),
        is_valid_file=lambda path: path.endswith(".png"),
        allow_empty=True,
    )
    expected = {tuple(x.flatten().tolist()): twin.classes[y] for x, y in twin if not twin.classes[y].startswith(".")}
    got = {
        tuple(x.flatten().tolist()): probes.class_name(int(y))
        for x, y in zip(probes.images, probes.labels, strict=True)
    }
    assert got == expected
    assert probes.class_names == ("cat", "dog")
    assert probes.names == ("cat/1", "cat/2", "cat/deeper/3.JPG", "dog/1")


def test_masks_is_no_class_and_its_masks_belong_to_the_images(animals):
    probes = ProbeSet.from_folder(animals, size=8)
    assert list(probes.masks) == ["core"]
    assert probes.masks["core"].any(dim=(1, 2)).tolist() == [False, True, False]
    assert probes.masks["core"][1].sum(dim=0).tolist() == [8, 8, 8, 8, 0, 0, 0, 0]


def test_given_class_names_set_the_indexes(animals):
    probes = ProbeSet.from_folder(animals, size=8, class_names=["emu", "dog", "cat"])
    assert probes.labels.tolist() == [2, 2, 1]
    assert probes.class_names == ("emu", "dog", "cat")


def test_an_empty_class_folder_keeps_its_index(animals):
    (animals / "bee").mkdir()
    assert ProbeSet.from_folder(animals, size=8).labels.tolist() == [1, 1, 2]


def test_images_that_differ_in_suffix_only_are_told_apart(tmp_path):
    write(tmp_path / "cat" / "1.png", noise())
    write(tmp_path / "cat" / "1.bmp", noise())
    assert ProbeSet.from_folder(tmp_path, size=8).names == ("cat/1.bmp", "cat/1.png")


def test_a_class_name_that_stands_for_several_classes_is_refused(animals):
    with pytest.raises(ProbeSetError, match=r"folder 'cat'.*several"):
        ProbeSet.from_folder(animals, size=8, class_names=["cat", "cat", "dog"])


def test_a_folder_that_is_no_class_is_refused(animals):
    with pytest.raises(ProbeSetError, match="folder 'dog'"):
        ProbeSet.from_folder(animals, size=8, class_names=["cat", "fox"])


# --- pixels and normalisation


def test_pixels_are_exact_and_images_are_normalised(animals):
    mean, std = [0.4, 0.5, 0.6], [0.2, 0.25, 0.5]
    probes = ProbeSet.from_folder(animals, size=8, mean=mean, std=std)
    assert torch.equal(probes.pixels[2], torch.from_numpy(noise(seed=2)))
    expected = v2.functional.normalize(torch.from_numpy(noise(seed=2)).permute(2, 0, 1) / 255.0, mean, std)
    assert torch.equal(probes.images[2], expected)
    assert (probes.mean, probes.std) == (tuple(mean), tuple(std))


def test_one_mean_means_a_model_of_grey_images(tmp_path):
    write(tmp_path / "seven" / "1.png", noise(channels=1))
    probes = ProbeSet.from_folder(tmp_path, size=8, mean=[0.0], std=[1.0])
    assert torch.equal(probes.images[0, 0], torch.from_numpy(noise(channels=1)) / 255.0)
    assert torch.equal(probes.pixels[0, :, :, 1], torch.from_numpy(noise(channels=1)))


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "RGBA", "LA", "CMYK"])
def test_every_8_bit_mode_becomes_rgb(tmp_path, mode):
    file = tmp_path / "cat" / ("1.tif" if mode == "CMYK" else "1.png")
    file.parent.mkdir()
    image = Image.fromarray(noise()).convert(mode)
    image.save(file)
    assert torch.equal(
        ProbeSet.from_folder(tmp_path, size=8).pixels[0], torch.from_numpy(np.array(image.convert("RGB")))
    )


def test_a_palette_with_transparency_gives_no_warning(tmp_path):
    (tmp_path / "cat").mkdir()
    Image.fromarray(noise()).quantize(8).save(tmp_path / "cat" / "1.png", transparency=b"\x00\x80\xff")
    assert len(ProbeSet.from_folder(tmp_path, size=8)) == 1


# --- geometry


@pytest.mark.parametrize("shape", [(20, 31), (31, 20), (16, 16), (5, 9), (97, 13)])
@pytest.mark.parametrize(("size", "resize"), [(12, None), (12, 16), (12, 12), (15, 17)])
def test_square_geometry_is_that_of_torchvision(tmp_path, shape, size, resize):
    array = noise(*shape)
    write(tmp_path / "cat" / "1.png", array)
    expected = v2.Compose([v2.Resize(resize or size), v2.CenterCrop(size)])(Image.fromarray(array))
    got = ProbeSet.from_folder(tmp_path, size=size, resize=resize).pixels[0]
    assert torch.equal(got, torch.from_numpy(np.array(expected)))


@pytest.mark.parametrize("shape", [(20, 31), (31, 20), (16, 16), (10, 30), (7, 3), (333, 500)])
@pytest.mark.parametrize("size", [(6, 10), (10, 6), (1, 9), (224, 223)])
def test_a_rectangle_is_filled_from_the_centre(tmp_path, shape, size):
    write(tmp_path / "cat" / "1.png", np.full((*shape, 3), 200, dtype=np.uint8))
    probes = ProbeSet.from_folder(tmp_path, size=size)
    assert probes.images.shape[2:] == size
    assert (probes.pixels == 200).all()


def test_masks_go_through_the_geometry_of_their_images(tmp_path):
    area = np.zeros((40, 60), dtype=np.uint8)
    area[10:30, 20:44] = 255
    write(tmp_path / "cat" / "1.png", np.repeat(area[..., None], 3, axis=2))
    write(tmp_path / "masks" / "core" / "cat" / "1.png", area)
    probes = ProbeSet.from_folder(tmp_path, size=12, resize=20)
    inside = probes.masks["core"][0]
    # By hand: 40 x 60 is halved to 20 x 30, then rows 4 to 16 and columns 9 to 21 are kept.
    expected = torch.zeros(12, 12, dtype=torch.bool)
    expected[1:11, 1:12] = True
    assert torch.equal(inside, expected)
    assert (probes.pixels[0, :, :, 0] > 127).logical_xor(inside).sum() == 0


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "RGBA", "LA"])
def test_masks_of_every_mode_are_inside_where_nonzero(tmp_path, mode):
    write(tmp_path / "cat" / "1.png", noise())
    area = np.zeros((8, 8), dtype=np.uint8)
    area[2:5, 3:7] = 255
    path = tmp_path / "masks" / "core" / "cat" / "1.png"
    path.parent.mkdir(parents=True)
    Image.fromarray(area).convert(mode).save(path)
    assert torch.equal(ProbeSet.from_folder(tmp_path, size=8).masks["core"][0], torch.from_numpy(area > 0))


def test_a_fully_transparent_part_of_a_mask_is_outside(tmp_path):
    write(tmp_path / "cat" / "1.png", noise())
    area = np.full((8, 8, 4), 255, dtype=np.uint8)
    area[:4, :, 3] = 0
    write(tmp_path / "masks" / "core" / "cat" / "1.png", area)
    assert ProbeSet.from_folder(tmp_path, size=8).masks["core"][0].sum(dim=1).tolist() == [0] * 4 + [8] * 4


# --- unreadable files


@pytest.mark.parametrize("content", [b"", b"no image at all", b"\x89PNG\r\n\x1a\n broken"])
def test_an_unreadable_image_is_refused_by_file(animals, content):
    (animals / "cat" / "2.png").write_bytes(content)
    with pytest.raises(ProbeSetError, match=r"'cat/2\.png'.*readable image"):
        ProbeSet.from_folder(animals, size=8)


def test_a_truncated_image_is_refused_by_file(tmp_path):
    path = write(tmp_path / "cat" / "1.png", noise(64, 64))
    path.write_bytes(path.read_bytes()[:3000])
    with pytest.raises(ProbeSetError, match=r"'cat/1\.png'.*readable image"):
        ProbeSet.from_folder(tmp_path, size=8)


def test_a_decompression_bomb_is_refused_by_file(animals, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 20)
    with pytest.raises(ProbeSetError, match=r"'cat/1\.png'.*Bomb"):
        ProbeSet.from_folder(animals, size=8)


def test_an_image_of_16_bits_is_refused_by_file(tmp_path):
    write(tmp_path / "cat" / "1.png", noise(channels=1).astype(np.uint16) * 257)
    with pytest.raises(ProbeSetError, match=r"'cat/1\.png'.*8 bits.*I;16"):
        ProbeSet.from_folder(tmp_path, size=8)


def test_a_mask_of_another_size_is_refused_by_file(animals):
    write(animals / "masks" / "core" / "cat" / "2.png", noise(8, 9, channels=1))
    with pytest.raises(ProbeSetError, match=r"masks/core/cat/2\.png.*8 x 8.*8 x 9"):
        ProbeSet.from_folder(animals, size=8)


def test_an_unreadable_mask_is_refused_by_file(animals):
    (animals / "masks" / "core" / "cat" / "2.png").write_bytes(b"nothing")
    with pytest.raises(ProbeSetError, match=r"masks/core/cat/2\.png"):
        ProbeSet.from_folder(animals, size=8)


def test_a_region_without_any_mask_is_told(animals):
    write(animals / "masks" / "cue" / "cat_2.png", noise(channels=1))
    with pytest.warns(UserWarning, match=r"masks/cue`.*'masks/cue/cat/1\.png'") as caught:
        probes = ProbeSet.from_folder(animals, size=8)
    assert (len(caught), caught[0].filename) == (1, __file__)
    assert probes.masks["core"].any()
    assert not probes.masks["cue"].any()


# --- arguments


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"size": 0}, "size"),
        ({"size": 7.5}, "size"),
        ({"size": (8, 8, 8)}, "size"),
        ({"size": (8, True)}, "size"),
        ({"size": 8, "resize": 4}, "resize"),
        ({"size": 8, "resize": 9.0}, "resize"),
        ({"size": (8, 20), "resize": 10}, r"'cat/1\.png'.*larger `resize`"),
        ({"mean": [0.5] * 3}, "`std` .*Give both"),
        ({"mean": [0.5] * 2, "std": [1.0] * 2}, "3 finite"),
        ({"mean": 0.5, "std": 1.0}, "sequence"),
        ({"class_names": "cat"}, "sequence of strings"),
    ],
)
def test_malformed_arguments_are_refused(animals, arguments, said):
    with pytest.raises(ProbeSetError, match=said):
        ProbeSet.from_folder(animals, **arguments)


def test_a_root_that_is_no_folder_or_holds_no_images_is_refused(tmp_path):
    with pytest.raises(ProbeSetError, match="folder"):
        ProbeSet.from_folder(tmp_path / "none")
    write(tmp_path / "loose.png", noise())
    with pytest.raises(ProbeSetError, match=r"probes\.csv"):
        ProbeSet.from_folder(tmp_path)
