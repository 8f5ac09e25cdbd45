"""`python -m reward_service` runs the service."""

import sys

from reward_service.serve import main

sys.exit(main())
