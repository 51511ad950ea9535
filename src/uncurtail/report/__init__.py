"""A run folder as tables, figures and one page."""
