import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kernels import philox
from kernels.philox import blocks, fill_blocks, philox_plain, word

ONES = 0xFFFFFFFF
WORD = st.integers(0, ONES)

KNOWN_ANSWERS = [  # published with Random123
    ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((ONES,) * 4, (ONES, ONES), (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]


def compiled(counter: tuple[int, ...], key: tuple[int, ...]) -> tuple[int, ...]:
    out = np.empty((1, 4), dtype=np.uint32)
    a = np.array([counter[0] | counter[1] << 32], dtype=np.uint64)
    fill_blocks(np.uint64(key[0] | key[1] << 32), a, np.uint32(counter[2]), np.uint32(counter[3]), out)
    return tuple(int(x) for x in out[0])


@pytest.mark.parametrize(("counter", "key", "answer"), KNOWN_ANSWERS)
def test_both_twins_give_the_published_answers(
    counter: tuple[int, int, int, int], key: tuple[int, int], answer: tuple[int, ...]
) -> None:
    assert philox_plain(counter, key) == answer
    assert compiled(counter, key) == answer


@given(st.tuples(WORD, WORD, WORD, WORD), st.tuples(WORD, WORD))
def test_the_kernel_equals_its_twin(counter: tuple[int, int, int, int], key: tuple[int, int]) -> None:
    assert compiled(counter, key) == philox_plain(counter, key)


def test_blocks_takes_seed_and_coordinates_of_64_bits() -> None:
    seed, a, b = 2**63 + 5, 2**40 + 3, 2**31 + 1
    expected = philox_plain((3, 2**8, b, philox.ORDER), (5, 2**31))
    assert tuple(blocks(seed, philox.ORDER, np.array([a], dtype=np.uint64), b)[0]) == expected


def test_a_word_depends_on_every_coordinate_and_fits_a_library_seed() -> None:
    base = {"seed": 1, "domain": philox.TORCH, "a": 7, "b": 2, "draw": 0}
    changed = [word(**{**base, name: value}) for name, value in (*base.items(), *((n, v + 1) for n, v in base.items()))]
    assert len(set(changed)) == 1 + len(base)
    assert all(0 <= value < 2**63 for value in changed)


def test_no_two_domains_share_a_number() -> None:
    numbers = [value for name, value in vars(philox).items() if name.isupper() and not name.startswith("_")]
    assert len(numbers) == len(set(numbers)) >= 17
    assert all(0 < number < 256 for number in numbers)
