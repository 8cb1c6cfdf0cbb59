"""Classes of weights and data are matched by name, by number, or not at all."""

import random
import unicodedata

import pytest

from squeezenet_jax.system.errors import UserError
from squeezenet_jax.weights import classes

NAMES = ("cat", "dog", "emu", "fox")


def test_equal_names_go_by_name_whatever_their_order():
    for seed in range(5):
        data = random.Random(seed).sample(NAMES, 4)
        matched = classes.match(NAMES, 4, data)
        assert (matched.how, matched.note) == ("name", "")
        assert [NAMES[number] for number in matched.numbers] == data


def test_numbers_go_as_numbers_not_as_strings():
    data = sorted(str(number) for number in range(1000))
    for network in ((), tuple(f"name {number}" for number in range(1000))):
        matched = classes.match(network, 1000, data)
        assert matched.how == "number" and list(matched.numbers) == [int(name) for name in data]
    assert classes.match((), 11, [f"{number:03}" for number in range(11)]).numbers == tuple(range(11))


def test_numbers_that_are_the_networks_own_names_go_by_name():
    """As of a run whose folders were numbers: their order as strings was the order of its classes."""
    network = sorted(str(number) for number in range(20))
    matched = classes.match(network, 20, [str(number) for number in range(20)])
    assert matched.how == "name" and [network[number] for number in matched.numbers] == [str(n) for n in range(20)]


def test_a_network_without_names_goes_by_position_and_says_so():
    matched = classes.match((), 4, NAMES)
    assert (matched.how, matched.numbers) == ("position", (0, 1, 2, 3)) and "no class names" in matched.note


def test_without_names_of_the_network_classes_that_sort_in_two_ways_are_refused():
    """As text c10 comes before c2; whoever numbered the classes of the weights may have thought otherwise."""
    for data in (("c1", "c10", "c2"), ("1", "10", "2"), ("1.owl", "10.cat", "9.dog"), ("a 1 b", "a 02 b", "a 1 c")):
        data = sorted(data)
        with pytest.raises(UserError, match=r"sort in two ways, .*before .*; --classes-by-position") as caught:
            classes.match((), 3, data)
        assert "\n" not in str(caught.value)
        assert classes.match((), 3, data, by_position=True).numbers == (0, 1, 2)
        assert classes.match(data, 3, data).how == "name"
    for data in (("c01", "c02", "c10"), ("c2", "c1", "c10"), ("cat 9", "cow 10", "dog 1"), ("n1", "n1", "n2")):
        assert classes.match((), 3, data).numbers == (0, 1, 2)


def test_imagenets_wnids_stand_for_its_names():
    wnids = [f"n{number:08}" for number in range(1000)]
    names = ["tench, Tinca tinca", "goldfish, Carassius auratus", *(f"thing {number}" for number in range(998))]
    assert classes.match(names, 1000, wnids).how == "position"
    assert classes.match(wnids, 1000, wnids[::-1]).numbers == tuple(range(1000))[::-1]
    with pytest.raises(UserError, match="other classes"):
        classes.match(names[::-1], 1000, wnids)
    with pytest.raises(UserError, match="other classes"):
        classes.match(NAMES, 4, wnids[:4])


@pytest.mark.parametrize(
    ("network", "data", "message"),
    [
        (
            NAMES,
            ("apple", "banana", "cat", "cherry"),
            "only the data have: apple, banana, cherry; only",
        ),
        (NAMES, ("cat", "dog", "emu"), "has 3 class folders; the network has 4 classes; .*only the weights: fox"),
        (NAMES, ("1", "2", "3", "4"), "has other classes than the weights"),
        (("cat", "cat", "dog", "emu"), NAMES, "the weights have 1 name.s. twice"),
        ((), ("cat",), "has 1 class folder; the network has 4 classes"),
        (NAMES, tuple("abcd"), "only the data have: a, b, c and 1 more; .*--classes-by-position"),
    ],
)
def test_other_classes_are_refused_with_the_first_differences(network, data, message):
    with pytest.raises(UserError, match=message) as caught:
        classes.match(network, 4, data)
    assert "\n" not in str(caught.value)
    if len(data) == 4:
        assert classes.match(network, 4, data, by_position=True).numbers == (0, 1, 2, 3)
    else:
        with pytest.raises(UserError, match="class folder"):
            classes.match(network, 4, data, by_position=True)


def test_accents_are_the_same_however_a_system_writes_them():
    data = [unicodedata.normalize("NFD", name) for name in ("été", "niño")]
    assert classes.match(("niño", "été"), 2, data).numbers == (1, 0)


def test_spaces_around_a_name_are_no_part_of_it():
    assert classes.match(("cat", "dog "), 2, (" dog", "cat")).numbers == (1, 0)


def test_folders_that_are_the_same_name_are_not_matched():
    """As ` cat` and `cat` on a disk; or one more would be evaluated than the network has."""
    with pytest.raises(UserError, match="has 3 class folders; the network has 2 classes"):
        classes.match(("cat", "dog"), 2, ("cat", "dog", "dog "))


@pytest.mark.parametrize("last", ["3rd", "３", "²"])
def test_only_ascii_digits_alone_are_numbers(last):
    with pytest.raises(UserError, match="other classes"):
        classes.match(NAMES, 4, ("0", "1", "2", last))


def test_wnids_stand_for_imagenets_names_only_where_all_of_both_are_there():
    wnids = [f"n{number:08}" for number in range(1000)]
    names = ["tench", "goldfish", *(f"thing {number}" for number in range(998))]
    assert classes.match(names, 1000, wnids).how == "position"
    for network, data in (
        (["tench", "gold", *names[2:]], wnids),
        (names, [wnids[1], wnids[0], *wnids[2:]]),
        (names[:10], wnids[:10]),
    ):
        with pytest.raises(UserError, match="other classes"):
            classes.match(network, len(network), data)


def test_a_name_that_stands_twice_in_either_list_contradicts_nothing():
    classes.check_labels(("crane", "dog", "crane"), ("Kran", "crane", "Vogel"))
    classes.check_labels(("dog", "crane"), ("crane", "crane"))


def test_labels_may_translate_but_not_contradict():
    classes.check_labels(NAMES, NAMES)
    classes.check_labels(NAMES, ("Katze", "Hund", "emu", "Fuchs"))
    classes.check_labels(("crane", "dog", "crane"), ("crane", "Hund", "crane"))
    classes.check_labels((), NAMES)
    for labels in (("dog", "cat", "emu", "fox"), ("Katze", "Hund", "Fuchs", "emu")):
        with pytest.raises(UserError, match=r'"\w+" is class \d there, and class \d by the weights. own names'):
            classes.check_labels(NAMES, labels)
