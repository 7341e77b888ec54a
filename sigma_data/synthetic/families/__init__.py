"""The six recipes: from dice to a draft, a sample before it is rendered."""

from __future__ import annotations

from collections.abc import Callable

from sigma_data.sample import Family
from sigma_data.synthetic.casting import Draft
from sigma_data.synthetic.dice import Dice
from sigma_data.synthetic.families import compositional, editing, layout, relation, selective, stylization

RECIPES: dict[Family, Callable[[Dice], Draft]] = {
    Family.COMPOSITIONAL: compositional.draft,
    Family.SELECTIVE: selective.draft,
    Family.STYLIZATION: stylization.draft,
    Family.RELATION: relation.draft,
    Family.EDITING: editing.draft,
    Family.LAYOUT: layout.draft,
}
