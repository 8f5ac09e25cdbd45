"""The code that a job runs: our packages as they are imported here, never data and never secrets.

The package is a folder that works as an entry of sys.path on a machine which has our dependencies but not us: the four
rooms, and the distribution's metadata, in which vLLM finds our plugin. An archive of it is the same bytes every time.
"""

from __future__ import annotations

import hashlib
import importlib.util
import io
import os
import re
import shutil
import sys
import tarfile
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from orchestration.errors import ConfigError, in_a_sentence

ROOMS = ("learner", "orchestration", "reward_service", "rollout_server")
MAX_INCLUDED_BYTES = 50 * 2**20
"""Of one entry of `job.include`: more than that is data."""
MAX_TOGETHER_BYTES = 500 * 2**20
"""Of all of them: Ray takes no larger package."""

_DISTRIBUTION = "rlvr"
_METADATA = ("METADATA", "entry_points.txt")
_SUFFIXES = (".py", ".yaml", ".typed", ".css", ".html", ".js")
_SECRET_NAMES = (
    *(".env", ".envrc", ".git-credentials", ".netrc", ".npmrc", ".pgpass", ".pypirc"),
    *("auth_token", "credentials", "credentials.json", "id_ecdsa", "id_ed25519", "id_rsa", "kubeconfig"),
)
_SECRET_SUFFIXES = (".pem", ".key", ".p12", ".pfx", ".env")


@dataclass(frozen=True, kw_only=True, slots=True)
class CodePackage:
    """A folder with everything that has to be importable."""

    folder: Path
    digest: str
    """SHA-256 of names and contents, hexadecimal."""
    num_files: int
    num_bytes: int

    def describe(self) -> str:
        return f"{self.num_files} files, {self.num_bytes / 1000:.0f} kB, sha256 {self.digest[:12]}"

    def archived(self) -> bytes:
        """The folder as a .tar.xz, of which Ray makes a working directory; equal folders give equal bytes. A .zip or a
        .tar.gz, the others that Ray takes, is larger than a ConfigMap, or nearly."""
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode="w:xz") as archive:
            for path in _files(self.folder):
                entry = tarfile.TarInfo(path.relative_to(self.folder).as_posix())
                content = path.read_bytes()
                entry.size, entry.mode = len(content), 0o644
                archive.addfile(entry, io.BytesIO(content))
        return buffer.getvalue()


@contextmanager
def packed_code(include: Sequence[Path] = (), *, recipe_folder: Path | None = None) -> Iterator[CodePackage]:
    """The package in a folder of its own, for as long as the block lasts.

    Args:
        include: files and folders of the user to put beside our rooms, each under its own name, so that `mine.py` and
            the package `mine/` are imported as `mine` there.
        recipe_folder: where the recipe lies, if it is a file: relative paths are looked for there, too.

    Raises ConfigError when one of them is not there, has a name that is taken, is a secret, or is too large; RlvrError
    when it cannot be read.
    """
    with tempfile.TemporaryDirectory(prefix="rlvr-code-") as name:
        folder = Path(name)
        for room in ROOMS:
            _copy_room(room, folder / room)
        _copy_metadata(folder)
        try:
            _copy_included([_found(source, recipe_folder) for source in include], folder)
        except OSError as error:  # it may change under our hands
            raise in_a_sentence("job.include was not packed", error) from error
        yield _described(folder)


def _copy_room(room: str, target: Path) -> None:
    spec = importlib.util.find_spec(room)
    assert spec is not None, "it is running"
    assert spec.origin is not None
    source = Path(spec.origin).parent
    for path in _files(source):
        if path.suffix in _SUFFIXES:
            place = target / path.relative_to(source)
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, place)


def _copy_metadata(folder: Path) -> None:
    distribution = metadata.distribution(_DISTRIBUTION)
    place = folder / f"{_DISTRIBUTION}-{distribution.version}.dist-info"
    place.mkdir()
    for name in _METADATA:
        (place / name).write_text(distribution.read_text(name) or "", encoding="utf-8")


def _found(source: Path, recipe_folder: Path | None) -> Path:
    """Where it lies: here, or beside the recipe."""
    places = dict.fromkeys(base / source.expanduser() for base in (Path(), recipe_folder) if base is not None)
    there = {place.resolve(): place for place in places if place.exists()}
    if not there:
        looked = f", neither here nor in {recipe_folder}" if len(places) > 1 else ""
        raise ConfigError(f"job.include={str(source)!r} does not exist{looked}; give a file or a folder")
    if len(there) > 1:
        raise ConfigError(f"job.include={str(source)!r} may be {' or '.join(map(str, there))}; give the whole path")
    return next(iter(there.values()))


def _copy_included(include: Sequence[Path], folder: Path) -> None:
    files = {source: _included_files(source) for source in include}
    _check_size("job.include together", (path for paths in files.values() for path in paths), MAX_TOGETHER_BYTES)
    for source, paths in files.items():
        place = folder / source.name
        if place.exists():
            raise ConfigError(f"job.include={str(source)!r}: the name {source.name!r} is taken; rename it")
        for path in paths:
            target = place if source.is_file() else place / path.relative_to(source)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, target)


def _included_files(source: Path) -> list[Path]:
    if source.name in ("", ".."):
        raise ConfigError(
            f"job.include={str(source)!r} has no name that it could be imported by; name the files and folders in it, "
            f"such as my_task.py"
        )
    if not source.is_file() and not source.is_dir():
        raise ConfigError(f"job.include={str(source)!r} is neither a file nor a folder; give one")
    if (source.is_dir() or source.suffix == ".py") and (hidden := _what_it_would_hide(source.stem)):
        raise ConfigError(f"job.include={str(source)!r} would hide {hidden} {source.stem!r}; rename it")
    _check_size(f"job.include={str(source)!r}", _files(source), MAX_INCLUDED_BYTES)
    files = list(_files(source))
    if link := next((path for path in _visible(source) if path.is_symlink() and not path.is_file()), None):
        raise ConfigError(
            f"job.include={str(source)!r} holds the link {link.name!r} to {str(link.readlink())!r}, and only links to "
            f"files are followed: put what is meant there in its place, or remove it"
        )
    if strange := next((path.name for path in files if not is_utf8(str(path))), None):
        raise ConfigError(f"job.include={str(source)!r} holds {strange!a}, a name that is not in UTF-8: rename it")
    if secret := next((path for path in files if _is_secret(path) or _is_secret(path.resolve())), None):
        raise ConfigError(
            f"job.include={str(source)!r} holds {secret.name!r}, which looks like a secret; code is stored where "
            f"others can read it: leave it out"
        )
    return files


def _what_it_would_hide(module: str) -> str:
    """In words, a module that ours import, as far as it is installed here; empty: none."""
    from packaging.requirements import Requirement  # the reward service's image goes without it
    from packaging.utils import canonicalize_name

    if module in sys.stdlib_module_names:
        return "Python's own module"
    needed = {canonicalize_name(Requirement(line).name) for line in metadata.requires(_DISTRIBUTION) or ()}
    there = metadata.packages_distributions().get(module, ())
    return "the installed package" if needed & set(map(canonicalize_name, there)) else ""


def _check_size(what: str, files: Iterable[Path], most: int) -> None:
    """Looks no further than it has to: what was named may be a whole disk."""
    size = 0
    for path in files:
        size += path.stat().st_size
        if size > most:
            raise ConfigError(
                f"{what} has more than the {most // 2**20} MiB that code may have; put data on S3, or on storage that "
                f"the cluster shares"
            )


def is_utf8(name: str) -> bool:
    """Whether a file's name, as Python has it, has only characters that can be written down elsewhere."""
    return not re.search("[\ud800-\udfff]", name)


def _is_secret(path: Path) -> bool:
    name = path.name.lower()
    return name in _SECRET_NAMES or name.startswith(".env.") or path.suffix.lower() in _SECRET_SUFFIXES


def _files(place: Path) -> Iterator[Path]:
    """A file, or all those of a folder; a link counts as its file."""
    return (path for path in _visible(place) if path.is_file())


def _visible(place: Path) -> Iterator[Path]:
    """A file, or all that is below a folder, but for caches and hidden folders such as .git and .venv; in an order that
    names alone decide. Raises OSError when a folder cannot be read."""

    def fail(error: OSError) -> None:
        raise error

    if place.is_file():
        yield place
        return
    for parent, folders, files in os.walk(place, onerror=fail):
        folders[:] = sorted(name for name in folders if name != "__pycache__" and not name.startswith("."))
        yield from (Path(parent, name) for name in (*folders, *sorted(files)))


def _described(folder: Path) -> CodePackage:
    digest, num_files, num_bytes = hashlib.sha256(), 0, 0
    for path in _files(folder):
        content = path.read_bytes()
        digest.update(f"{path.relative_to(folder).as_posix()}\0{len(content)}\0".encode())
        digest.update(content)
        num_files, num_bytes = num_files + 1, num_bytes + len(content)
    return CodePackage(folder=folder, digest=digest.hexdigest(), num_files=num_files, num_bytes=num_bytes)
