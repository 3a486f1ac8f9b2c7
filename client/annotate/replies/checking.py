"""Whether a model server has what a project names: heads of the right kind, rule sets, recipes, transcript formats."""

from __future__ import annotations

from polyhead.client import AsyncClient, HeadKind, errors
from polyhead.client.annotate.projects.config import ProjectConfig
from polyhead.client.annotate.replies.drawing import ConfigurationKind, Model


async def check(config: ProjectConfig, client: AsyncClient) -> list[str]:
    """A line for each of them, as the server has it. NotFound or FailedPrecondition names the key of what cannot be used."""
    lines = []
    for name in (*config.head_names, *config.hidden.heads):
        head = await client.head(name)
        if head.kind is not HeadKind.POLICY and name in config.head_names:
            what = f"{name} is a {head.kind.value} head, which writes nothing"
            raise errors.FailedPrecondition(f"{what}\nhint: name a policy head", field="arms")
        lines.append(f"head {name}: version {head.version}, {head.kind.value}")
    model, hidden = Model(client), config.hidden
    named: tuple[tuple[str, ConfigurationKind, str], ...] = (
        ("rules.rule_set", "rule_set", config.rules.rule_set),
        ("hidden.rule_set", "rule_set", hidden.rule_set),
        ("hidden.recipe", "recipe", hidden.recipe),
        ("prompt.format", "transcript_format", config.prompt.format),
    )
    for key, kind, name in named:
        if name:
            found = await model.configuration(kind, name, key)
            rules = f": {len(found.rules)} rules" if kind == "rule_set" else ""
            lines.append(f"{kind.replace('_', ' ')} {found.reference}{rules}")
    return lines
