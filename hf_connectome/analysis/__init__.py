"""What a connectome and its runs look like: figures and reports. Nothing is measured here."""
