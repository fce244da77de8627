"""A trained sparse model as the machine multiplies it fastest; docs/EXPORT.md says what is gained."""

from hf_connectome.export.exporting import FORMS, export

__all__ = ["FORMS", "export"]
