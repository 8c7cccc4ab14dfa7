"""Speech for the demo, spoken by eSpeak NG (https://github.com/espeak-ng/espeak-ng) through ctypes.

The wheel `espeakng-loader` carries the library and its voices, so that nothing has to be installed beside pip packages.
"""

import ctypes
import shutil
import tempfile
from pathlib import Path

import numpy as np


SYNCHRONOUS_OUTPUT = 2
DO_NOT_EXIT = 0x8000  # on missing data return an error instead of ending the process
UTF8_CHARACTERS = 1
RATE, VOLUME, PITCH, PITCH_RANGE = 1, 2, 3, 4
# The library's limits and defaults: rate in words per minute, the others in its own units, 100 = full volume.
LIMITS = {"rate": (80, 450), "pitch": (0, 100), "pitch_range": (0, 100), "volume": (0, 200)}

SynthCallback = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.c_void_p)


class EspeakSynthesizer:
    """Turns text into speech.

    The library keeps its oscillators' phases and its random numbers in globals, so what it spoke before changes the
    fine structure of what it speaks next. Each instance therefore loads a copy of its own: two new instances that are
    given the same sequence of calls return the same samples (but for the variants "Reed" and "caleb", which never repeat
    themselves). Not to be used from several threads at once.

    Raises:
        ImportError: If `espeakng-loader` is missing.
        OSError: If the library cannot be loaded or finds no voices.
    """

    def __init__(self) -> None:
        try:
            import espeakng_loader
        except ImportError as error:
            raise ImportError('Synthesising speech needs espeakng-loader: pip install "peft-listen[demo]"') from error
        self._data = Path(espeakng_loader.get_data_path())
        self._library = _load_copy(Path(espeakng_loader.get_library_path()))
        self._library.espeak_Synth.argtypes = [
            *(ctypes.c_char_p, ctypes.c_size_t, ctypes.c_uint, ctypes.c_int, ctypes.c_uint, ctypes.c_uint),
            *(ctypes.c_void_p, ctypes.c_void_p),
        ]
        self._chunks: list[np.ndarray] = []
        self._callback = SynthCallback(self._receive)  # kept: the library holds no reference to it
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
        return sorted(path.name for path in (self._data / "voices" / "!v").iterdir())

    def speak(
        self,
        text: str,
        voice: str = "en-us",
        variant: str | None = "f3",
        rate: int = 175,
        pitch: int = 50,
        pitch_range: int = 50,
        volume: int = 100,
    ) -> tuple[np.ndarray, int]:
        """Speak a text.

        Args:
            text: What to say.
            voice: Language, as eSpeak NG names it ("en-us", "en" for British English, "cmn").
            variant: The speaker, one of `variants`, or None for the language's own.
            rate: Words per minute, 80 to 450.
            pitch: 0 (low) to 100 (high); 50 is the speaker's own.
            pitch_range: 0 (monotone) to 100 (lively).
            volume: 0 to 200; 100 is normal, and above it loud parts may clip.

        Returns:
            The samples, float32 of shape [samples] within [-1, 1], and their sampling rate in Hz.

        Raises:
            ValueError: If the text is empty, a number is outside its limits, or voice or variant is unknown.
            RuntimeError: If the library fails.
        """
        if not text.strip() or "\0" in text:
            raise ValueError(f"There is nothing to say in {text!r}: pass words, without null characters.")
        numbers = {"rate": rate, "pitch": pitch, "pitch_range": pitch_range, "volume": volume}
        for name, value in numbers.items():
            low, high = LIMITS[name]
            if not low <= value <= high:
                raise ValueError(f"{name}={value} is outside eSpeak NG's limits, expected {low} to {high}.")
        # The library itself ignores an unknown variant silently.
        if variant is not None and variant not in self.variants:
            raise ValueError(f"There is no voice variant {variant!r}, expected one of {', '.join(self.variants)}.")
        name = voice if variant is None else f"{voice}+{variant}"

        if self._library.espeak_SetVoiceByName(name.encode()) != 0:
            raise ValueError(f"eSpeak NG has no voice {voice!r}, expected a language such as 'en' or 'en-us'.")
        for parameter, value in zip((RATE, PITCH, PITCH_RANGE, VOLUME), numbers.values(), strict=True):
            self._library.espeak_SetParameter(parameter, value, 0)
        encoded = text.encode("utf-8")
        status = self._library.espeak_Synth(encoded, len(encoded) + 1, 0, 0, 0, UTF8_CHARACTERS, None, None)
        chunks, self._chunks = self._chunks, []
        if status != 0 or not chunks:
            raise RuntimeError(f"eSpeak NG could not say {text!r} with the voice {name!r} (status {status}).")
        samples = np.concatenate(chunks).astype(np.float32) / 32768
        if volume > 0 and not samples.any():
            raise ValueError(f"There is nothing to say in {text!r}: pass words.")
        return samples, self.sampling_rate

    def _receive(self, samples: "ctypes._Pointer[ctypes.c_short]", count: int, events: int | None) -> int:
        if samples and count > 0:
            self._chunks.append(np.ctypeslib.as_array(samples, (count,)).copy())
        return 0  # go on


def _load_copy(path: Path) -> ctypes.CDLL:
    folder = tempfile.mkdtemp(prefix="espeak-ng-")
    try:
        return ctypes.CDLL(shutil.copy(path, folder))
    except OSError as error:
        raise OSError(
            f"Cannot load a copy of {path} from {folder}: {error}. If programs may not be run from that folder, set "
            "the environment variable TMPDIR to one where they may."
        ) from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)
