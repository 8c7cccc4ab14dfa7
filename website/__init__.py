"""What builds the site of the documentation from docs/ and the docstrings, for mkdocs.yml: `make docs`."""

# The package and its parts with public names, in the order in which a name's page is looked for.
PACKAGES = (
    "peft_listen",
    "peft_listen.audio",
    "peft_listen.training",
    "peft_listen.runs",
    "peft_listen.data",
    "peft_listen.data.recipes",
    "peft_listen.metrics",
    "peft_listen.evaluation",
    "peft_listen.analysis",
    "peft_listen.pipelines",
    "peft_listen.serving",
    "peft_listen.page",
    "peft_listen.tuners.listen",
)
