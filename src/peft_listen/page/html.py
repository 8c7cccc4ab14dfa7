"""Parts of the page in HTML. All texts of models, data and errors are escaped."""

from __future__ import annotations

from html import escape

from .selected_prompts import SelectedPrompt, SelectedPrompts


# Tasks shown for one prompt.
_SHOWN_TASKS = 3


def heading(text: str, note: str = "") -> str:
    """The heading of an answer, such as `k = 8`, with a note, such as the time that it took."""
    return f'<p class="listen-heading"><b>{escape(text)}</b> <span>{escape(note)}</span></p>'


def message(text: str) -> str:
    """A message about a question that was refused."""
    return f'<div class="listen-message" role="alert">{escape(text)}</div>' if text else ""


def note(text: str) -> str:
    """A remark in the place of a selection."""
    return f'<p class="listen-note">{escape(text)}</p>'


def selection(selected: SelectedPrompts) -> str:
    """A table of the selected prompts, below a scale with the cosines of all keys of the pool."""
    low, high = min(selected.pool_cosines), max(selected.pool_cosines)
    span = max(high - low, 1e-6)
    has_tasks, has_words = selected.shares is not None, selected.words is not None
    header = "<th>usual tasks</th>" if has_tasks else ""
    rows = "".join(_row(prompt, (prompt.cosine - low) / span, has_tasks, has_words) for prompt in selected.prompts)
    return (
        '<div class="listen-selection">'
        f"{_scale(selected, low, span)}"
        '<div class="listen-table" tabindex="0" role="region" aria-label="selected prompts"><table>'
        f'<thead><tr><th>prompt</th><th class="listen-near">cosine</th>{header}</tr></thead>'
        f"<tbody>{rows}</tbody></table></div>{_source(selected)}{_words_source(selected)}</div>"
    )


def _row(prompt: SelectedPrompt, position: float, has_tasks: bool, has_words: bool) -> str:
    cells = f"<td>{prompt.index}</td>"
    cells += (
        f'<td class="listen-near"><span class="listen-bar"><i style="width:{100 * position:.1f}%"></i></span>'
        f"<span>{_number(prompt.cosine)}</span></td>"
    )
    if has_tasks:
        shown = " ".join(
            f"<span>{escape(task)} <small>{_percent(share)}</small></span>"
            for task, share in prompt.tasks[:_SHOWN_TASKS]
        )
        more = len(prompt.tasks) - _SHOWN_TASKS
        shown += f" <small>and {more} more</small>" if more > 0 else ""
        cells += f'<td class="listen-tasks">{shown or "<small>none</small>"}</td>'
    row = f"<tr>{cells}</tr>"
    if has_words:
        # In a row of its own, because the table is narrow where it is beside a second answer or on a phone.
        words = " ".join(f"<q>{escape(word)}</q>" for word in prompt.words)
        near = "near" if prompt.is_near_words else "near no word;" if words else "near no word"
        row += f'<tr class="listen-words"><td></td><td colspan="{2 if has_tasks else 1}">{near} {words}</td></tr>'
    return row


def _scale(selected: SelectedPrompts, low: float, span: float) -> str:
    chosen = {prompt.index for prompt in selected.prompts}
    # The chosen ones last, so that they are drawn over the others.
    order = sorted(range(len(selected.pool_cosines)), key=lambda index: index in chosen)
    lines = "".join(
        f'<line x1="{x:.2f}" x2="{x:.2f}" y1="{0 if index in chosen else 6}" y2="20"{_CHOSEN if index in chosen else ""}/>'
        for index in order
        for x in (2 + 396 * (selected.pool_cosines[index] - low) / span,)
    )
    described = (
        f"Cosines of the query and the keys of all {len(selected.pool_cosines)} prompts, from {_number(low)} to "
        f"{_number(low + span)}; those of the {len(chosen)} selected prompts are highlighted."
    )
    return (
        f'<p class="listen-summary"><b>{len(chosen)} of {len(selected.pool_cosines)} prompts</b> were selected</p>'
        f'<svg class="listen-scale" viewBox="0 0 400 20" preserveAspectRatio="none" role="img" aria-label="{described}">'
        f'{lines}</svg><p class="listen-ends"><span>{_number(low)}</span><span>cosine of key and query</span>'
        f"<span>{_number(low + span)}</span></p>"
    )


_CHOSEN = ' class="listen-chosen"'


def _source(selected: SelectedPrompts) -> str:
    shares = selected.shares
    if shares is None:
        return note("There are no recorded selections, which would say which tasks usually select these prompts.")
    length = f"k\N{NO-BREAK SPACE}=\N{NO-BREAK SPACE}{shares.prompt_length}"
    return note(
        f"Usual tasks: the share of each task's rows that select the prompt, in {shares.num_rows} recorded rows with {length}."
    )


def _words_source(selected: SelectedPrompts) -> str:
    words = selected.words
    if words is None:
        return ""
    return note(
        "Nearest words: the tokens whose embeddings are nearest to the prompt. A prompt is near one if it is nearer than 95 % of "
        f"random directions are ({_number(words.chance_similarity)}); {words.num_near} of {len(words.prompts)} prompts "
        f"{'is' if words.num_near == 1 else 'are'}. Being near a token does not show what a prompt does."
    )


def _number(value: float) -> str:
    return f"{value:.2f}".replace("-", "\N{MINUS SIGN}")


def _percent(share: float) -> str:
    return "<1 %".replace("<", "&lt;") if share < 0.005 else f"{share:.0%}".replace("%", " %")


STYLE = """
.gradio-container { width: 100% !important; max-width: min(1240px, 100vw) !important; margin: 0 auto !important; }
.listen-plain .html-container, .listen-plain.block { padding: 0 !important; }
:root { --listen-accent: #c2410c; }
.dark { --listen-accent: #fb923c; }
.listen-title h1 { margin: 0; font-size: 1.4rem; }
.listen-title p { margin: 0.1rem 0 0; color: var(--body-text-color-subdued); overflow-wrap: anywhere; }
.listen-heading { margin: 0; overflow-wrap: anywhere; }
.listen-heading span, .listen-note, .listen-ends, .listen-selection small { color: var(--body-text-color-subdued); }
.listen-heading span { font-size: 0.9em; }
.listen-summary { margin: 0 0 0.3rem; }
.listen-note { margin: 0.4rem 0 0; font-size: 0.88rem; }
.listen-message {
  padding: 0.6rem 0.8rem; border: 1px solid #dc2626; border-radius: 8px; overflow-wrap: anywhere;
  color: var(--body-text-color); background: rgba(220, 38, 38, 0.1);
}
#message:not(:has(.listen-message)), #expected:not(:has(.listen-note)) { display: none; }
.listen-scale { display: block; width: 100%; height: 26px; }
.listen-scale line { stroke: var(--body-text-color-subdued); stroke-opacity: 0.45; vector-effect: non-scaling-stroke; }
.listen-scale line.listen-chosen { stroke: var(--listen-accent); stroke-opacity: 1; stroke-width: 2.5px; }
.listen-ends { display: flex; justify-content: space-between; gap: 0.5rem; margin: 0 0 0.5rem; font-size: 0.82rem; }
.listen-table { max-height: 24rem; overflow: auto; border: 1px solid var(--border-color-primary); border-radius: 8px; }
.listen-table table { width: 100%; margin: 0 !important; border-collapse: collapse; font-size: 0.92rem; }
.listen-table table, .listen-table tr { border: 0 !important; }
.listen-table th, .listen-table td {
  padding: 0.32rem 0.6rem !important; border-width: 0 !important; text-align: left; vertical-align: top;
}
.listen-table th {
  position: sticky; top: 0; font-weight: 600; color: var(--body-text-color); background: var(--background-fill-secondary);
}
.listen-table td { box-shadow: inset 0 1px var(--border-color-primary); }
.listen-table td:first-child { width: 4rem; font-variant-numeric: tabular-nums; }
td.listen-near { width: 1%; white-space: nowrap; font-variant-numeric: tabular-nums; }
.listen-bar {
  display: inline-block; width: 3.6rem; height: 0.55rem; margin-right: 0.5rem; border-radius: 3px; overflow: hidden;
  background: var(--border-color-primary);
}
.listen-bar i { display: block; height: 100%; background: var(--listen-accent); }
td.listen-tasks > span { display: inline-block; margin-right: 0.6rem; white-space: nowrap; }
.listen-table tr.listen-words td {
  box-shadow: none; padding-top: 0 !important; font-size: 0.82rem; color: var(--body-text-color-subdued);
}
tr.listen-words q { white-space: pre; quotes: "\\201c" "\\201d"; }
@media (max-width: 480px) {
  .listen-bar { width: 2.6rem; }
  .listen-table th, .listen-table td { padding-left: 0.4rem !important; padding-right: 0.4rem !important; }
  .listen-table td:first-child { width: 3rem; }
}
"""
