"""What programs print about a deletion certificate."""

from typing import Any


def describe_certificate(certificate: Any) -> None:
    """Print the claim of a deletion certificate, its warnings, and the digest to keep."""
    from ensdiff.certificate.sections import BASE, ENCODER
    from ensdiff.files.reading import printable

    print(printable(certificate.values["claim"]))
    for copy in certificate.values["copies"]:
        print(
            f"warning: item {copy['item']} of unit {copy['unit']}, which survivors saw, is a byte-for-byte copy of an "
            f"item of unit {copy['of_unit']}; forget both units to remove its content"
        )
    for limit in (ENCODER, BASE):
        if limit in certificate.values.get("limits", ()):
            print(f"not covered: {limit}")
    print(f"digest (keep it elsewhere): {printable(certificate.digest)}")
