"""Writes a dataset of WAV files and JSON lines; an interrupted call is resumed and a complete folder is reused."""

import hashlib
import importlib.metadata
import io
import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np
from tqdm.auto import tqdm

from peft_listen.files import atomic_path


SAMPLING_RATE = 16_000
SPLITS = ("train", "validation", "test")
PART_SIZE = 400  # clips that one renderer makes in sequence


class PlannedClip(Protocol):
    """One clip before its audio is rendered."""

    @property
    def path(self) -> str:
        """Path of its audio relative to the dataset's folder, below `audio/`."""

    def rows(self) -> list[dict[str, Any]]:
        """Its rows in the data file: one, or one for each task that is asked about it."""


ClipType = TypeVar("ClipType", bound=PlannedClip)


def write_dataset(
    output_dir: str | Path,
    plans: Mapping[tuple[str, str], Sequence[ClipType]],
    request: dict[str, Any],
    make_renderer: Callable[[], Callable[[ClipType], np.ndarray]],
    threads: int = 1,
) -> Path:
    """
    Writes the WAV files of a dataset and its `train.jsonl`, `validation.jsonl` and `test.jsonl`, or reuses them.

    In each `.jsonl` file the kinds of clips alternate. The audio is mono, 16-bit PCM, 16 kHz.

    The folder appears only when it is complete, with a `manifest.json` that holds the request and a hash of the content. A
    folder whose manifest and content match is not changed. If the manifest differs or the content was modified, the data
    are generated again and replace the folder if they differ from it. An interrupted call is resumed by the next call with
    the same request, with the same result as without the interruption.

    Args:
        output_dir (`str` or `Path`): folder of the dataset.
        plans (`Mapping[tuple[str, str], Sequence[PlannedClip]]`): clips by split and kind; all kinds of a split have the same
            number of clips.
        request (`dict`): everything that the bytes of the dataset depend on, see [`describe_request`].
        make_renderer (`Callable`): returns a function that renders a clip as float samples of shape `(num_samples,)`, within
            -1 and 1, at 16 kHz. It is called once for each part, of up to 400 clips of one split and kind, because the
            parts are generated independently.
        threads (`int`, defaults to 1): threads that generate parts at the same time. The result does not depend on it.

    Returns:
        `Path`: the folder.

    Raises:
        FileExistsError: if the folder exists and was not written by this function.
        ImportError: if soundfile is not installed.
    """
    output_dir = Path(output_dir).resolve()
    if output_dir.exists() and any(output_dir.iterdir()):
        manifest = _read_json(output_dir / "manifest.json")
        if not isinstance(manifest, dict) or "sha256" not in manifest:
            raise FileExistsError(
                f"{output_dir} is not empty and is not a generated dataset. Pass another folder, or remove this one."
            )
        if manifest == {**request, "sha256": _content_hash(output_dir)}:
            print(f"reusing {output_dir}")
            return output_dir
        print(f"{output_dir} differs from the requested dataset and is generated again")

    unfinished = output_dir.parent / f".{output_dir.name}.unfinished"
    if unfinished.exists() and _read_json(unfinished / "request.json") != request:
        shutil.rmtree(unfinished)
    unfinished.mkdir(parents=True, exist_ok=True)
    write_file(unfinished / "request.json", _to_json(request, indent=2))
    _render_parts(unfinished, plans, make_renderer, threads)
    return _finish(unfinished, output_dir, request, plans)


def describe_request(
    seed: int, counts: Mapping[str, int], packages: Iterable[str], sources: Iterable[str | Path | None]
) -> dict[str, Any]:
    """
    Everything that the bytes of a dataset depend on: arguments, package versions and a hash of the code.

    Args:
        seed (`int`): seed of the dataset.
        counts (`Mapping[str, int]`): clips per task, by split.
        packages (`Iterable[str]`): names of the distributions whose version matters.
        sources (`Iterable[str or Path]`): source files that generate the data, in addition to this one.

    Returns:
        `dict`: the request.
    """
    code = b"".join(Path(str(source)).read_bytes() for source in (__file__, *sources))
    return {
        "seed": seed,
        "clips_per_task": dict(counts),
        "versions": {name: importlib.metadata.version(name) for name in packages},
        "code_sha256": hashlib.sha256(code).hexdigest(),
    }


def balanced(rng: np.random.Generator, choices: Sequence[Any], count: int) -> list[Any]:
    """
    Draws values in random order and in equal numbers, to within one.

    Args:
        rng (`np.random.Generator`): random generator.
        choices (`Sequence`): values to draw from.
        count (`int`): number of values to draw.

    Returns:
        `list`: the drawn values.
    """
    rounds = [rng.permutation(len(choices)) for _ in range(-(-count // len(choices)))]
    return [choices[index] for index in rng.permutation(np.concatenate(rounds)[:count])]


def write_file(path: Path, data: bytes) -> None:
    """Writes a file atomically; its folder is created if missing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(path) as temporary:
        temporary.write_bytes(data)


def _render_parts(
    folder: Path,
    plans: Mapping[tuple[str, str], Sequence[ClipType]],
    make_renderer: Callable[[], Callable[[ClipType], np.ndarray]],
    threads: int,
) -> None:
    """Writes the clips of all parts that are not complete."""
    parts = [
        (folder / f"{split}-{kind}-{start}.complete", clips[start : start + PART_SIZE])
        for (split, kind), clips in plans.items()
        for start in range(0, len(clips), PART_SIZE)
    ]
    missing = [part for part in parts if not part[0].is_file()]
    done = sum(len(clips) for _, clips in parts) - sum(len(clips) for _, clips in missing)
    with tqdm(total=sum(map(len, plans.values())), initial=done, desc="generating clips", unit="clip") as progress:
        with ThreadPoolExecutor(threads) as executor:
            running = [
                executor.submit(_render_part, folder, marker, clips, make_renderer, progress)
                for marker, clips in missing
            ]
            try:
                for future in as_completed(running):
                    future.result()
            finally:
                executor.shutdown(cancel_futures=True)  # after an error, the parts that have not begun are left out


def _render_part(
    folder: Path,
    marker: Path,
    clips: Sequence[ClipType],
    make_renderer: Callable[[], Callable[[ClipType], np.ndarray]],
    progress: tqdm,
) -> None:
    render = make_renderer()
    for clip in clips:
        write_file(folder / clip.path, _to_wav(render(clip)))
        progress.update()
    write_file(marker, b"")


def _finish(
    unfinished: Path, output_dir: Path, request: dict[str, Any], plans: Mapping[tuple[str, str], Sequence[ClipType]]
) -> Path:
    for split in SPLITS:
        together = zip(*(clips for (planned, _), clips in plans.items() if planned == split), strict=True)
        lines = [_to_json(row) for clips in together for clip in clips for row in clip.rows()]
        write_file(unfinished / f"{split}.jsonl", b"".join(lines))
    for leftover in unfinished.rglob(".*.tmp"):  # of a process that was killed while it wrote a file
        leftover.unlink()
    manifest = {**request, "sha256": _content_hash(unfinished)}
    write_file(unfinished / "manifest.json", _to_json(manifest, indent=2))
    for leftover in [unfinished / "request.json", *unfinished.glob("*.complete")]:
        leftover.unlink()
    if output_dir.exists() and _content_hash(output_dir) == manifest["sha256"]:
        # Other code generated the same bytes, so the audio files are kept for processes that read them.
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
