"""A run as others see it: its page, one HTML file that needs nothing else, and its adapter's card."""
