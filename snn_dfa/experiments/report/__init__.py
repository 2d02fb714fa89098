"""What a run leaves behind: tables, figures and a page."""
