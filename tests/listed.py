"""Small trees in the formats of the sets whose labels are as they were found."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from photos import encode

SYNSETS = [f"n{number:08d} thing {number}, Res {number}" for number in range(1_000)]
# Queries do not follow classes, and lines follow neither.
WEB_TRAIN = [
    ("google/q0002/uVb3.jpg", 1),
    ("google/q0001/a_b-1.jpg", 0),
    ("google/q0001/Zz.jpg", 0),
    ("google/q0071/x.jpg", 49),
    ("google/q0072/y.jpg", 50),
    ("google/q1631/last.jpg", 999),
]
WEB_VAL = [("val000001.jpg", 999), ("val000002.jpg", 0), ("val000003.jpg", 50), ("val000004.jpg", 1)]
NAMES = "T-Shirt Shirt Knitwear Chiffon Sweater Hoodie Windbreaker Jacket Downcoat Suit Shawl Dress Vest Underwear"
NOISY = [(f"images/{number % 3}/{number},{number}{number}.jpg", number * 5 % 14) for number in range(20)]
CLEAN = [(f"images/{number % 3}/{number},{number}{number}.jpg", number % 14) for number in range(20, 29)]


def write_lines(path: Path, lines: Iterable[str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


def write_images(root: Path, names: Iterable[str], first: int) -> None:
    for number, name in enumerate(names, first):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encode(number, width=20 + number % 5))


def pairs(rows: Iterable[tuple[str, int]]) -> list[str]:
    return [f"{name} {label}" for name, label in rows]


def write_webvision(root: Path) -> Path:
    """Write WebVision 1.0 as its archives unpack, of ten images."""
    write_lines(root / "info/train_filelist_google.txt", pairs(WEB_TRAIN))
    write_lines(root / "info/val_filelist.txt", pairs(WEB_VAL))
    write_lines(root / "info/synsets.txt", SYNSETS)
    write_images(root, [name for name, _ in WEB_TRAIN], 0)
    write_images(root / "val_images_256", [name for name, _ in WEB_VAL], 100)
    return root


def write_clothing1m(root: Path, lists: str = "") -> Path:
    """Write Clothing1M of 20 noisy and nine clean images; two of the latter have a noisy label too."""
    folder = root / lists
    write_lines(folder / "noisy_train_key_list.txt", [name for name, _ in NOISY])
    write_lines(folder / "noisy_label_kv.txt", pairs([(CLEAN[0][0], 3), *reversed(NOISY), (CLEAN[4][0], 9)]))
    for part, rows in (("train", CLEAN[:3]), ("val", CLEAN[3:5]), ("test", CLEAN[5:])):
        write_lines(folder / f"clean_{part}_key_list.txt", [name for name, _ in rows])
    write_lines(folder / "clean_label_kv.txt", pairs(reversed(CLEAN)))
    write_lines(folder / "category_names_eng.txt", NAMES.split())
    write_images(root, [name for name, _ in NOISY + CLEAN], 0)
    return root
