"""A function for each family that draws a draft: a sample before it is rendered."""

from __future__ import annotations

from collections.abc import Callable

from sigma_data.sample import Family
from sigma_data.synthetic.casting import Draft
from sigma_data.synthetic.families import compositional, editing, layout, relation, selective, stylization
from sigma_data.synthetic.rng import KeyedRng

RECIPES: dict[Family, Callable[[KeyedRng], Draft]] = {
    Family.COMPOSITIONAL: compositional.draft,
    Family.SELECTIVE: selective.draft,
    Family.STYLIZATION: stylization.draft,
    Family.RELATION: relation.draft,
    Family.EDITING: editing.draft,
    Family.LAYOUT: layout.draft,
}
