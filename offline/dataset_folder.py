"""Writing a folder of WAV files and JSON lines so that it can be interrupted, taken up and reused."""

import hashlib
import importlib.metadata
import io
import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np
from tqdm.auto import tqdm


SAMPLING_RATE = 16_000
SPLITS = ("train", "validation", "test")


class PlannedClip(Protocol):
    """One example before it is made audible."""

    @property
    def path(self) -> str:
        """Where its audio goes, relative to the data set's folder, below `audio/`."""

    def row(self) -> dict[str, Any]:
        """Its line of the data file."""


ClipType = TypeVar("ClipType", bound=PlannedClip)


def write_dataset(
    output_dir: str | Path,
    plans: Mapping[tuple[str, str], Sequence[ClipType]],
    request: dict[str, Any],
    make_renderer: Callable[[], Callable[[ClipType], np.ndarray]],
) -> Path:
    """Write the WAV files of a data set and its `train.jsonl`, `validation.jsonl`, `test.jsonl`, or reuse them.

    In each `.jsonl` file the tasks alternate. The audio is mono, 16-bit PCM, 16 kHz.

    The folder appears only when it is complete, with a `manifest.json` of the request and a hash of what was made. A
    folder whose manifest and hash agree is left as it is; for one with another manifest, or changed since, the data are
    made anew, and the folder is only replaced where they differ. A call that was interrupted is taken up by the next
    equal one, whose result is the same as without the interruption.

    Args:
        output_dir: Folder of the data set.
        plans: The clips of each split and task, every task of a split having equally many.
        request: All that the bytes of the data set depend on; see `describe_request`.
        make_renderer: Returns a function from a clip to its samples, of shape [samples] within [-1, 1] at 16 kHz. Called
            once for each split and task, so that what is left of an interrupted part has no say in the next.

    Returns:
        The folder.

    Raises:
        FileExistsError: If the folder exists but was not made by this function.
        ImportError: If `soundfile` is missing.
    """
    output_dir = Path(output_dir).resolve()
    if output_dir.exists() and any(output_dir.iterdir()):
        manifest = _read_json(output_dir / "manifest.json")
        if not isinstance(manifest, dict) or "sha256" not in manifest:
            raise FileExistsError(
                f"{output_dir} is no data set of this kind. Name another folder, or remove this one."
            )
        if manifest == {**request, "sha256": _content_hash(output_dir)}:
            print(f"reusing {output_dir}")
            return output_dir
        print(f"{output_dir} was made otherwise or has changed: making it anew")

    unfinished = output_dir.parent / f".{output_dir.name}.unfinished"
    if unfinished.exists() and _read_json(unfinished / "request.json") != request:
        shutil.rmtree(unfinished)
    unfinished.mkdir(parents=True, exist_ok=True)
    write_atomically(unfinished / "request.json", _to_json(request, indent=2))
    with tqdm(total=sum(map(len, plans.values())), desc="making clips", unit="clip") as progress:
        for (split, task), clips in plans.items():
            _make_part(unfinished, f"{split}-{task}.jsonl", clips, make_renderer, progress)
    return _finish(unfinished, output_dir, request, plans)


def describe_request(
    seed: int, counts: Mapping[str, int], packages: Iterable[str], sources: Iterable[str | Path | None]
) -> dict[str, Any]:
    """All that the bytes of a data set depend on: what was asked for, versions, and a hash of the code.

    Args:
        seed: Of all random choices.
        counts: Clips of each task, by split.
        packages: Names of the distributions whose version matters.
        sources: Source files that make the data, beside this one.
    """
    code = b"".join(Path(str(source)).read_bytes() for source in (__file__, *sources))
    return {
        "seed": seed,
        "clips_per_task": dict(counts),
        "versions": {name: importlib.metadata.version(name) for name in packages},
        "code_sha256": hashlib.sha256(code).hexdigest(),
    }


def balanced(rng: np.random.Generator, choices: Sequence[Any], count: int) -> list[Any]:
    """`count` of the choices in random order, each as often as any other, to within one."""
    rounds = [rng.permutation(len(choices)) for _ in range(-(-count // len(choices)))]
    return [choices[index] for index in rng.permutation(np.concatenate(rounds)[:count])]


def write_atomically(path: Path, data: bytes) -> None:
    """Write a file under a temporary name and rename it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.part")
    temporary.write_bytes(data)
    os.replace(temporary, path)


def _make_part(
    folder: Path,
    name: str,
    clips: Sequence[ClipType],
    make_renderer: Callable[[], Callable[[ClipType], np.ndarray]],
    progress: tqdm,
) -> None:
    if (folder / name).is_file():
        progress.update(len(clips))
        return
    render = make_renderer()
    for clip in clips:
        write_atomically(folder / clip.path, _to_wav(render(clip)))
        progress.update()
    write_atomically(folder / name, b"".join(_to_json(clip.row()) for clip in clips))


def _finish(
    unfinished: Path, output_dir: Path, request: dict[str, Any], plans: Mapping[tuple[str, str], Sequence[Any]]
) -> Path:
    for split in SPLITS:
        parts = [unfinished / f"{split}-{task}.jsonl" for planned_split, task in plans if planned_split == split]
        lines = zip(*(part.read_bytes().splitlines(keepends=True) for part in parts), strict=True)
        write_atomically(unfinished / f"{split}.jsonl", b"".join(line for together in lines for line in together))
    manifest = {**request, "sha256": _content_hash(unfinished)}
    write_atomically(unfinished / "manifest.json", _to_json(manifest, indent=2))
    for name in ["request.json", *(f"{split}-{task}.jsonl" for split, task in plans)]:
        (unfinished / name).unlink()
    if output_dir.exists() and _content_hash(output_dir) == manifest["sha256"]:
        # The same bytes made by other code: what reads the folder is not disturbed.
        os.replace(unfinished / "manifest.json", output_dir / "manifest.json")
        shutil.rmtree(unfinished)
        return output_dir
    if output_dir.exists():
        shutil.rmtree(output_dir)
    os.replace(unfinished, output_dir)
    return output_dir


def _content_hash(folder: Path) -> str:
    digest = hashlib.sha256()
    for path in _content(folder):
        digest.update(f"{path.relative_to(folder).as_posix()} {path.stat().st_size}\n".encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()


def _content(folder: Path) -> Iterator[Path]:
    yield from (folder / f"{split}.jsonl" for split in SPLITS if (folder / f"{split}.jsonl").is_file())
    yield from sorted((folder / "audio").rglob("*.wav"))


def _to_wav(samples: np.ndarray) -> bytes:
    try:
        import soundfile
    except ImportError as error:
        raise ImportError('Writing WAV files needs soundfile: pip install "peft-listen[audio]"') from error
    buffer = io.BytesIO()
    soundfile.write(buffer, samples, SAMPLING_RATE, format="WAV", subtype="PCM_16")
    return buffer.getvalue()


def _to_json(value: dict[str, Any], indent: int | None = None) -> bytes:
    return (json.dumps(value, ensure_ascii=False, indent=indent) + "\n").encode("utf-8")


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
