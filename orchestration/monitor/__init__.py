"""A run as one watches it: lines in Ray's dashboard, panels and alert rules, and the programs that show them."""
