"""Cache of the frozen encoders' outputs on disk."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch.nn.utils.rnn import pad_sequence
from tqdm.auto import tqdm

from ..audio import AudioLimits, display_name, load_audio
from ..data import find_bad_clips
from ..files import atomic_path, remove_abandoned, temporary_path
from .clip_index import ClipIndex


if TYPE_CHECKING:
    from accelerate import PartialState

    from ..models.audio_listen import AudioListenForCausalLM, AudioListenProcessor


# Key in the metadata of a shard, followed by the key of a clip.
_CHECKSUM = "sha256/"

# Subfolder of the index.
_INDEX = "index"

# Seconds between two writes of the index while clips are looked up, so that a killed build loses little.
_SAVE_INTERVAL = 30


class MissingClipError(KeyError):
    """A clip is not in the cache."""

    def __str__(self) -> str:
        return str(self.args[0])  # a `KeyError` shows its key in quotation marks


class FeatureCache:
    """
    Folder of safetensors shards with the encoder outputs of many clips.

    The encoders are frozen, so each clip has to be encoded only once. Clips are identified by a hash of their samples.
    Each set of encoders has its own subfolder, named by a hash of their configuration and weights, so features of other
    encoders are never read by mistake. Each clip has a checksum, which is verified when the clip is first read.

    An index of the files and contents that `build` has seen is in the subfolder `index`: a clip whose file did not change
    is found without decoding it, also in a new process or a data loader worker.

    Args:
        folder (`str` or `os.PathLike`): folder of the cache; created if it does not exist.
        model ([`AudioListenForCausalLM`]): model whose encoders produce the features.
        limits ([`~peft_listen.audio.AudioLimits`], *optional*):
            limits within which clips are loaded, by default those of [`~peft_listen.audio.set_default_limits`].

    Raises:
        OSError: if a shard cannot be read.
        TypeError: for a model of another kind.

    Example:

    ```python
    cache = FeatureCache("features", model)
    cache.build(model, processor, [example["audio"] for example in dataset])
    collator = AudioListenCollator(processor, feature_cache=cache)
    ```
    """

    def __init__(
        self, folder: str | os.PathLike[str], model: AudioListenForCausalLM, limits: AudioLimits | None = None
    ) -> None:
        self.limits = limits
        self.folder = Path(folder) / encoder_fingerprint(model)
        self.folder.mkdir(parents=True, exist_ok=True)
        self._shard_of: dict[str, Path] = {}
        self._index = ClipIndex(Path(folder) / _INDEX)
        self._open_shards: dict[Path, Any] = {}
        self._verified: set[str] = set()
        self.refresh()

    def refresh(self) -> None:
        """
        Reads the folder again. Call it after another process has added clips, or a shard was deleted.

        Raises:
            OSError: if a shard cannot be read.
        """
        self._index.refresh()
        paths = sorted(self.folder.glob("*.safetensors"))
        for deleted in set(self._shard_of.values()).difference(paths):
            self._open_shards.pop(deleted, None)
            keys = {key for key, path in self._shard_of.items() if path == deleted}
            self._shard_of = {key: path for key, path in self._shard_of.items() if key not in keys}
            self._verified -= keys
        for path in paths:
            if path not in self._open_shards:
                for name in self._open(path).keys():
                    self._shard_of[name.partition("/")[0]] = path

    def __len__(self) -> int:
        return len(self._shard_of)

    def __contains__(self, clip: Any) -> bool:
        return self.key(clip) in self._shard_of

    def __getitem__(self, clip: Any) -> dict[str, torch.Tensor]:
        """
        Reads the features of one clip.

        Args:
            clip (`Any`): anything that [`load_audio`] accepts.

        Returns:
            `dict[str, torch.Tensor]`: tensors of shape `(num_chunks, num_frames, ...)`, under the argument names of
            [`AudioListenForCausalLM.forward`].

        Raises:
            KeyError: if the clip is not in the cache.
            OSError: if the shard of the clip cannot be read, or its content does not match the checksum.
            ValueError: if the features are not finite.
        """
        key = self.key(clip)
        if key not in self._shard_of:
            raise MissingClipError(
                f"{_describe(clip)} is not among the {len(self)} clips of the feature cache at {self.folder}. Add it "
                "with `FeatureCache.build`, or omit `feature_cache` to run the encoders."
            )
        shard = self._open(self._shard_of[key])
        names = [name for name in shard.keys() if name.startswith(key + "/")]
        features = {name.partition("/")[2]: shard.get_tensor(name) for name in names}
        if key not in self._verified:
            self._verify(clip, key, features)
            self._verified.add(key)
        return features

    def _verify(self, clip: Any, key: str, features: Mapping[str, torch.Tensor]) -> None:
        path = self._shard_of[key]
        infinite = _not_finite(features)
        # Shards of versions before 0.1 have no checksums.
        expected = (self._open(path).metadata() or {}).get(_CHECKSUM + key)
        if expected is not None and expected != _checksum(features):
            detail = f" and contain NaN or infinite values in {infinite}" if infinite else ""
            raise OSError(
                f"{_describe(clip)}: its features in {path} do not match their checksum{detail}, so the shard is "
                "damaged. Delete it and build the cache again."
            )
        if infinite:
            raise ValueError(
                f"{_describe(clip)}: its features in {path} contain NaN or infinite values in {infinite}. Delete the "
                "shard and build the cache again, with encoders that give finite features."
            )

    def _open(self, path: Path) -> Any:
        if path not in self._open_shards:
            try:
                if not path.is_file():  # opening a named pipe would wait for its writer
                    raise OSError(f"{path} is not a regular file, so it is not a shard of features. Delete it.")
                self._open_shards[path] = safe_open(path, framework="pt")
            except SafetensorError as error:
                raise OSError(
                    f"{path} is not a readable shard of features ({error}). Delete it and build the cache again."
                ) from error
        return self._open_shards[path]

    def key(self, clip: Any) -> str:
        """
        Computes the hash by which a clip is identified, from its samples after mixing down and resampling.

        A clip whose file or content is in the index is not decoded.

        Args:
            clip (`Any`): anything that [`load_audio`] accepts.

        Returns:
            `str`: 32 hexadecimal digits.
        """
        return self._index.key(clip, limits=self.limits)

    def build(
        self,
        model: AudioListenForCausalLM,
        processor: AudioListenProcessor,
        clips: Iterable[Any],
        batch_size: int = 8,
        shard_size: int = 128,
    ) -> int:
        """
        Runs the encoders on the clips that are not yet in the cache.

        An interrupted build leaves only complete shards, and the next build continues from there; it also removes the
        temporary files of builds that were killed. With several processes, each encodes a part of the clips, so all of
        them must be able to access the folder: with several nodes, it must be on a file system that they share.

        Args:
            model ([`AudioListenForCausalLM`]): model whose encoders are run, on its device and in its dtype.
            processor ([`AudioListenProcessor`]): processor of the model.
            clips (`Iterable`): clips to add, each anything that [`load_audio`] accepts; arrays need a `sampling_rate`.
            batch_size (`int`, defaults to 8): number of clips per batch.
            shard_size (`int`, defaults to 128): number of clips per shard.

        Returns:
            `int`: number of clips that this process has added.

        Raises:
            OSError: if a clip cannot be read (the message names it), a shard cannot be written, or the processes do not
                share the folder.
            ValueError: if a clip is empty or not finite, or its features are not finite (the message names the clip), or
                the processor truncates clips.
        """
        from accelerate import PartialState

        if processor.max_audio_seconds is not None:
            raise ValueError(
                f"The processor truncates clips at `max_audio_seconds`={processor.max_audio_seconds:g}, but the cache "
                "identifies a clip by all of its samples. Truncate the clips beforehand and set `max_audio_seconds=None`."
            )
        state = PartialState()
        remove_abandoned(self.folder)
        self._check_shared(state)
        self.refresh()
        pending = {key: clip for key, clip in self._with_keys(clips, state) if key not in self._shard_of}
        # No process may write before all have read the index; otherwise they would divide different lists of clips.
        state.wait_for_everyone()
        share = sorted(pending)[state.process_index :: state.num_processes]
        shard: dict[str, torch.Tensor] = {}
        is_hidden = not (share and state.is_main_process)
        with tqdm(total=len(share), desc="Encoding audio", unit="clip", disable=is_hidden) as progress:
            for start in range(0, len(share), batch_size):
                keys = share[start : start + batch_size]
                for key, features in zip(
                    keys, self._encode(model, processor, [pending[key] for key in keys]), strict=True
                ):
                    if ClipIndex.is_encoded(pending[key]) and self.key(pending[key]) != key:
                        raise OSError(
                            f"{_describe(pending[key])} was modified while the cache was built, so its features may be those of "
                            "another clip. Build the cache again when the file is complete: the build continues there."
                        )
                    if infinite := _not_finite(features):
                        raise ValueError(
                            f"{_describe(pending[key])}: the encoders' outputs contain NaN or infinite values in {infinite}. "
                            "Check the weights of the encoders; in float16 they may overflow, so try bfloat16 or float32."
                        )
                    shard.update({f"{key}/{name}": tensor for name, tensor in features.items()})
                progress.update(len(keys))
                in_shard = len({name.partition("/")[0] for name in shard})
                if in_shard >= shard_size or start + batch_size >= len(share):
                    self._write(shard)
                    shard = {}
        self._index.save()
        state.wait_for_everyone()
        if state.is_main_process:
            self._index.merge()
        self.refresh()
        self._check_complete(state, pending)
        return len(share)

    def _with_keys(self, clips: Iterable[Any], state: PartialState) -> Iterator[tuple[str, Any]]:
        """
        Yields all clips with their keys, in any order. Of the clips that have to be decoded for it, each process decodes a
        part, and reads the keys of the others from the index.
        """
        others = []
        saved = time.monotonic()
        progress = tqdm(clips, desc="Finding clips", unit="clip", delay=1, disable=not state.is_main_process)
        try:
            for position, clip in enumerate(progress):
                key = self._index.find(clip)
                is_mine = position % state.num_processes == state.process_index
                if key is None and not is_mine and ClipIndex.is_encoded(clip):
                    others.append(clip)
                    continue
                yield key if key is not None else self.key(clip), clip
                if time.monotonic() > saved + _SAVE_INTERVAL:
                    self._index.save()
                    saved = time.monotonic()
        finally:  # also after a clip that cannot be read
            self._index.save()
        if state.num_processes > 1:
            state.wait_for_everyone()
            self._index.refresh()
        for clip in others:
            yield self.key(clip), clip

    def _check_shared(self, state: PartialState) -> None:
        """Raises in every process if one of them does not see a file that the main process has just created."""
        if state.num_processes == 1:
            return
        from accelerate.utils import broadcast_object_list, gather_object

        marker = temporary_path(self.folder / "shared")
        if state.is_main_process:
            marker.touch()
        (name,) = broadcast_object_list([marker.name if state.is_main_process else None])
        is_visible = name is None or (self.folder / name).exists()
        process = f"process {state.process_index} on {platform.node()} ({self.folder.absolute()})"
        apart = [] if is_visible else [process]
        try:
            apart = gather_object(apart)
        except NotImplementedError:  # on TPU, a process reports only itself
            pass
        finally:
            marker.unlink(missing_ok=True)
        if apart:
            raise OSError(
                f"The processes do not share the folder of the feature cache: {', '.join(apart)} cannot see what the main "
                "process writes, and would keep only a part of the features. Pass a folder on a file system that all "
                "nodes share, or build the cache with one process."
            )

    def _check_complete(self, state: PartialState, pending: Mapping[str, Any]) -> None:
        """Raises in every process if the main process does not see the clips that the others have encoded."""
        if state.num_processes == 1:
            return
        from accelerate.utils import broadcast_object_list

        missing = [clip for key, clip in pending.items() if key not in self._shard_of]
        (names,) = broadcast_object_list([list(map(_describe, missing)) if state.is_main_process else None])
        if names:
            raise OSError(
                f"{len(names)} of {len(pending)} clips are missing in {self.folder} after all processes have encoded "
                f"their part, among them: {names[0]}. Make sure that all processes use the same folder, and build the "
                "cache again: it continues with the missing clips."
            )

    @torch.no_grad()
    def _encode(
        self, model: AudioListenForCausalLM, processor: AudioListenProcessor, clips: Sequence[Any]
    ) -> Iterable[dict[str, torch.Tensor]]:
        waveforms = [load_audio(clip, limits=self.limits) for clip in clips]
        inputs = processor(audio=waveforms, sampling_rate=16_000, limits=self.limits).to(model.device)
        features = model.get_encoder_features(**inputs)
        chunks_per_clip = [processor.num_chunks(len(waveform)) for waveform in waveforms]
        parts = {name: value for name, value in features._asdict().items() if value is not None}
        split = {name: value.cpu().split(chunks_per_clip) for name, value in parts.items()}
        for index in range(len(clips)):
            clip = {name: values[index] for name, values in split.items()}
            # The padding of the batch is removed, so the features of a clip do not depend on the other clips.
            frames = processor.num_frames_needed(clip["audio_features_mask"].sum(-1))
            if "sound_features" in clip:
                is_real = (clip["sound_features"] != 0).any(-1).any(0)  # [frames]
                clip["sound_features"] = clip["sound_features"][:, : int(is_real.sum())]
            yield {name: tensor[:, :frames].contiguous() for name, tensor in clip.items()}

    def _write(self, shard: dict[str, torch.Tensor]) -> None:
        digest = hashlib.sha256("".join(sorted(shard)).encode()).hexdigest()[:16]
        clips: dict[str, dict[str, torch.Tensor]] = {}
        for name, tensor in shard.items():
            key, _, feature = name.partition("/")
            clips.setdefault(key, {})[feature] = tensor
        metadata = {"format": "pt", **{_CHECKSUM + key: _checksum(features) for key, features in clips.items()}}
        with atomic_path(self.folder / f"{digest}.safetensors") as temporary:
            save_file(shard, temporary, metadata=metadata)

    @staticmethod
    def batch(features: Sequence[Mapping[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
        """
        Concatenates the chunks of several clips into one batch, padded with zeros on the right.

        Args:
            features (`Sequence[Mapping[str, torch.Tensor]]`):
                for each clip, tensors of shape `(num_chunks, num_frames, ...)` by name.

        Returns:
            `dict[str, torch.Tensor]`: tensors of shape `(total_chunks, max_frames, ...)` by name.
        """
        return {
            name: pad_sequence([chunk for clip in features for chunk in clip[name]], batch_first=True)
            for name in features[0]
        }

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_open_shards": {}}  # each data loader worker opens its own


def find_uncacheable(
    rows: Sequence[Mapping[str, Any]], folder: str | os.PathLike[str], show_progress: bool = True
) -> dict[int, str]:
    """
    Finds the rows with a clip that cannot be loaded, see [`~peft_listen.data.find_bad_clips`]. Clips that are decoded for this
    are remembered in the index of a feature cache, so that building the cache does not decode them again to find them.

    Args:
        rows (`Sequence[Mapping]`): the rows.
        folder (`str` or `os.PathLike`): folder of the cache.
        show_progress (`bool`, defaults to `True`): whether to show a progress bar on stderr.

    Returns:
        `dict[int, str]`: what is wrong, by the number of the row from 0.
    """
    index = ClipIndex(Path(folder) / _INDEX)
    try:
        return find_bad_clips(rows, load=index.key, show_progress=show_progress)
    finally:
        index.save()


def encoder_fingerprint(model: AudioListenForCausalLM) -> str:
    """
    Hash that identifies the encoders of a model by their configuration, dtype and a sample of their weights.

    It covers up to 64 values of every parameter, which distinguishes trained checkpoints and takes milliseconds.

    Args:
        model ([`AudioListenForCausalLM`], or a PEFT model that wraps it): model whose encoders are identified.

    Returns:
        `str`: 16 hexadecimal digits.

    Raises:
        TypeError: for a model of another kind.
    """
    from ..models.audio_listen import AudioListenForCausalLM
    from ..models.audio_listen.audio_tokens import CHUNK_SECONDS

    base: Any = model
    if hasattr(base, "get_base_model"):
        base = base.get_base_model()
    if not isinstance(base, AudioListenForCausalLM):
        raise TypeError(
            f"A feature cache has the outputs of the encoders of an AudioListenForCausalLM, and the model is a "
            f"{type(base).__name__}. Train it without a cache: its encoders run in every step."
        )
    digest = hashlib.sha256()
    towers = {"speech": base.model.speech_tower, "sound": base.model.sound_tower}
    for tower_name, tower in towers.items():
        if tower is None:
            continue
        config = {name: value for name, value in tower.config.to_dict().items() if not name.startswith("_")}
        for unrelated in ("transformers_version", "dtype", "name_or_path"):
            config.pop(unrelated, None)
        digest.update(f"{tower_name}{json.dumps(config, sort_keys=True, default=str)}".encode())
        for name, parameter in tower.named_parameters():
            flat = parameter.detach().flatten()
            sample = flat[:: max(1, flat.numel() // 64)][:64].float().cpu().contiguous()
            digest.update(name.encode() + sample.numpy().tobytes())
            # The name of a float32 folder is the one that it had without the dtype.
            if parameter.dtype != torch.float32:
                digest.update(str(parameter.dtype).encode())
    settings = ("window_length", "window_stride", "group_sound_by_length")
    digest.update(str([getattr(base.config, setting) for setting in settings]).encode())
    if base.config.speech_chunk_multiple != CHUNK_SECONDS:  # folders from before this setting stay valid
        digest.update(f"speech_chunk_multiple {base.config.speech_chunk_multiple}".encode())
    return digest.hexdigest()[:16]


def _checksum(features: Mapping[str, torch.Tensor]) -> str:
    digest = hashlib.sha256()
    for name in sorted(features):
        tensor = features[name].contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)} ".encode())
        digest.update(tensor.flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _not_finite(features: Mapping[str, torch.Tensor]) -> str:
    """Returns the names of the features that contain NaN or infinite values, or an empty string."""
    return ", ".join(f"`{name}`" for name, tensor in features.items() if not bool(tensor.isfinite().all()))


def _describe(clip: Any) -> str:
    if isinstance(clip, Mapping):
        clip = clip.get("path")
    return f"The clip {display_name(os.fsdecode(clip))!r}" if isinstance(clip, (str, os.PathLike)) else "A clip"
