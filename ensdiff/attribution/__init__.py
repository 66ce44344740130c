"""Three views of one weight row: exact, differential, and (screen) one to find what the other verifies."""

from ensdiff.attribution.attribute import Attribution, attribute
from ensdiff.attribution.differential import gram, jacobian, quadratic_influence
from ensdiff.attribution.exact import exact_influence

__all__ = ["Attribution", "attribute", "exact_influence", "gram", "jacobian", "quadratic_influence"]
