"""Codes: which member trains on which unit, how many removals a code tolerates, and words that no unit owns."""

from ensdiff.codes.capacity import Capacity, deletion_capacity
from ensdiff.codes.code import Code
from ensdiff.codes.errors import CodeWarning, NoSurvivorError
from ensdiff.codes.hierarchy import Groups
from ensdiff.codes.names import check_names

__all__ = ["Capacity", "Code", "CodeWarning", "Groups", "NoSurvivorError", "check_names", "deletion_capacity"]
