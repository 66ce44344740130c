"""Deletion certificates, and runs without the members that saw some units."""

from ensdiff.certificate.certificate import LIMITS, Certificate, Verification, certify
from ensdiff.certificate.forget import forget

__all__ = ["LIMITS", "Certificate", "Verification", "certify", "forget"]
