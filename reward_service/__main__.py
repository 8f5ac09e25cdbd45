"""`python -m reward_service [serve] | keys | audit`."""

import sys

from reward_service.commands import main

sys.exit(main())
