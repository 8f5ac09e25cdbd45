"""What runs in the sandbox's own process, with the standard library alone and no package path.

These modules are sent to a fresh interpreter as compiled code (`reward_service.sandbox.program`). They import one
another by their full names, and as little of the standard library as they can: every import is paid at every start.
"""
