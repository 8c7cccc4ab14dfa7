"""Settings of the page."""

from dataclasses import dataclass

from ..setting_types import check_limits


@dataclass(frozen=True)
class PageSettings:
    """
    Limits of the page. They hold for each question of each visitor.

    Args:
        max_new_tokens (`int`, defaults to 128): Longest answer in tokens.
        max_audio_seconds (`float`, defaults to 60.0): Longest clip in seconds.
        max_upload_bytes (`int`, defaults to 25 MiB): Largest file that is uploaded.
        max_text_characters (`int`, defaults to 4000): Longest instruction in characters.
        max_waiting (`int`, defaults to 20): Number of questions that wait. Further ones are refused.
        timeout (`float`, defaults to 120.0): Seconds after which an answer is ended. The time of waiting is not counted.

    Raises:
        ValueError: A value is not a number above 0, or not a whole one where it counts something.
    """

    max_new_tokens: int = 128
    max_audio_seconds: float = 60.0
    max_upload_bytes: int = 25 << 20
    max_text_characters: int = 4000
    max_waiting: int = 20
    timeout: float = 120.0

    def __post_init__(self) -> None:
        check_limits(self)
