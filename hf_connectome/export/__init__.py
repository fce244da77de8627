"""A trained sparse model as its machine multiplies it fastest (docs/EXPORT.md)."""

from hf_connectome.export.exporting import FORMS, export

__all__ = ["FORMS", "export"]
