"""Download the public data sets: checked by hash, continued where a connection broke, kept in a cache folder.

The cache is `$DILUTE_CACHE`, or the user's cache folder (`~/.cache/dilute`); sources without a path look there.
"""

from __future__ import annotations

import fcntl
import os
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from http.client import HTTPException, HTTPResponse
from pathlib import Path
from typing import BinaryIO, Final, NamedTuple

from pipeline.errors import UserError

Progress = Callable[[str, int, int], None]


class Download(NamedTuple):
    """One file to download.

    Args:
        file: Its name in the cache.
        md5: Its MD5, as its publisher states it.
        urls: Where to get it, the first that works.
    """

    file: str
    md5: str
    urls: tuple[str, ...]


def _from(mirrors: tuple[str, ...], file: str, md5: str) -> Download:
    return Download(file, md5, tuple(mirror + file for mirror in mirrors))


_TORONTO: Final = ("https://www.cs.toronto.edu/~kriz/", "https://cave.cs.toronto.edu/kriz/")
_MNIST: Final = ("https://ossci-datasets.s3.amazonaws.com/mnist/", "http://yann.lecun.com/exdb/mnist/")
_FASHION: Final = ("http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",)

DOWNLOADS: Final[dict[str, tuple[Download, ...]]] = {
    "cifar10": (_from(_TORONTO, "cifar-10-python.tar.gz", "c58f30108f718f92721af3b95e74349a"),),
    "cifar100": (_from(_TORONTO, "cifar-100-python.tar.gz", "eb9058c3a382ffc7106e4002c42a8d85"),),
    "mnist": (
        _from(_MNIST, "train-images-idx3-ubyte.gz", "f68b3c2dcbeaaa9fbdd348bbdeb94873"),
        _from(_MNIST, "train-labels-idx1-ubyte.gz", "d53e105ee54ea40749a09fcbcd1e9432"),
        _from(_MNIST, "t10k-images-idx3-ubyte.gz", "9fb629c4189551a2d022fa330f9573f3"),
        _from(_MNIST, "t10k-labels-idx1-ubyte.gz", "ec29112dd5afa0611ce80d1b7f02629c"),
    ),
    "fashion_mnist": (
        _from(_FASHION, "train-images-idx3-ubyte.gz", "8d4fb7e6c68d591d4c3dfef9ec88bf0d"),
        _from(_FASHION, "train-labels-idx1-ubyte.gz", "25c81989df183df01b3e8a0aad5dffbe"),
        _from(_FASHION, "t10k-images-idx3-ubyte.gz", "bef4ecab320f06d8554ea6380940ec79"),
        _from(_FASHION, "t10k-labels-idx1-ubyte.gz", "bb300cfdad3c16e7a12a480ee83cd310"),
    ),
}

_CHUNK_BYTES: Final = 1 << 18
_TIMEOUT_S: Final = 30.0
_TRIES: Final = 5  # in a row without one new byte
_PAUSE_S: Final = 1.0  # before the second try; doubles with each


def cache_folder(name: str) -> Path:
    """Return where a data set's downloads lie, whether or not they are there."""
    root = os.environ.get("DILUTE_CACHE") or os.path.join(
        os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"), "dilute"
    )
    return Path(root) / name


def fetched(name: str) -> Path | None:
    """Return a data set's folder in the cache, if all its files are there (they were checked as they came)."""
    folder = cache_folder(name)
    return folder if all((folder / download.file).is_file() for download in DOWNLOADS[name]) else None


def fetch(name: str, folder: Path | None = None, *, progress: Progress = lambda file, done, total: None) -> Path:
    """Download a data set's files; those that are there with the right hash are left alone.

    A file appears under its name only whole and checked. What a broken or killed download left lies in `.part` and is
    continued by the next.

    Args:
        name: One of `DOWNLOADS`.
        folder: Where to; the cache by default.
        progress: Called with (file, bytes there, bytes in all) as a file arrives; the last is 0 if not known.

    Returns:
        The folder, to be passed as a source's path.

    Raises:
        UserError: If the name is not on the menu, no address gives the file, its hash is wrong, or the disk refuses.
    """
    if name not in DOWNLOADS:
        raise UserError(f"no download {name!r}: choose one of {', '.join(DOWNLOADS)}")
    folder = folder or cache_folder(name)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for download in DOWNLOADS[name]:
            _fetch_file(download, folder, progress)
    except OSError as error:
        raise UserError(
            f"cannot write {folder}: {error.strerror or error}; make room, or give another --out"
        ) from error
    return folder


def _fetch_file(download: Download, folder: Path, progress: Progress) -> None:
    import pooch  # takes 0.1 s, and sources import this module

    pooch.get_logger().setLevel("ERROR")
    reasons = []
    for url in download.urls:
        for _ in range(2):
            transfer = _Transfer(folder / f"{download.file}.part", download.file, progress)
            try:
                pooch.retrieve(url, f"md5:{download.md5}", download.file, folder, downloader=transfer)
                return
            except _Unreachable as error:
                reasons.append(f"{url}: {error}")
                break
            except UserError:
                raise
            except ValueError:  # pooch's word for a wrong hash
                reasons.append(f"{url}: its MD5 is not {download.md5}")
                if not transfer.continued:
                    break  # else the part that was there may have been the wrong one: once more from the beginning
    raise UserError(
        f"could not download {download.file}: {'; '.join(reasons)}; try again later (it goes on where it stopped), or "
        f"put the file into {folder} by hand"
    )


class _Unreachable(Exception):
    """An address does not give the file."""


class _Transfer:
    """A downloader for pooch that goes on where an earlier one stopped.

    Args:
        part: Where bytes gather, for this and the next try.
        file: What it is called in progress reports.
        progress: See `fetch`.
    """

    def __init__(self, part: Path, file: str, progress: Progress) -> None:
        self.part = part
        self.file = file
        self.progress = progress
        self.continued = False

    def __call__(self, url: str, output_file: str, pooch: object) -> None:
        """Download a file to where pooch wants it; pooch then checks its hash."""
        with self.part.open("ab") as part:
            try:
                fcntl.flock(part, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise UserError(f"{self.part} is being written by another download; wait for it") from None
            self.continued = part.tell() > 0
            tries = 0
            while True:
                before = part.tell()
                try:
                    self._continue(url, part)
                    break
                except _Broken as error:
                    tries = 1 if part.tell() > before else tries + 1
                    if tries >= _TRIES:
                        raise _Unreachable(f"{error} ({tries} tries in a row without a byte)") from None
                    time.sleep(_PAUSE_S * 2 ** (tries - 1))
            part.flush()
            os.fsync(part.fileno())
            os.replace(self.part, output_file)

    def _continue(self, url: str, part: BinaryIO) -> None:
        """Ask for what is missing and write it.

        Raises:
            _Broken: If the connection breaks; another try may go further.
            _Unreachable: If the server refuses.
        """
        there = part.tell()
        request = urllib.request.Request(url, headers={"Range": f"bytes={there}-"} if there else {})
        try:
            response: HTTPResponse = urllib.request.urlopen(request, timeout=_TIMEOUT_S)
        except urllib.error.HTTPError as error:
            error.close()
            if error.code == 416:  # nothing lies beyond what is there: the hash will tell whether it is whole
                return
            raise (_Broken if error.code >= 500 or error.code in (408, 429) else _Unreachable)(str(error)) from None
        except (OSError, HTTPException) as error:
            raise _Broken(_reason(error)) from None
        with response:
            if there and response.status != 206:  # a server that cannot continue sends the whole file
                part.truncate(0)
                part.seek(0)
                there = 0
            length = response.headers.get("Content-Length")
            total = there + int(length) if length else 0
            done = there
            while True:
                try:
                    chunk = response.read(_CHUNK_BYTES)
                except (OSError, HTTPException) as error:
                    raise _Broken(_reason(error)) from None
                if not chunk:
                    break
                part.write(chunk)
                done += len(chunk)
                self.progress(self.file, done, total)
            if total and done < total:
                raise _Broken(f"the connection ended after {done:,} of {total:,} bytes")


class _Broken(Exception):
    """A connection broke; another try may go further."""


def _reason(error: Exception) -> str:
    return str(getattr(error, "reason", None) or error or type(error).__name__)
