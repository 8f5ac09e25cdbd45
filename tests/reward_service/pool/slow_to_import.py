"""A library that takes longer to import than an item may take."""

import time

time.sleep(1.0)
