"""Several runs of one recipe: trained, evaluated, and put into one chart and one table."""
