"""Runs Python that nobody trusts: one sandbox for an item, one process in it for each test.

What it does. The code runs in a fresh interpreter without environment variables, in user, mount, process, network, IPC,
host-name and cgroup namespaces of its own: made by bubblewrap where that is installed, else by ourselves
(`inside.namespaces`). It sees a Python and the system's libraries, read-only, /dev/null and its like, its own /proc,
and a scratch folder in memory; no network, not even loopback; no capability, and no way to one; a filter of system
calls on x86-64 and arm64. Time, processor time, memory, processes, files and output are limited, for each process by
rlimits, together by process 1 of the sandbox, which looks every 50 ms; time in which a test waits for a processor does
not count. After each test everything that it started is killed, and with the worker that started the sandbox all of it
ends.

Who judges. Expected values of programs, calls and simple assertions stay outside: results come out as plain data, are
never unpickled or evaluated, and are compared by the worker (`compare`). All other tests run in a process of their own
that has never had the solution in it (`inside.judge`), nor has the solution's process ever had their code: it is
fetched from outside by the judge alone. What the tests call besides the solution's functions is the real one there;
results come as plain data, objects of the solution's own classes as something to ask for attributes and to call
(`inside.peer`). Those objects equal no plain value, nor have they an order or sums with one, unless the tests name
their class.

What it does not protect from:
- Faults of the kernel, the processor's side channels, and starving the machine within the limits (processor time above
  all: the limits are for one sandbox, and as many run as there are workers).
- Memory that rlimits and resident sizes do not show (socket and pipe buffers, page tables, directory entries), bounded
  only by the number of processes and descriptors. There is no memory cgroup; put the service in one.
- Tests that patch or inspect the solution (`mock`, `seed`, `inspect`, `asyncio` and the like) or extend its classes
  run in its process (`inside.beside`): a solution that walks frames or the garbage collector's objects can find the
  test code and the expected values in it, and can change what the tests see while they run. Builtins, unittest and
  the modules that the tests import are taken before it is loaded, put back, and looked at again after the test; results
  that hold objects of the solution's own classes are refused where an entry point is named. That stops the tricks that
  policies find, not an author who has read this.
- What an object of a class that the tests name (`Point(1) == f(2)`) is equal to, or more than, is for that class to
  say. It is refused if it, or something it holds, also equals an object that it cannot know.
- Names that the tests use and do not make, and that are neither builtins nor of the standard library, are the
  solution's, helpers too (HumanEval's `decode(encode(text))`).
- `setup` runs in the solution's module as well, as solutions use the classes that it makes: no place for answers.
- A solution sees the arguments that it is called with, and may know them.
- Tests of one item share the scratch folder, and can see each other's inputs if they leave them there.
- Other users of a Python prefix that holds secrets: the interpreter's `lib` folder is readable, site-packages and the
  folders of the setting `packages` included.
- Mode `limits` (and `auto` where nothing better is to be had): rlimits and another user (if the service is root's), and
  no more. The code can read what that user can, use the network, see other processes, signal those of the same user,
  the supervisor too, and leave a daemon behind. For development only.
"""
