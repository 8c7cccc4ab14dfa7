"""Chat templates that put the audio token where a message says `{"type": "audio"}`."""

# Turns lists of content parts into strings, so that the template of any text-only language model can render them.
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

# The prompt format of SALMONN (bytedance/SALMONN), for language models that have no template of their own.
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
    The chat template of a language model, extended to audio.

    Messages may hold a list of parts, `{"type": "audio", ...}` and `{"type": "text", "text": ...}`, which are joined to
    one string, the audio token in the place of each audio, before `text_template` renders them.

    Args:
        audio_token (`str`): The placeholder for one clip.
        text_template (`str`, *optional*):
            The language model's own template (Jinja). Without one, turns are rendered as SALMONN does,
            `USER: ...\\nASSISTANT: ...`, with the assistant's answers marked by `{% generation %}`.
    """
    literal = "'" + audio_token.replace("\\", "\\\\").replace("'", "\\'") + "'"
    flatten = _FLATTEN_CONTENT.replace("AUDIO_TOKEN", literal)
    template = text_template or _PLAIN_TEMPLATE
    return template if template.startswith(flatten) else flatten + template
