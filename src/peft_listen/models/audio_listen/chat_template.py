"""Chat templates that render the parts `{"type": "audio", ...}` of a message as the audio token."""

from typing import Any


# Joins lists of content parts to strings, so that the template of any text-only language model can render them.
_FLATTEN_CONTENT = """\
{%- set flat = namespace(messages=[]) -%}
{%- for message in messages -%}
    {%- if message['content'] is defined and message['content'] is not string and message['content'] is iterable -%}
        {%- set content = namespace(text='') -%}
        {%- for part in message['content'] -%}
            {%- if part['type'] == 'audio' -%}
                {%- set content.text = content.text + AUDIO_TOKEN -%}
            {%- elif part['type'] == 'text' -%}
                {%- set content.text = content.text + part['text'] -%}
            {%- else -%}
                {{- raise_exception('Only audio and text can be in a message, got ' + part['type']) -}}
            {%- endif -%}
        {%- endfor -%}
        {%- set flat.messages = flat.messages + [dict(message, content=content.text)] -%}
    {%- else -%}
        {%- set flat.messages = flat.messages + [message] -%}
    {%- endif -%}
{%- endfor -%}
{%- set messages = flat.messages -%}
"""

# The prompt format of SALMONN (bytedance/SALMONN), for language models without a template.
_PLAIN_TEMPLATE = """\
{{- bos_token if bos_token is defined and bos_token else '' -}}
{%- for message in messages -%}
    {%- if message['role'] == 'system' -%}
        {{- message['content'] + '\\n' -}}
    {%- elif message['role'] == 'user' -%}
        {{- 'USER: ' + message['content'] + '\\n' -}}
    {%- elif message['role'] == 'assistant' -%}
        {{- 'ASSISTANT:' -}}
        {%- generation -%}
        {{- ' ' + message['content'] + (eos_token if eos_token is defined and eos_token else '') -}}
        {%- endgeneration -%}
        {{- '\\n' if not loop.last else '' -}}
    {%- else -%}
        {{- raise_exception('The role of a message must be system, user or assistant, got ' + message['role']) -}}
    {%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}
    {{- 'ASSISTANT:' -}}
{%- endif -%}
"""


def audio_chat_template(audio_token: str, text_template: str | None = None) -> str:
    """
    Extends the chat template of a language model to audio.

    A message may contain a list of parts, `{"type": "audio", ...}` and `{"type": "text", "text": ...}`. They are joined
    to one string, with the audio token in place of each audio part, before `text_template` renders it.

    Args:
        audio_token (`str`): Placeholder for one clip.
        text_template (`str`, *optional*):
            The language model's template (Jinja). If it is `None`, turns are rendered in SALMONN's format,
            `USER: ...\\nASSISTANT: ...`, with the assistant's answers marked by `{% generation %}`.

    Returns:
        `str`: the extended template; a template that is extended already is returned unchanged.
    """
    literal = "'" + audio_token.replace("\\", "\\\\").replace("'", "\\'") + "'"
    flatten = _FLATTEN_CONTENT.replace("AUDIO_TOKEN", literal)
    template = text_template or _PLAIN_TEMPLATE
    return template if template.startswith(flatten) else flatten + template


def text_template(tokenizer: Any) -> str | None:
    """The chat template of a tokenizer, the default one if it has several, or `None`."""
    template = tokenizer.chat_template
    return template.get("default") if isinstance(template, dict) else template
