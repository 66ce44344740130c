"""Deletion certificates, and copies of runs without the members that saw certain units."""

from ensdiff.certificate.certificate import LIMITS, Certificate, Verification, certify
from ensdiff.certificate.forget import forget

__all__ = ["LIMITS", "Certificate", "Verification", "certify", "forget"]
