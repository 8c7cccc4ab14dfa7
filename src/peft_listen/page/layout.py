"""The components of the page, and which function each event calls."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gradio as gr

from ..audio import is_url
from . import html
from .answering import Answering
from .functions import Comparison, Question, Result, ask, comparisons
from .tasks import GENERAL_INSTRUCTIONS, Tasks
from .variants import Description


# The fonts of the system, of which no page makes a browser ask another server for one.
_FONTS = ["system-ui", "-apple-system", "Segoe UI", "Roboto", "Helvetica Neue", "sans-serif"]
_MONO_FONTS = ["ui-monospace", "Menlo", "Consolas", "monospace"]

# Seconds after which an uploaded clip is removed, and between two looks for such clips.
_KEPT_SECONDS = 3600

# Questions with this id are answered one at a time, in their order; the queue tells those that wait their place.
_ONE_AT_A_TIME = "answers"


def make_theme() -> gr.themes.Base:
    """The theme of the page."""
    theme = gr.themes.Default(primary_hue="orange", neutral_hue="slate", font=_FONTS, font_mono=_MONO_FONTS)
    # The default ones are hard to read.
    light, dark = "*neutral_600", "*neutral_300"
    return theme.set(
        body_text_color_subdued=light,
        body_text_color_subdued_dark=dark,
        block_info_text_color=light,
        block_info_text_color_dark=dark,
    )


def make_blocks(answering: Answering, upload_folder: str, tasks: Tasks | None = None) -> gr.Blocks:
    """
    The page.

    Args:
        answering ([`Answering`]): Asks the models.
        upload_folder (`str`): Folder of uploaded clips; no other file is read for a question.
        tasks ([`Tasks`], *optional*): What it offers to ask. By default some general instructions, for a model with audio.

    Returns:
        `gradio.Blocks`
    """
    return _Page(answering, upload_folder, tasks).blocks


class _Page:
    """Builds the components. Its methods are what the events call."""

    def __init__(self, answering: Answering, upload_folder: str, tasks: Tasks | None) -> None:
        self._answering = answering
        self._upload_folder = Path(os.path.realpath(upload_folder))
        self._names = list(answering.descriptions)
        if tasks is None:
            tasks = Tasks(dict(GENERAL_INSTRUCTIONS) if answering.takes_audio else {}, [])
        self._instructions = tasks.instructions
        self._clips = {clip.name: clip for clip in tasks.clips} if answering.takes_audio else {}
        title = f"peft-listen: {', '.join(self._names)}"
        kept = (_KEPT_SECONDS, _KEPT_SECONDS)
        with gr.Blocks(title=title, analytics_enabled=False, delete_cache=kept) as self.blocks:
            gr.HTML(self._title(), elem_classes=["listen-title", "listen-plain"])
            with gr.Row():
                with gr.Column(scale=5, min_width=300):
                    self._make_inputs()
                with gr.Column(scale=7, min_width=300):
                    self._make_outputs()
            self._connect()
        self.blocks.queue(max_size=answering.settings.max_waiting, api_open=False)

    def _title(self) -> str:
        kind = "Ask about a clip" if self._answering.takes_audio else "Ask the model"
        described = ", ".join(map(html.escape, self._names))
        return f"<h1>{kind}</h1><p>peft-listen · {described}</p>"

    # ------------------------------------------------------------------------------------------------------ components

    def _make_inputs(self) -> None:
        answering, first = self._answering, self._answering.descriptions[self._names[0]]
        self.model = gr.Dropdown(
            self._names, value=self._names[0], label="Model", visible=len(self._names) > 1, filterable=False
        )
        self.clip = gr.Audio(
            sources=["upload", "microphone"],
            type="filepath",
            label=f"Clip, up to {answering.settings.max_audio_seconds:g} s",
            buttons=[],
            visible=answering.takes_audio,
            elem_id="clip",
        )
        _refuse_addresses(self.clip)
        self.picked = gr.Dropdown(
            list(self._clips), value=None, label="Clip of the data file", visible=bool(self._clips), elem_id="picked"
        )
        self.expected = gr.HTML("", visible=bool(self._clips), elem_id="expected", elem_classes="listen-plain")
        self.instruction = gr.Textbox(
            label="Instruction",
            placeholder="Describe what you hear." if answering.takes_audio else "What is the capital of France?",
            lines=2,
            max_lines=8,
            max_length=answering.settings.max_text_characters,
            elem_id="instruction",
        )
        with gr.Row(visible=bool(self._instructions), elem_classes="listen-tasks-row"):
            self.task_buttons = {task: gr.Button(task, size="sm", min_width=80) for task in self._instructions}
        self.prompt_length = self._length_slider(first, "Prompts (k)", "prompt-length", is_other=False)
        choices = [str(choice) for choice in comparisons(answering, self._names[0])]
        self.comparison = gr.Radio(
            choices,
            value=str(Comparison.NOTHING),
            label="Compare with",
            visible=len(choices) > 1,
            elem_id="comparison",
        )
        self.other_prompt_length = self._length_slider(first, "The other k", "other-prompt-length", is_other=True)
        self.other_model = gr.Dropdown(
            self._names,
            value=self._names[:2][-1],
            label="The other adapter",
            visible=False,
            filterable=False,
            elem_id="other-model",
        )
        with gr.Row():
            self.ask = gr.Button("Ask", variant="primary", min_width=80, elem_id="ask")
            self.stop = gr.Button("Stop", variant="secondary", min_width=80, elem_id="stop")

    def _make_outputs(self) -> None:
        self.message = gr.HTML("", elem_id="message", elem_classes="listen-plain")
        with gr.Row():
            with gr.Column(min_width=280):
                self.first = self._make_answer("first")
            with gr.Column(min_width=280, visible=False) as self.second_column:
                self.second = self._make_answer("second")

    def _make_answer(self, name: str) -> list[Any]:
        heading = gr.HTML(
            "" if name == "second" else html.heading("Answer"), elem_id=f"{name}-heading", elem_classes="listen-plain"
        )
        # The heading above shows what it is; the label is for screen readers.
        text = gr.Textbox(
            label="Answer" if name == "first" else "Answer to compare with",
            show_label=False,
            lines=3,
            max_lines=12,
            interactive=False,
            elem_id=f"{name}-answer",
        )
        placeholder = html.note("The selected prompts appear here.") if name == "first" else ""
        return [heading, text, gr.HTML(placeholder, elem_id=f"{name}-selection", elem_classes="listen-plain")]

    def _length_slider(self, description: Description, label: str, elem_id: str, is_other: bool) -> gr.Slider:
        return gr.Slider(
            step=1,
            label=label,
            elem_id=elem_id,
            **_length_settings(description, is_other),
            visible=_has_lengths(description) and not is_other,
        )

    # ---------------------------------------------------------------------------------------------------------- events

    def _connect(self) -> None:
        at_once: dict[str, Any] = {"queue": False, "show_progress": "hidden", "api_visibility": "private"}
        lengths = [self.prompt_length, self.other_prompt_length]
        self.model.change(self.on_model, self.model, [*lengths, self.comparison], **at_once)
        self.comparison.change(
            self.on_comparison,
            self.comparison,
            [self.other_prompt_length, self.other_model, self.second_column],
            **at_once,
        )
        self.picked.input(self.on_pick, self.picked, [self.clip, self.instruction, self.expected], **at_once)
        self.clip.input(self.on_clip, None, [self.picked, self.expected], **at_once)
        self.clip.clear(self.on_clip, None, [self.picked, self.expected], **at_once)
        for task, button in self.task_buttons.items():
            # In the browser, so that it takes effect before a click on "Ask" that follows.
            instruction = json.dumps(self._instructions[task])
            button.click(None, None, self.instruction, js=f"() => {instruction}", api_visibility="private")
        inputs = [
            self.model,
            self.clip,
            self.instruction,
            self.prompt_length,
            self.comparison,
            self.other_prompt_length,
            self.other_model,
        ]
        asked = gr.on(
            [self.ask.click, self.instruction.submit],
            self.on_ask,
            inputs,
            [self.message, *self.first, *self.second],
            concurrency_id=_ONE_AT_A_TIME,
            concurrency_limit=1,
            trigger_mode="once",
            show_progress="hidden",
            api_visibility="private",
        )
        self.stop.click(None, None, None, cancels=[asked], queue=False, api_visibility="private")

    def on_model(self, model: str) -> list[Any]:
        """The k of another model, and what it can be compared with."""
        description = self._answering.descriptions[model]
        choices = [str(choice) for choice in comparisons(self._answering, model)]
        return [
            gr.update(**_length_settings(description, is_other=False), visible=_has_lengths(description)),
            gr.update(**_length_settings(description, is_other=True)),
            gr.update(choices=choices, value=str(Comparison.NOTHING)),
        ]

    def on_comparison(self, comparison: str) -> list[Any]:
        """Shows the settings of a comparison and the place of its answer."""
        return [
            gr.update(visible=comparison == Comparison.OTHER_LENGTH),
            gr.update(visible=comparison == Comparison.OTHER_MODEL),
            gr.update(visible=comparison != Comparison.NOTHING),
        ]

    def on_pick(self, name: str | None) -> list[Any]:
        """The clip of the data file with its instruction and answer."""
        clip = self._clips.get(name or "")
        if clip is None:
            return [None, "", ""]
        return [clip.path, clip.instruction, html.note(f"Answer in the data file: {clip.answer}")]

    def on_clip(self) -> list[Any]:
        """A clip of the visitor takes the place of a picked one."""
        return [None, ""]

    def on_ask(
        self,
        model: str,
        clip: str | None,
        instruction: str | None,
        prompt_length: float | None,
        comparison: str | None,
        other_prompt_length: float | None,
        other_model: str | None,
    ) -> Iterator[list[str]]:
        """Streams the answers to the components of the outputs."""
        if clip is not None and not Path(os.path.realpath(clip)).is_relative_to(self._upload_folder):
            yield _outputs(Result(html.message("The clip was not uploaded on this page. Choose it again.")))
            return
        question = Question(
            model=model,
            clip=clip,
            instruction=instruction or "",
            prompt_length=_whole(prompt_length),
            comparison=Comparison(comparison or Comparison.NOTHING),
            other_prompt_length=_whole(other_prompt_length),
            other_model=other_model,
        )
        for result in ask(self._answering, question):
            yield _outputs(result)


def _outputs(result: Result) -> list[str]:
    shown = [text for each in (result.first, result.second) for text in (each.heading, each.text, each.selection)]
    return [result.message, *shown]


def _length_settings(description: Description, is_other: bool) -> dict[str, Any]:
    size = description.pool_size or 1
    own = min(description.prompt_length or 1, size)
    value = own if not is_other else max(1, own // 2)
    settings: dict[str, Any] = {"minimum": 1, "maximum": max(size, 2), "value": value}
    if not is_other:
        info = f"How many of the adapter's {size} prompts are selected for a question and put before it."
        if description.trained_lengths is not None:
            info += f" The adapter was trained with k = {description.trained_lengths}."
        settings["info"] = info
    return settings


def _has_lengths(description: Description) -> bool:
    return description.pool_size is not None and description.pool_size > 1


def _whole(number: float | None) -> Any:
    """A number of a slider as an integer, if it is whole."""
    return int(number) if isinstance(number, float) and number.is_integer() else number


def _refuse_addresses(clip: gr.Audio) -> None:
    """Makes a component refuse addresses in the place of uploads, which gradio's server would download. A subclass of the
    component could do it too, but gradio writes a file beside the source of each subclass."""
    block: Any = clip
    take = block.async_move_resource_to_block_cache

    async def take_uploads(path: str | Path | None) -> str | None:
        if path is not None and is_url(str(path)):
            raise gr.Error("This page takes uploaded clips only.", print_exception=False)
        taken: str | None = await take(path)
        return taken

    block.async_move_resource_to_block_cache = take_uploads
