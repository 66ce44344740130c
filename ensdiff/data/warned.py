"""The warning about data that were read, but not as they are."""


class DataWarning(UserWarning):
    """Data were read, but some were left out or differ from what was expected. The message gives the details.

    For example, files of a folder were left out, or a run's training data could not be compared or came with other
    items.

    >>> import pathlib, warnings
    >>> from PIL import Image
    >>> pathlib.Path("sketches").mkdir()
    >>> for name in ("0.png", "1.png"):
    ...     Image.new("L", (8, 8)).save(f"sketches/{name}")
    >>> _ = pathlib.Path("sketches", "2.heic").write_bytes(b"...")
    >>> with warnings.catch_warnings(record=True) as caught:
    ...     warnings.simplefilter("always")
    ...     data = ensdiff.data.folder("sketches")
    >>> print(caught[0].category.__name__, caught[0].message)
    DataWarning sketches: left out 1 file: 1 .heic (such as 2.heic). ...
    """
