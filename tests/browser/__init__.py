"""A real browser, driven over WebDriver."""
