"""Runs Python that nobody trusts: one sandbox for an item, one process in it for each test.

What it does. The code runs in a fresh interpreter without environment variables, in user, mount, process, network, IPC,
host-name and cgroup namespaces of its own: made by bubblewrap where that is installed, else by ourselves
(`inside.namespaces`). It sees a Python and the system's libraries, read-only, /dev/null and its like, its own /proc,
and a scratch folder in memory; no network, not even loopback; no capability, and no way to one; a filter of system
calls on x86-64 and arm64. Time, processor time, memory, processes, files and output are limited, for each process by
rlimits, together by process 1 of the sandbox, which looks every 50 ms. After each test everything that it started is
killed, and with the worker that started the sandbox all of it ends. Expected values stay outside: results come out as
plain data, are never unpickled or evaluated, and are compared by the worker (`compare`).

What it does not protect from:
- Faults of the kernel, the processor's side channels, and starving the machine within the limits (processor time above
  all: the limits are for one sandbox, and as many run as there are workers).
- Memory that rlimits and resident sizes do not show (socket and pipe buffers, page tables, directory entries), bounded
  only by the number of processes and descriptors. There is no memory cgroup; put the service in one.
- General tests (code of the reference that runs beside the solution): a solution that walks frames or the garbage
  collector's objects can find the nonce, the test code and the expected values in it, and can change what the tests
  see while they run. Builtins, unittest and some modules are taken before it is loaded, put back, and looked at again
  after the test; results that are objects of the solution's own classes are refused where an entry point is named.
  That stops the tricks that policies find, not an author who has read this. Tests that compare values (programs,
  calls, assertions, and `check` functions made of those alone) have no such hole.
- Tests of one item share the scratch folder, and can see each other's inputs if they leave them there.
- Other users of a Python prefix that holds secrets: the interpreter's `lib` folder is readable, site-packages included.
- Mode `limits` (and `auto` where nothing better is to be had): rlimits and another user (if the service is root's), and
  no more. The code can read what that user can, use the network, see other processes, signal those of the same user,
  the supervisor too, and leave a daemon behind. For development only.
"""
