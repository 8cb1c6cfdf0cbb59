"""Augmentation inside the compiled step."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from squeezenet_jax.training.augment import crop_and_flip, cut_out, mix, mixup_shares, normalize

IMAGE = jnp.arange(1, 1 + 4 * 6 * 6 * 2, dtype=jnp.uint8).reshape(4, 6, 6, 2)


def keys(count, seed=0):
    return jax.vmap(lambda i: jax.random.fold_in(jax.random.key(seed), i))(jnp.arange(count))


def test_normalize_is_torchvisions_formula():
    got = normalize(IMAGE, (0.5, 0.25), (0.1, 0.2))
    np.testing.assert_allclose(got[1, 2, 3, 1], (int(IMAGE[1, 2, 3, 1]) / 255 - 0.25) / 0.2, rtol=1e-5)


def test_every_crop_is_a_shifted_and_maybe_mirrored_image():
    out = np.asarray(crop_and_flip(jnp.tile(IMAGE[:1], (200, 1, 1, 1)), keys(200), padding=2, flip=True))
    padded = np.pad(np.asarray(IMAGE[0]), ((2, 2), (2, 2), (0, 0)))
    seen = set()
    for image in out:
        matches = [
            (top, left, mirrored)
            for top in range(5)
            for left in range(5)
            for mirrored in (False, True)
            if np.array_equal(padded[top : top + 6, left : left + 6][:, :: -1 if mirrored else 1], image)
        ]
        assert len(matches) == 1
        seen.add(matches[0])
    assert len(seen) == pytest.approx(50, abs=5)  # of 5 x 5 x 2; 200 draws miss about one


def test_an_example_is_augmented_the_same_wherever_it_stands_in_a_batch():
    key_B = keys(4)
    whole = crop_and_flip(IMAGE, key_B, padding=2, flip=True)
    order = jnp.array([2, 0, 3, 1])
    np.testing.assert_array_equal(crop_and_flip(IMAGE[order], key_B[order], padding=2, flip=True), whole[order])


def test_without_crop_and_flip_nothing_changes():
    np.testing.assert_array_equal(crop_and_flip(IMAGE, keys(4), padding=0, flip=False), IMAGE)


def test_half_of_the_images_are_mirrored_whatever_their_crop():
    out = np.asarray(crop_and_flip(jnp.tile(IMAGE[:1], (2000, 1, 1, 1)), keys(2000), padding=1, flip=True))
    padded = np.pad(np.asarray(IMAGE[0]), ((1, 1), (1, 1), (0, 0)))
    counts = np.zeros((2, 9))
    for place, (top, left) in enumerate(np.ndindex(3, 3)):
        crop = padded[top : top + 6, left : left + 6]
        for mirrored in (0, 1):
            counts[mirrored, place] = (out == crop[:, :: -1 if mirrored else 1]).all((1, 2, 3)).sum()
    assert counts.sum() == 2000
    np.testing.assert_allclose(counts, 2000 / 18, atol=5 * (2000 / 18) ** 0.5)


def test_only_what_is_asked_for_is_done():
    images = jnp.tile(IMAGE[:1], (50, 1, 1, 1))
    mirrored = np.asarray(crop_and_flip(images, keys(50), padding=0, flip=True))
    either = [np.asarray(IMAGE[0]), np.asarray(IMAGE[0, :, ::-1])]
    assert {tuple(np.array_equal(image, one) for one in either) for image in mirrored} == {(True, False), (False, True)}
    cropped = np.asarray(crop_and_flip(images, keys(50), padding=1, flip=False))
    inner = IMAGE[0, 1:-1, 1:-1]  # is in every crop, and never mirrored
    found = [
        any(np.array_equal(image[top : top + 4, left : left + 4], inner) for top, left in np.ndindex(3, 3))
        for image in cropped
    ]
    assert all(found) and len(np.unique(cropped, axis=0)) == 9


@pytest.mark.parametrize("size", [3, 4])
def test_cutout_blackens_one_square_that_may_reach_over_the_border(size):
    out = np.asarray(cut_out(jnp.ones((400, 6, 8, 2)), keys(400), size=size))
    seen = set()
    for image in out:
        assert (image[..., 0] == image[..., 1]).all()
        rows, columns = (np.flatnonzero((image[..., 0] == 0).any(axis)) for axis in (1, 0))
        assert (image[np.ix_(rows, columns)] == 0).all() and (image == 0).sum() == 2 * len(rows) * len(columns)
        assert 1 <= len(rows) <= size and 1 <= len(columns) <= size
        seen.add((rows[0], len(rows), columns[0], len(columns)))
    assert len(seen) == 6 * 8  # the centre is any pixel
    np.testing.assert_array_equal(cut_out(jnp.ones((4, 6, 8, 2)), keys(4), size=size), out[:4])


def test_mixup_keeps_half_or_more_of_an_image_and_all_of_it_without_a_partner():
    share = np.asarray(mixup_shares(keys(4000), jnp.ones(4000, jnp.int32), alpha=1.0))
    assert share.min() >= 0.5 and share.max() <= 1
    np.testing.assert_allclose(np.quantile(share, [0.25, 0.5, 0.75]), [0.625, 0.75, 0.875], atol=0.02)  # uniform
    assert np.mean(np.asarray(mixup_shares(keys(4000), jnp.ones(4000, jnp.int32), alpha=0.1)) > 0.99) > 0.5
    np.testing.assert_array_equal(mixup_shares(keys(4), jnp.array([0, 1, 0, 1]), alpha=1.0)[::2], 1)


def test_a_blend_has_the_shares_of_both_and_with_all_of_one_it_is_that_one():
    image, other = np.random.default_rng(0).normal(size=(2, 3, 4, 4, 2)).astype(np.float32)
    blended = mix(image, other, jnp.array([1.0, 0.75, 0.5]))
    np.testing.assert_array_equal(blended[0], image[0])
    np.testing.assert_allclose(blended[1:], [0.75 * image[1] + 0.25 * other[1], (image[2] + other[2]) / 2], rtol=1e-5)
    labels = mix(jnp.eye(3), jnp.eye(3)[::-1], jnp.array([1.0, 0.75, 0.5]))
    np.testing.assert_array_equal(labels, [[1, 0, 0], [0, 1, 0], [0.5, 0, 0.5]])
