"""Speech synthesis with eSpeak NG (https://github.com/espeak-ng/espeak-ng) through ctypes.

The wheel `espeakng-loader` contains the library and its voices, so pip packages are all that is needed.
"""

import ctypes
import shutil
import tempfile
from pathlib import Path

import numpy as np


SYNCHRONOUS_OUTPUT = 2
DO_NOT_EXIT = 0x8000  # return an error for missing data instead of exiting the process
UTF8_CHARACTERS = 1
RATE, VOLUME, PITCH, PITCH_RANGE = 1, 2, 3, 4
# The library's limits and defaults: rate in words per minute, the others in its own units, 100 = full volume.
LIMITS = {"rate": (80, 450), "pitch": (0, 100), "pitch_range": (0, 100), "volume": (0, 200)}
# Pitch of a variant whose file names none, in Hz: without and with full stress.
DEFAULT_PITCH = (82, 118)
SCALES = (0.5, 2.0)

SynthCallback = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.c_void_p)


class EspeakSynthesizer:
    """
    Synthesizes speech.

    The library keeps the phases of its oscillators and its random numbers in global variables, so each call changes the
    fine structure of the next one. Each instance therefore loads its own copy of the library: two new instances return
    the same samples for the same sequence of calls (except for the variants "Reed" and "caleb", which are not
    reproducible). An instance must not be used by several threads at once.

    Raises:
        ImportError: if espeakng-loader is not installed.
        OSError: if the library cannot be loaded or finds no voices.
    """

    def __init__(self) -> None:
        try:
            import espeakng_loader
        except ImportError as error:
            raise ImportError('Synthesizing speech needs espeakng-loader: pip install "peft-listen[demo]"') from error
        # A folder of links, in which variants of our own can be written beside the library's.
        self._folder = tempfile.TemporaryDirectory(prefix="espeak-ng-")
        self._data = _link_data(Path(espeakng_loader.get_data_path()), Path(self._folder.name))
        self._variants = frozenset(path.name for path in (self._data / "voices" / "!v").iterdir())
        self._library = _load_copy(Path(espeakng_loader.get_library_path()))
        self._library.espeak_Synth.argtypes = [
            *(ctypes.c_char_p, ctypes.c_size_t, ctypes.c_uint, ctypes.c_int, ctypes.c_uint, ctypes.c_uint),
            *(ctypes.c_void_p, ctypes.c_void_p),
        ]
        self._chunks: list[np.ndarray] = []
        self._callback = SynthCallback(self._receive)  # kept alive here, because the library holds no reference to it
        self.sampling_rate: int = self._library.espeak_Initialize(
            SYNCHRONOUS_OUTPUT, 0, str(self._data).encode(), DO_NOT_EXIT
        )
        if self.sampling_rate <= 0:
            raise OSError(
                f"eSpeak NG found no usable voices in {self._data}. Reinstall it: "
                "pip install --force-reinstall espeakng-loader"
            )
        self._library.espeak_ng_SetRandSeed(ctypes.c_long(1))  # the library's own seed is the time of day
        self._library.espeak_SetSynthCallback(self._callback)

    @property
    def variants(self) -> list[str]:
        """Names of the voice variants, such as "f3" and "m1"."""
        return sorted(self._variants)

    def speak(
        self,
        text: str,
        voice: str = "en-us",
        variant: str | None = "f3",
        rate: int = 175,
        pitch: int = 50,
        pitch_range: int = 50,
        volume: int = 100,
        voice_pitch: float = 1.0,
        voice_formants: float = 1.0,
    ) -> tuple[np.ndarray, int]:
        """
        Synthesizes a text.

        Args:
            text (`str`): text to speak.
            voice (`str`, defaults to `"en-us"`): language, as eSpeak NG names it (`"en"` is British English).
            variant (`str`, *optional*, defaults to `"f3"`): speaker, one of `variants`; `None` is the language's own.
            rate (`int`, defaults to 175): words per minute, 80 to 450.
            pitch (`int`, defaults to 50): 0 (low) to 100 (high); 50 is the speaker's own.
            pitch_range (`int`, defaults to 50): 0 (monotone) to 100 (lively).
            volume (`int`, defaults to 100): 0 to 200; 100 is normal, and loud parts may clip above it.
            voice_pitch, voice_formants (`float`, defaults to 1.0): 0.5 to 2; factors of the speaker's own pitch and formants,
                which make another speaker of a similar kind.

        Returns:
            `tuple[np.ndarray, int]`: float32 samples of shape `(num_samples,)` within -1 and 1, and their sampling rate in
            Hz.

        Raises:
            ValueError: if the text is empty, a number is outside its limits, or voice or variant is unknown.
            RuntimeError: if the library fails.
        """
        if not text.strip() or "\0" in text:
            raise ValueError(f"`text` must contain words and no null characters, got {text!r}.")
        numbers = {"rate": rate, "pitch": pitch, "pitch_range": pitch_range, "volume": volume}
        for name, value in numbers.items():
            low, high = LIMITS[name]
            if not low <= value <= high:
                raise ValueError(f"{name}={value} is outside eSpeak NG's limits, expected {low} to {high}.")
        for name, scale in {"voice_pitch": voice_pitch, "voice_formants": voice_formants}.items():
            if not SCALES[0] <= scale <= SCALES[1]:
                raise ValueError(f"{name}={scale}: expected {SCALES[0]} to {SCALES[1]}.")
        # The library silently ignores an unknown variant.
        if variant is not None and variant not in self._variants:
            raise ValueError(f"There is no voice variant {variant!r}, expected one of {', '.join(self.variants)}.")
        if (voice_pitch, voice_formants) != (1, 1):
            variant = self._write_variant(variant, voice_pitch, voice_formants)
        name = voice if variant is None else f"{voice}+{variant}"

        if self._library.espeak_SetVoiceByName(name.encode()) != 0:
            raise ValueError(f"eSpeak NG has no voice {voice!r}, expected a language such as 'en' or 'en-us'.")
        for parameter, value in zip((RATE, PITCH, PITCH_RANGE, VOLUME), numbers.values(), strict=True):
            self._library.espeak_SetParameter(parameter, value, 0)
        encoded = text.encode("utf-8")
        status = self._library.espeak_Synth(encoded, len(encoded) + 1, 0, 0, 0, UTF8_CHARACTERS, None, None)
        chunks, self._chunks = self._chunks, []
        if status != 0 or not chunks:
            raise RuntimeError(f"eSpeak NG failed to synthesize {text!r} with the voice {name!r} (status {status}).")
        samples = np.concatenate(chunks).astype(np.float32) / 32768
        if volume > 0 and not samples.any():
            raise ValueError(f"`text` must contain words, got {text!r}.")
        return samples, self.sampling_rate

    def _write_variant(self, variant: str | None, pitch: float, formants: float) -> str:
        """Writes a variant with another pitch and other formants, and returns its name."""
        folder = self._data / "voices" / "!v"
        name = f"{variant}-{pitch:.3f}-{formants:.3f}"
        if not (folder / name).exists():
            definition = "" if variant is None else (folder / variant).read_text(encoding="utf-8", errors="replace")
            (folder / name).write_text(_scaled(definition, pitch, formants), encoding="utf-8")
        return name

    def _receive(self, samples: "ctypes._Pointer[ctypes.c_short]", count: int, events: int | None) -> int:
        if samples and count > 0:
            self._chunks.append(np.ctypeslib.as_array(samples, (count,)).copy())
        return 0  # continue


def _link_data(data: Path, folder: Path) -> Path:
    """Links the library's data in a folder, in which the folder of the variants can be written to."""
    variants = Path("voices") / "!v"
    (folder / variants).mkdir(parents=True)
    for part in (Path(), variants.parent, variants):
        for source in (data / part).iterdir():
            if not (folder / part / source.name).exists():
                (folder / part / source.name).symlink_to(source)
    return folder


def _scaled(definition: str, pitch: float, formants: float) -> str:
    """A variant's file with scaled pitch and formants (https://github.com/espeak-ng/espeak-ng, docs/voices.md)."""
    settings: dict[str, list[str]] = {
        "language": ["variant"],
        "pitch": [str(value) for value in DEFAULT_PITCH],
        **{f"formant {number}": ["100", "100", "100"] for number in range(1, 9)},
    }
    for line in definition.splitlines():
        words = line.split("//")[0].split()
        if words[:1] == ["formant"] and len(words) > 2:
            settings[f"formant {words[1]}"] = words[2:]
        elif len(words) > 1 and words[0] != "name":
            settings[words[0]] = words[1:]
    settings["pitch"] = [str(round(float(value) * pitch)) for value in settings["pitch"]]
    for number in range(1, 9):
        frequency, *others = settings[f"formant {number}"]
        settings[f"formant {number}"] = [str(round(float(frequency) * formants)), *others]
    return "".join(f"{name} {' '.join(values)}\n" for name, values in settings.items())


def _load_copy(path: Path) -> ctypes.CDLL:
    folder = tempfile.mkdtemp(prefix="espeak-ng-")
    try:
        return ctypes.CDLL(shutil.copy(path, folder))
    except OSError as error:
        raise OSError(
            f"Cannot load a copy of {path} from {folder}: {error}. If that folder is mounted without the right to execute, "
            "set the environment variable TMPDIR to another one."
        ) from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)
