"""`rlvr bench gpu`: everything that can only be known on a GPU, part by part.

The runner needs little more than the standard library, and a part what it names: a machine with a GPU may be bare and
offline.
"""
