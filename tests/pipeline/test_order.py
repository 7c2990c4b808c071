from fractions import Fraction

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from kernels.philox import IMAGE_ORDER, philox_plain
from pipeline.order import balanced_order

NUM_CLASSES = 7
LABELS = st.lists(st.integers(0, NUM_CLASSES - 1), max_size=150)


def order_of(labels: list[int]) -> list[int]:
    order: list[int] = balanced_order(np.array(labels, dtype=np.uint16), NUM_CLASSES).tolist()
    return order


def order_in_plain_python(labels: list[int]) -> list[int]:
    words = [philox_plain((i, 0, 0, IMAGE_ORDER), (0, 0)) for i in range(len(labels))]
    place: dict[int, tuple[Fraction, int]] = {}
    for label in set(labels):
        members = [i for i in range(len(labels)) if labels[i] == label]
        members.sort(key=lambda i: (words[i][0] | words[i][1] << 32, i))
        for j, i in enumerate(members):
            place[i] = (j + Fraction(words[i][2], 2**32)) / len(members), i
    return sorted(place, key=lambda i: place[i])


@settings(deadline=None)
@given(LABELS)
def test_the_order_is_a_permutation(labels: list[int]) -> None:
    assert sorted(order_of(labels)) == list(range(len(labels)))


@settings(deadline=None)
@given(LABELS)
def test_the_order_equals_its_definition_in_exact_arithmetic(labels: list[int]) -> None:
    assert order_of(labels) == order_in_plain_python(labels)


@settings(deadline=None)
@given(LABELS)
def test_every_prefix_holds_each_class_in_its_share(labels: list[int]) -> None:
    totals = {label: labels.count(label) for label in set(labels)}
    held = dict.fromkeys(totals, 0)
    for length, source_index in enumerate(order_of(labels), start=1):
        held[labels[source_index]] += 1
        for label, total in totals.items():
            share = Fraction(total, len(labels))
            assert abs(held[label] - length * share) <= 1 + (len(totals) - 2) * share


@settings(deadline=None)
@given(st.permutations([label for label in range(NUM_CLASSES) for _ in range(9)]))
def test_a_prefix_of_a_balanced_set_holds_as_many_of_each_class(labels: list[int]) -> None:
    in_order = np.array(labels)[order_of(labels)]
    for block in in_order.reshape(9, NUM_CLASSES):
        assert sorted(block) == list(range(NUM_CLASSES))


def test_a_class_does_not_come_in_the_order_of_the_source() -> None:
    order = order_of([0] * 1_000)
    # The expected number of ascents of a random order is 499.5 ± 9.1; a false alarm is a 5-sigma event.
    assert 454 <= np.count_nonzero(np.diff(order) > 0) <= 545


def test_the_order_never_changes() -> None:
    assert order_of([0] * 3 + [1] * 3 + [2] * 6) == [0, 6, 10, 4, 3, 11, 1, 9, 2, 8, 5, 7]
