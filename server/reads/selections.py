"""How much a selection set asks for."""

from collections.abc import Mapping
from typing import NamedTuple

from graphql import FieldNode, FragmentDefinitionNode, FragmentSpreadNode, InlineFragmentNode, SelectionSetNode


class Weight(NamedTuple):
    """Levels, aliases, fields and the longest name of a selection set. A fragment counts wherever it is spread.

    `width`: the fields, of which one with a long name counts as several, because each row of an answer repeats it.
    """

    depth: int = 0
    aliases: int = 0
    fields: int = 0
    longest: int = 0
    width: int = 0


NAME_LENGTH = 32
"Characters. A longer name counts as several fields of a row."


def weigh(
    selections: SelectionSetNode,
    fragments: Mapping[str, FragmentDefinitionNode],
    known: dict[str, Weight] | None = None,
) -> Weight:
    """Weighs each fragment once. A fragment inside itself weighs nothing; validation refuses it."""
    known = {} if known is None else known
    depth, aliases, fields, longest, width = 1, 0, 0, 0, 0
    for selection in selections.selections:
        inner = Weight()
        match selection:
            case FieldNode(selection_set=inner_selections):
                fields += 1
                aliases += selection.alias is not None
                length = len((selection.alias or selection.name).value)
                longest = max(longest, length)
                width += 1 + length // NAME_LENGTH
                if inner_selections:
                    inner = weigh(inner_selections, fragments, known)
                    inner = inner._replace(depth=inner.depth + 1)
            case InlineFragmentNode(selection_set=inner_selections):
                inner = weigh(inner_selections, fragments, known)
            case FragmentSpreadNode():
                name = selection.name.value
                if name in fragments and name not in known:
                    known[name] = Weight()
                    known[name] = weigh(fragments[name].selection_set, fragments, known)
                inner = known.get(name, inner)
        depth, longest = max(depth, inner.depth), max(longest, inner.longest)
        aliases, fields, width = aliases + inner.aliases, fields + inner.fields, width + inner.width
    return Weight(depth, aliases, fields, longest, width)
