"""Whether the templates of a resource and its declared inputs fit each other: the same names, no more and no fewer.

Images, files and audio are the exception: they go beside the text, so no template names them.
"""

from __future__ import annotations

from contracts.catalog import ResourceDraft
from contracts.errors import FieldProblem
from contracts.templates import find_variables
from services.catalog.inputs import ATTACHMENTS


def template_problems(draft: ResourceDraft) -> list[FieldProblem]:
    """A problem for every variable that is not declared and every input that no template uses."""
    declared = {declaration.name for declaration in draft.inputs}
    attached = {declaration.name for declaration in draft.inputs if declaration.type in ATTACHMENTS}
    problems: list[FieldProblem] = []
    used: set[str] = set()
    for field in ("prompt_template", "system_prompt"):
        variables = find_variables(getattr(draft.openrouter_config, field) or "")
        used.update(variables)
        problems += [
            FieldProblem(
                path=f"openrouter_config.{field}",
                message=f"The template uses {{{{{name}}}}}, which is not declared; add an input of that name or remove it.",
            )
            for name in variables
            if name not in declared
        ]
        problems += [
            FieldProblem(
                path=f"openrouter_config.{field}",
                message=f"{{{{{name}}}}} is no text: it is sent beside the prompt, so remove it from the template.",
            )
            for name in variables
            if name in attached
        ]
    problems += [
        FieldProblem(
            path=f"inputs.{position}.name",
            message=f"No template uses {{{{{declaration.name}}}}}; use it in the prompt or remove the input.",
        )
        for position, declaration in enumerate(draft.inputs)
        if declaration.name not in used | attached
    ]
    return problems
